//! The dashboard as somebody on call uses it: in a browser, before a proxy and a RabbitMQ that are real.

mod picture;

use crate::half::named;
use crate::support::checker::{HttpChecker, Reply};
use crate::support::table::{Properties, Table};
use crate::support::{
    PATIENCE, Proxy, Raw, broker, client, deadline, id, transactional, unique, wait_until, with_relay_account,
};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who may do what; the token is `token-of-` and the name.
const PEOPLE: [(&str, &str); 3] = [("alice", "operator"), ("bob", "operator"), ("victor", "viewer")];
/// Markup, a mark of direction and an escape of terminals.
const HOSTILE: &str = "<img src=x onerror=\"document.title=1\">\u{202e}gpj\u{1b}[2J";

/// A browser is as large as everything else together: one at a time.
fn one_browser() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A proxy that people log in to.
struct Stage {
    proxy: Proxy,
    account: String,
}

impl Stage {
    fn new(settings: &[(&str, &str)]) -> Self {
        let mut stage = Self::prepare(settings);
        stage.proxy.resume();
        stage
    }

    /// All but the process.
    fn prepare(settings: &[(&str, &str)]) -> Self {
        let (mut proxy, account) = with_relay_account(settings);
        let tokens = PEOPLE.map(|(name, role)| {
            let path = proxy.folder().join(format!("{name}.token"));
            std::fs::write(&path, format!("token-of-{name}\n")).expect("a file can be written");
            format!("{{ token_file = '{}', role = '{role}' }}", path.display())
        });
        proxy.set("admin.tokens", &format!("[{}]", tokens.join(", ")));
        proxy.set("admin.show_bodies", "true");
        Self { proxy, account }
    }

    /// With this checker, which is asked by hand alone.
    fn asking(checker: &HttpChecker) -> Self {
        let table = format!(
            "[{{ name = 'orders', url = '{}', match = {{ transaction = 'asked-*' }}, first_after = '1h' }}]",
            checker.url
        );
        Self::new(&[("checker", &table)])
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.proxy.admin_port)
    }

    /// Leaves transactions of these names in doubt, each with so many messages.
    fn doubt<'a>(&self, names: impl IntoIterator<Item = (&'a str, usize)>) {
        let queue = unique("dashboard");
        let mut raw = Raw::login(self.proxy.port);
        raw.open(1);
        raw.declare(1, &queue);
        let mut parked = 0;
        for (name, count) in names {
            for number in 1..=count {
                raw.publish_with(1, ("", queue.as_bytes()), 0, &named(name), format!("order {number}").as_bytes());
            }
            parked += 1;
        }
        wait_until(deadline(PATIENCE), "all to be in doubt", || self.doubts() >= parked);
    }

    fn doubts(&self) -> usize {
        self.proxy.metric("halfway_transactions_in_store{state=\"in_doubt\"}") as usize
    }

    /// Commits a message to each of the exchanges, which are gone when the relay gets there.
    fn dead_letters(&self, exchanges: &[&str]) {
        let queue = unique("dead-dashboard");
        let mut raw = transactional(self.proxy.port, &queue);
        for exchange in exchanges {
            raw.declare_exchange(2, exchange, "fanout");
        }
        broker().lock_out(&self.account);
        for (number, exchange) in exchanges.iter().enumerate() {
            let body = format!("{exchange} {number}");
            raw.publish_with(1, (exchange, b"key"), 0, &Properties::persistent(), body.as_bytes());
        }
        raw.commit(1);
        for exchange in exchanges {
            raw.delete_exchange(2, exchange);
        }
        broker().let_in(&self.account);
        let all = exchanges.len();
        wait_until(deadline(PATIENCE), "the dead letters", || {
            self.proxy.metric("halfway_dead_letters") as usize >= all
        });
    }
}

/// Asked about everything, it knows nothing.
fn unknowing() -> HttpChecker {
    HttpChecker::start(|_| Reply::Word("unknown"))
}

#[test]
fn an_operator_decides_and_a_viewer_looks() {
    let _turn = one_browser();
    let checker = unknowing();
    let stage = Stage::asking(&checker);
    let bulk: Vec<String> = (1..=250).map(|number| format!("bulk-{number}")).collect();
    let few = [
        ("news-1", 1),
        ("mouse-1", 2),
        ("keys-1", 1),
        ("late-1", 1),
        ("asked-1", 1),
        ("pick-1", 1),
        ("pick-2", 1),
        ("pick-3", 1),
    ];
    stage.doubt(few.into_iter().chain(bulk.iter().map(|name| (name.as_str(), 1))));
    let mut raw = Raw::login(stage.proxy.port);
    raw.open(1);
    let peer = format!("127.0.0.1:{}", raw.local_port());
    client::node("dashboard/decide.js", &[&stage.url(), &peer]);

    assert_eq!(checker.asked().len(), 1, "it was asked by hand");
    let close = raw.expect_close(0);
    assert_eq!((close.code, close.text.contains("it leaks channels")), (320, true), "{close:?}");
    let log = stage.proxy.log();
    for line in ["operator alice", "all of them are paid", "never paid"] {
        assert!(log.contains(line), "{line} is not in the log");
    }
}

#[test]
fn dead_letters_are_tried_again_and_discarded() {
    let _turn = one_browser();
    let stage = Stage::new(&[]);
    let (gone, back, queue) = (unique("dead-gone"), unique("dead-back"), unique("dead-found"));
    stage.dead_letters(&[&gone, &gone, &back, &back]);
    let mut raw = Raw::login(broker().port);
    raw.open(1);
    raw.declare(1, &queue);
    raw.declare_exchange(1, &back, "fanout");
    raw.bind(1, &queue, &back, "");
    client::node("dashboard/letters.js", &[&stage.url(), &gone, &back]);
    let mut found = raw.drain(1, &queue);
    found.sort_unstable();
    assert_eq!(found, [format!("{back} 2"), format!("{back} 3")]);
}

#[test]
fn every_view_is_accessible_inert_and_fits() {
    let _turn = one_browser();
    let checker = unknowing();
    let stage = Stage::asking(&checker);
    let gone = unique("dead-looks");
    stage.dead_letters(&[&gone]);
    stage.doubt([
        ("order-17", 3),
        ("asked-1", 1),
        ("a-name-of-some-length-that-has-to-be-broken-somewhere-or-other-in-a-window-that-is-narrow", 1),
    ]);
    let queue = unique("hostile");
    let mut raw = Raw::login(stage.proxy.port);
    raw.open(1);
    raw.declare(1, &queue);
    let headers = Table::new().string("x-half-transaction", HOSTILE).string("note", "<b>bold</b>\u{2066}");
    let properties = Properties::persistent().headers(headers);
    raw.publish_with(1, ("", queue.as_bytes()), 0, &properties, "<script>alert(2)</script>\u{200b}".as_bytes());
    wait_until(deadline(PATIENCE), "the hostile one", || stage.doubts() == 4);
    client::node("dashboard/looks.js", &[&stage.url(), &pictures().display().to_string(), &first_letter(&stage)]);
}

/// Where pictures are kept for people to look at.
fn pictures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/dashboard")
}

fn first_letter(stage: &Stage) -> String {
    let token = stage.proxy.folder().join("alice.token");
    let output = stage.proxy.command(&["dead", "list", "--json", "--token-file", &token.display().to_string()]);
    let list: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    list["items"][0]["id"].as_str().expect("an id is a string").to_owned()
}

#[test]
fn texts_lose_nothing_and_hide_nothing() {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/dashboard/text.js");
    client::node("dashboard/texts.js", &[&text.display().to_string()]);
}

#[test]
fn the_page_outlives_the_proxy() {
    let _turn = one_browser();
    let mut stage = Stage::new(&[]);
    stage.doubt([("kept-1", 1)]);
    let url = stage.url();
    play("dashboard/outage.js", &[&url], |wish| match wish {
        "kill" => stage.proxy.kill(),
        "resume" => stage.proxy.resume(),
        other => panic!("it asks for {other}"),
    });
}

/// Plays a story that asks for something in between, a line for each.
fn play(script: &str, arguments: &[&str], mut grant: impl FnMut(&str)) {
    let mut story = client::node_command(script, arguments);
    let mut child = story.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Node can be started");
    let mut done = child.stdin.take().expect("it is piped");
    for wish in BufReader::new(child.stdout.take().expect("it is piped")).lines() {
        grant(&wish.expect("text"));
        writeln!(done, "done").expect("it listens");
    }
    assert!(child.wait().expect("it can be waited for").success(), "see what it said above");
}

#[test]
fn a_dead_checker_a_lost_broker_and_a_full_disk_are_found_and_mended() {
    let _turn = one_browser();
    let up = Arc::new(AtomicBool::new(false));
    let is_up = Arc::clone(&up);
    let checker = HttpChecker::start(move |_| match is_up.load(Ordering::SeqCst) {
        true => Reply::Word("commit"),
        false => Reply::Status(503),
    });
    let table = format!(
        "[{{ name = 'orders', url = '{}', match = {{ transaction = 'order-*' }}, first_after = '1s', interval = '1s' }}]",
        checker.url
    );
    let mut stage = Stage::prepare(&[("checker", &table)]);
    // A limit for the size of files stands for a full disk; nobody is to die of the signal that comes with it.
    stage.proxy.spawn(&["sh", "-c", r#"trap '' XFSZ; exec "$0" "$@""#]);
    stage.proxy.wait_for_port();
    stage.doubt([("order-1", 1), ("order-2", 1), ("order-3", 1)]);
    let mut raw = transactional(stage.proxy.port, &unique("incident"));
    let mut commit = |size: usize| {
        raw.publish(1, "incident", vec![b'x'; size]);
        raw.method(1, id::TX_COMMIT, |_| {}).expect("it can be sent");
        let is_done = raw.read(PATIENCE).expect("a commit is answered").id() == id::TX_COMMIT_OK;
        if !is_done {
            raw.method(1, id::CHANNEL_CLOSE_OK, |_| {}).expect("it can be sent");
            raw.open_tx(1);
        }
        is_done
    };
    let limit = |bytes: &str| {
        let process = stage.proxy.process_id().to_string();
        let fsize = format!("--fsize={bytes}:unlimited");
        let status = Command::new("prlimit").args(["--pid", &process, &fsize]).status();
        assert!(status.expect("prlimit is there").success());
    };
    let mut away = Proxy::prepare(crate::support::free_port(), &[]);
    away.spawn(&[]);
    away.wait_for_port();
    assert!(Raw::try_login(away.port).is_err(), "there is no RabbitMQ");

    let urls = [stage.url(), format!("http://127.0.0.1:{}", away.admin_port)];
    play("dashboard/incidents.js", &urls.each_ref().map(String::as_str), |wish| match wish {
        "start the checker" => up.store(true, Ordering::SeqCst),
        "lock the relay out" => {
            broker().lock_out(&stage.account);
            assert!(commit(10));
        }
        "let the relay in" => broker().let_in(&stage.account),
        "fill the disk" => {
            broker().lock_out(&stage.account);
            limit("1000000");
            assert!((0..100).any(|_| !commit(60_000)), "there is room for everything");
        }
        "make room" => {
            limit("unlimited");
            broker().let_in(&stage.account);
        }
        other => panic!("it asks for {other}"),
    });
    wait_until(deadline(PATIENCE), "commits to succeed again", || commit(10));
}
