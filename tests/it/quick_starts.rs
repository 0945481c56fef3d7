//! The quick starts of `docs/clients`, as they are: each tells the same story with another client library, twice. And the
//! programs of the README.

use crate::support::child::Process;
use crate::support::raw::{Content, Login};
use crate::support::{PATIENCE, Raw, broker, deadline, proxied_port, proxy, unique, wait_until};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A client's folder of `docs/clients`, copied to where it may leave its traces, and a virtual host and a user for it.
struct Shop {
    name: String,
    folder: TempDir,
}

impl Shop {
    fn open(client: &str) -> Self {
        let name = unique(client);
        broker().add_vhost(&name);
        broker().add_user(&name, ["^$", "^$", "^$"]);
        broker().ctl(&["set_permissions", "-p", &name, &name, ".*", ".*", ".*"]);
        let folder = tempfile::Builder::new().prefix("halfway-quick-start-").tempdir().expect("a folder can be made");
        for entry in std::fs::read_dir(root().join("docs/clients").join(client)).expect("the client has a folder") {
            let entry = entry.expect("a folder can be read");
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("a file can be copied");
        }
        Self { name, folder }
    }

    fn address(&self) -> String {
        format!("amqp://{0}:{0}@127.0.0.1:{1}/{0}", self.name, proxied_port())
    }

    /// Runs the quick start; what it printed.
    #[track_caller]
    fn run(&self, command: &[&str]) -> String {
        let output = self.command(command).output().unwrap_or_else(|error| panic!("{}: {error}; {SETUP}", command[0]));
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{command:?} failed; {SETUP}\n{out}\n{err}");
        out.into_owned()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(self.folder.path()).env("AMQP_URL", self.address());
        // Go's packages from Debian have no modules.
        command.env("GO111MODULE", "off").env("GOPATH", "/usr/share/gocode").env("GOFLAGS", "");
        command.env("GOCACHE", self.folder.path().join("go-cache")).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// Runs the quick start, and once more: every order is placed again but for the one that has a name.
    #[track_caller]
    fn tells_the_story(&self, command: &[&str]) {
        let address = self.address();
        let command = &[command, &[address.as_str()]].concat();
        self.run(command);
        let printed = self.run(command);
        assert!(printed.contains("parcels") && printed.contains("invoices"), "{printed}");

        let mut raw = Raw::login_as(broker().port, &Login { vhost: &self.name, ..Login::default() }).expect("a login");
        raw.open(1);
        let (mut invoices, mut parcels) = (Vec::new(), Vec::new());
        wait_until(deadline(PATIENCE), "every message", || {
            invoices.extend(raw.get(1, "invoices").as_ref().map(summary));
            parcels.extend(raw.get(1, "parcels").as_ref().map(summary));
            self.states() == ["delivered"] && invoices.len() >= 2 && parcels.len() >= 5
        });
        // An ordinary message may overtake what was committed before it.
        parcels.sort();
        let ordinary = "order 1: a book, as it was";
        let committed = "order 2: a lamp, from a transaction";
        let named = "order 4: a table, from order-4";
        assert_eq!(parcels, [ordinary, ordinary, committed, committed, named]);
        assert_eq!(invoices, ["order 2: 30 EUR, from a transaction"; 2]);
        assert!(raw.get(1, "invoices").is_none() && raw.get(1, "parcels").is_none(), "there is no more");
    }

    /// The states of the transactions with the name of the story.
    fn states(&self) -> Vec<String> {
        let path = format!("/api/transactions?vhost={}&name=order-4", self.name);
        let (status, text) = proxy().http(&path).expect("an answer");
        assert_eq!(status, 200, "{text}");
        let list: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let items = list["items"].as_array().expect("a list");
        items.iter().map(|item| item["state"].as_str().expect("a state").to_owned()).collect()
    }
}

/// A message's body, and what its headers tell about its way.
fn summary(message: &Content) -> String {
    let header = |name| message.properties.header(name);
    let way = match (header("x-half-id"), header("x-half-transaction")) {
        (None, None) => "as it was".to_owned(),
        (Some(_), None) => "from a transaction".to_owned(),
        (_, Some(name)) => format!("from {name}"),
    };
    format!("{}, {way}", message.text())
}

#[test]
fn pika() {
    Shop::open("pika").tells_the_story(&[&venv("python"), "quick_start.py"]);
}

#[test]
fn node() {
    let shop = Shop::open("node");
    let modules = root().join("tests/clients/node_modules");
    std::os::unix::fs::symlink(modules, shop.folder.path().join("node_modules")).expect("a link can be made");
    shop.tells_the_story(&["node", "quick_start.mjs"]);
}

#[test]
fn java() {
    let jars = ["amqp-client", "slf4j-api", "slf4j-nop"].map(|name| format!("/usr/share/java/{name}.jar"));
    Shop::open("java").tells_the_story(&["java", "-cp", &jars.join(":"), "QuickStart.java"]);
}

#[test]
fn go() {
    Shop::open("go").tells_the_story(&["go", "run", "main.go"]);
}

#[test]
fn php() {
    let shop = Shop::open("php");
    // Composer would make this file; Debian's package has its own.
    let vendor = shop.folder.path().join("vendor");
    std::fs::create_dir(&vendor).expect("a folder can be made");
    std::fs::write(vendor.join("autoload.php"), "<?php require 'PhpAmqpLib/autoload.php';\n").expect("a file");
    shop.tells_the_story(&["php", "quick_start.php"]);
}

#[test]
fn celery() {
    let shop = Shop::open("celery");
    let quick_start = [&venv("python"), "quick_start.py"];
    shop.run(&quick_start);
    shop.run(&quick_start);
    let worker = ["--app", "shop", "worker", "--queues", "invoices,parcels", "--pool", "solo"];
    let command = shop.command(&[&[venv("celery").as_str()], &worker[..]].concat());
    let _worker = Process::start(command, shop.folder.path(), "worker.log");
    let log = || std::fs::read_to_string(shop.folder.path().join("worker.log")).unwrap_or_default();
    let orders = || {
        let log = log();
        let mut orders: Vec<_> = log.lines().filter_map(|line| Some(line[line.find("order ")?..].to_owned())).collect();
        orders.sort();
        orders
    };
    wait_until(deadline(PATIENCE), "every task", || shop.states() == ["delivered"] && orders().len() >= 8);
    let (one, two) = ("order 1: a book", ["order 2: 30 EUR", "order 2: a lamp"]);
    let four = ["order 4: 90 EUR", "order 4: a table"];
    assert_eq!(orders(), [one, one, two[0], two[0], two[1], two[1], four[0], four[1]], "{}", log());
}

#[test]
fn the_readme() {
    let shop = Shop::open("pika");
    let readme = std::fs::read_to_string(root().join("README.md")).expect("the README can be read");
    let blocks: Vec<_> = readme.split("```python\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let [program, half] = blocks[..] else { panic!("the README has two programs") };
    // The second goes on where the first ends, with a database.
    let half = half.replace('\n', "\n    ");
    let before = "import sqlite3\ndatabase = sqlite3.connect('shop.db')\n\
                  database.execute('CREATE TABLE orders (id INTEGER, item TEXT)')\n";
    let own = program.replace("amqp://app:app@127.0.0.1:5673", &shop.address());
    let text = format!("{before}{own}\n    channel.queue_declare('orders', durable=True)\n    {half}");
    std::fs::write(shop.folder.path().join("readme.py"), text).expect("a file can be written");
    shop.run(&[&venv("python"), "readme.py"]);

    let mut raw = Raw::login_as(broker().port, &Login { vhost: &shop.name, ..Login::default() }).expect("a login");
    raw.open(1);
    for (queue, expected) in [
        ("invoices", "order 17: 30 EUR, from a transaction"),
        ("parcels", "order 17: one book, from a transaction"),
        ("orders", "order 17: one book, from order-17"),
    ] {
        assert_eq!(summary(&raw.get_soon(1, queue)), expected);
    }
    let database = rusqlite::Connection::open(shop.folder.path().join("shop.db")).expect("the program has made it");
    let orders = database.query_row("SELECT id, item FROM orders", (), |row| Ok((row.get(0)?, row.get(1)?)));
    assert_eq!(orders, Ok((17, "one book".to_owned())));
}

/// A program of the Python that `tests/setup.sh` makes.
fn venv(program: &str) -> String {
    root().join(".venv/bin").join(program).to_str().expect("a path of text").to_owned()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

const SETUP: &str = "tests/setup.sh installs what it needs";
