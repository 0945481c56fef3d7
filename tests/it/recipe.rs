//! The order service of `docs/examples/orders`, as it is: killed before each line of its flow, and frozen while its local
//! transaction runs. In the end its database and the queue agree, each time.

use crate::support::child::Process;
use crate::support::postgres::Postgres;
use crate::support::raw::Login;
use crate::support::{PATIENCE, Proxy, Raw, broker, deadline, free_port, unique, wait_until};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// The service's database, looked into from outside of the service.
enum Database {
    Postgres(Postgres),
    Sqlite(PathBuf),
}

impl Database {
    fn url(&self) -> String {
        match self {
            Self::Postgres(server) => server.url(),
            Self::Sqlite(path) => format!("sqlite:{}", path.display()),
        }
    }

    /// The ids of the orders in it, sorted.
    fn orders(&self) -> Vec<String> {
        let sql = "SELECT id FROM orders ORDER BY id";
        match self {
            Self::Postgres(server) => server.query(sql).lines().map(String::from).collect(),
            Self::Sqlite(path) => {
                let connection = rusqlite::Connection::open(path).expect("the service has made it");
                let mut statement = connection.prepare(sql).expect("the table is there");
                let ids = statement.query_map((), |row| row.get(0)).expect("it can be read");
                ids.collect::<Result<_, _>>().expect("texts")
            }
        }
    }
}

/// A line of the example that an order comes to.
#[derive(Clone)]
struct Line {
    /// File, number, and how often it was run, this time included.
    place: String,
    /// What stands there.
    text: String,
}

/// The service of the example, in both its forms.
#[derive(Clone, Copy, PartialEq)]
enum Program {
    /// It answers the check-back.
    Orders,
    /// It has no endpoint: the proxy looks into its database.
    Producer,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Orders => "orders",
            Self::Producer => "producer",
        }
    }
}

/// A shop with its own virtual host, user, proxy and database.
struct Shop {
    name: String,
    program: Program,
    /// Where the checker is asked.
    port: u16,
    database: Database,
    proxy: Proxy,
    /// The queue's consumer, and what it has got.
    consumer: Raw,
    delivered: Vec<String>,
    folder: TempDir,
}

impl Shop {
    fn open(program: Program, database: impl FnOnce(&Path) -> Database) -> Self {
        let folder = tempfile::Builder::new().prefix("halfway-orders-").tempdir().expect("a folder can be made");
        let (name, port) = (unique("shop"), free_port());
        broker().add_vhost(&name);
        broker().add_user(&name, ["^$", "^$", "^$"]);
        broker().ctl(&["set_permissions", "-p", &name, &name, ".*", ".*", ".*"]);
        let mut consumer = Raw::login_as(broker().port, &Login { vhost: &name, ..Login::default() }).expect("a login");
        consumer.open(1);
        consumer.declare(1, "orders");
        std::fs::write(folder.path().join("secret"), "a secret\n").expect("a file can be written");
        let database = database(folder.path());
        let asked = match program {
            Program::Orders => format!(
                "url = 'http://127.0.0.1:{port}/half/check', secret_file = '{}'",
                folder.path().join("secret").display()
            ),
            Program::Producer => format!("postgres = '{}?sslmode=disable', barrier = 'half_barrier'", database.url()),
        };
        let checker =
            format!("[{{ name = 'orders', {asked}, first_after = '0s', interval = '200ms', max_interval = '200ms' }}]");
        let proxy = Proxy::start_with(broker().port, &[("checker", &checker)]);
        Self { name, program, port, database, proxy, consumer, delivered: Vec::new(), folder }
    }

    fn command(&self, script: &str, first: &[&str], port: u16) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = root.join(".venv/bin/python");
        assert!(python.exists(), "there is no .venv: run tests/setup.sh");
        let mut command = Command::new(python);
        command
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .arg(root.join(script))
            .args(first)
            .args(["--amqp", &format!("amqp://{0}:{0}@127.0.0.1:{1}/{0}", self.name, self.proxy.port)])
            .args(["--database", &self.database.url(), "--listen", &format!("127.0.0.1:{port}")]);
        if self.program == Program::Orders {
            command.arg("--secret-file").arg(self.folder.path().join("secret"));
        }
        command
    }

    fn start(&self, command: Command, port: u16) -> Process {
        let mut process = Process::start(command, self.folder.path(), "orders.log");
        wait_until(deadline(PATIENCE), "the service to listen", || {
            if let Some(status) = process.ended() {
                panic!("the service ended with {status}; its last words: {}", self.log());
            }
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        });
        process
    }

    /// Starts the service.
    fn service(&self) -> Process {
        self.start(self.command(&format!("docs/examples/orders/{}.py", self.program.name()), &[], self.port), self.port)
    }

    /// Starts the service on `port`, where a signal will hit it just before an order comes to `line`.
    fn service_until(&self, signal: &str, line: &Line, port: u16) -> Process {
        self.start(
            self.command("tests/clients/orders_until.py", &[self.program.name(), signal, &line.place], port),
            port,
        )
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("orders.log")).unwrap_or_default()
    }

    /// The lines that an order comes to, in order; one is placed for it.
    fn lines(&self) -> Vec<Line> {
        let _service = self
            .start(self.command("tests/clients/orders_until.py", &[self.program.name(), "list"], self.port), self.port);
        assert_eq!(order(self.port, "first"), Some(201), "{}", self.log());
        let log = self.log();
        let lines = log.lines().filter_map(|line| line.strip_prefix("line ")?.split_once(' '));
        lines.map(|(place, text)| Line { place: place.to_owned(), text: text.to_owned() }).collect()
    }

    /// The states of an order's transactions, oldest first.
    fn states(&self, id: &str) -> Vec<String> {
        let (status, text) = self.proxy.http(&format!("/api/transactions?name=order-{id}")).expect("an answer");
        assert_eq!(status, 200, "{text}");
        let list: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let items = list["items"].as_array().expect("a list");
        items.iter().map(|item| item["state"].as_str().expect("a state").to_owned()).collect()
    }

    /// Waits until the proxy has nothing to do with an order any more.
    #[track_caller]
    fn settle(&self, id: &str) -> Vec<String> {
        // What a client sent last before it died is taken up before its connection counts as gone.
        wait_until(deadline(PATIENCE), "the connections to end", || self.proxy.metric("halfway_connections") == 0.0);
        let mut states = Vec::new();
        wait_until(deadline(PATIENCE), &format!("an end of order {id}; {}", self.log()), || {
            states = self.states(id);
            states.iter().all(|state| ["delivered", "rolled_back"].contains(&state.as_str()))
        });
        states
    }

    /// The ids of the orders whose messages have come so far, sorted, as often as they came.
    fn delivered(&mut self) -> Vec<String> {
        for body in self.consumer.drain(1, "orders") {
            let order: serde_json::Value = serde_json::from_str(&body).expect("an order");
            self.delivered.push(order["id"].as_str().expect("an id").to_owned());
        }
        self.delivered.sort();
        self.delivered.clone()
    }

    #[track_caller]
    fn agree(&mut self, when: &str) {
        assert_eq!(self.delivered(), self.database.orders(), "left: the queue, right: the database; {when}");
    }

    fn checks(&self, result: &str) -> bool {
        let (_, text) = self.proxy.http("/metrics").expect("the admin port answers");
        let label = format!("result=\"{result}\"");
        let mut lines = text.lines().filter(|line| line.starts_with("halfway_checks_total") && line.contains(&label));
        lines.any(|line| !line.ends_with(" 0"))
    }
}

/// Places an order: the status of the answer; `None` if there is none.
fn order(port: u16, id: &str) -> Option<u16> {
    post(port, "/orders", &format!("{{\"id\": \"{id}\", \"item\": \"a book\"}}"))
}

fn post(port: u16, path: &str, body: &str) -> Option<u16> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit can be set");
    write!(stream, "POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

fn killed_at_every_line(mut shop: Shop) {
    let lines = shop.lines();
    let at =
        |text: &str| lines.iter().position(|line| line.text.starts_with(text)).unwrap_or_else(|| panic!("{text}?"));
    let (published, prepared, committed) =
        (at("channel.basic_publish"), at("database.place"), at("channel.tx_commit()"));
    assert!(published < prepared && prepared < at("connection.execute(\"INSERT INTO orders"));
    shop.settle("first");
    shop.agree("before any kill");
    for (step, Line { place, text }) in lines.iter().enumerate() {
        let (id, when) = (format!("{step:02}"), format!("killed before {place}: {text}"));
        let mut dying = shop.service_until("KILL", &lines[step], shop.port);
        assert_eq!(order(shop.port, &id), None, "{when}");
        assert_eq!(dying.wait(PATIENCE).signal(), Some(Signal::KILL.as_raw()), "{when}");
        drop(dying);

        let service = shop.service();
        let states = shop.settle(&id);
        shop.agree(&when);
        let placed = shop.database.orders().contains(&id);
        // Between the two lies the barrier: a message that RabbitMQ has not judged when its producer dies is not kept.
        assert!(states.is_empty() || step > published, "{when}: {states:?}");
        assert!(!states.is_empty() || step < prepared, "{when}");
        assert!(placed || step < committed, "{when}: the database had committed");

        // Whoever ordered and got no answer orders again. What the checker has given up stays so.
        let expected = if placed || states.is_empty() { 201 } else { 409 };
        assert_eq!(order(shop.port, &id), Some(expected), "{when}; {}", shop.log());
        shop.settle(&id);
        shop.agree(&format!("{when}, and ordered again"));
        drop(service);
    }
    let (orders, log) = (shop.database.orders().len(), shop.log());
    assert!(orders > 1 && orders <= lines.len(), "some were placed and some were given up: {orders}\n{log}");
    assert!(shop.checks("commit") && shop.checks("rollback"), "{log}");
}

/// Freezes the service before `text`, takes its connection to the proxy away, has another instance asked, and lets the
/// frozen one go on after `meanwhile`. Returns what it answered.
fn frozen_before(shop: &Shop, lines: &[Line], text: &str, id: &str, meanwhile: impl FnOnce(&Shop)) -> Option<u16> {
    let line = lines.iter().find(|line| line.text.starts_with(text)).expect("there is such a line");
    let port = free_port();
    let (frozen, _other) = (shop.service_until("STOP", line, port), shop.service());
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| order(port, id));
        let state = format!("/proc/{}/stat", frozen.id());
        wait_until(deadline(PATIENCE), "the service to stop", || {
            std::fs::read_to_string(&state).is_ok_and(|stat| stat.contains(") T "))
        });
        broker().close_connections_of(&shop.name);
        meanwhile(shop);
        frozen.signal(Signal::CONT);
        answer.join().expect("an answer or none")
    })
}

fn asked_while_it_runs(mut shop: Shop) {
    let lines = shop.lines();
    let text = "connection.execute(\"INSERT INTO orders";
    let answer = frozen_before(&shop, &lines, text, "slow", |shop| {
        wait_until(deadline(PATIENCE), "the answer ongoing", || shop.checks("ongoing"));
        assert_eq!(shop.states("slow"), ["in_doubt"]);
    });
    assert_eq!(answer, Some(201), "it is placed, though its message waits for the check-back; {}", shop.log());
    let service = shop.service();
    assert_eq!(shop.settle("slow"), ["delivered"]);
    let forged = r#"{"transaction": "order-late"}"#;
    let refused = if shop.program == Program::Orders { 403 } else { 400 };
    assert_eq!(post(shop.port, "/half/check", forged), Some(refused), "a stranger could spoil any order");
    drop(service);
    shop.agree("asked inside the local transaction");

    let answer = frozen_before(&shop, &lines, "database.place(", "late", |shop| {
        wait_until(deadline(PATIENCE), "the answer rollback", || shop.states("late") == ["rolled_back"]);
    });
    assert_eq!(answer, Some(409), "the checker was first; {}", shop.log());
    shop.settle("late");
    shop.agree("asked before the local transaction");
    assert_eq!(shop.database.orders(), ["first", "slow"]);
}

fn postgres(_: &Path) -> Database {
    Database::Postgres(Postgres::start())
}

fn sqlite(folder: &Path) -> Database {
    Database::Sqlite(folder.join("orders.db"))
}

#[test]
fn killed_at_every_line_with_postgres_database_and_queue_agree() {
    killed_at_every_line(Shop::open(Program::Orders, postgres));
}

#[test]
fn killed_at_every_line_with_sqlite_database_and_queue_agree() {
    killed_at_every_line(Shop::open(Program::Orders, sqlite));
}

#[test]
fn a_checker_is_right_while_the_transaction_runs_in_postgres() {
    asked_while_it_runs(Shop::open(Program::Orders, postgres));
}

#[test]
fn a_checker_is_right_while_the_transaction_runs_in_sqlite() {
    asked_while_it_runs(Shop::open(Program::Orders, sqlite));
}

#[test]
fn killed_at_every_line_without_an_endpoint_database_and_queue_agree() {
    killed_at_every_line(Shop::open(Program::Producer, postgres));
}

#[test]
fn the_proxy_is_right_while_the_transaction_runs_in_the_database_that_it_asks() {
    asked_while_it_runs(Shop::open(Program::Producer, postgres));
}
