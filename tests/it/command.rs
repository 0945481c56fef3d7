//! The command line: what it prints, and its exit codes.

use crate::support::{Proxy, broker, deadline, wait_until};
use halfway::store::sqlite::{SqliteSettings, SqliteStore};
use halfway::store::{Committed, Lane, Named, Origin, Outlet, Strand, system_clock};
use halfway::tx::batch::{Batch, HalfMessage};
use halfway::tx::id::TransactionId;
use halfway::tx::name::TransactionName;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

fn halfway(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_halfway"));
    command.args(arguments).envs(variables.iter().copied());
    // Away from the repository, whose config.toml would be read.
    command.current_dir("/");
    command.output().expect("the binary can be started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stdout)))
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    for command in [&["completions", "bash"][..], &["config", "show"], &["config", "show", "--json"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe can be made");
        drop(reader);
        let done = Command::new(env!("CARGO_BIN_EXE_halfway"))
            .args(command)
            .current_dir("/")
            .stdout(writer)
            .output()
            .expect("the binary is there");
        assert_eq!((done.status.code(), text(&done.stderr).as_str()), (Some(0), ""), "{command:?}");
    }
}

#[test]
fn usage_errors_are_2_and_failures_are_1() {
    assert_eq!(halfway(&["--version"], &[]).status.code(), Some(0));
    assert_eq!(halfway(&[], &[]).status.code(), Some(2));
    assert_eq!(halfway(&["srve"], &[]).status.code(), Some(2));
    let missing = halfway(&["serve", "--config", "/nowhere/halfway.toml"], &[]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("/nowhere/halfway.toml"), "{}", text(&missing.stderr));
}

#[test]
fn a_wrong_configuration_is_refused_with_everything_that_is_wrong() {
    let variables = [("HALFWAY_STORE_URL", "sqlite:x.db"), ("HALFWAY_RELAY__LANES", "no")];
    for command in [&["serve"][..], &["config", "check"]] {
        let output = halfway(command, &variables);
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        assert!(said.contains("HALFWAY_STORE_URL: unknown variable, the nearest valid one is HALFWAY_STORE__URL"));
        assert!(said.contains("HALFWAY_RELAY__LANES: expected a whole number"), "{said}");
    }
    let checked = json_of(&halfway(&["config", "check", "--json"], &variables));
    assert_eq!((&checked["valid"], checked["problems"].as_array().map(Vec::len)), (&json!(false), Some(2)));
    assert_eq!(halfway(&["config", "check"], &[]).status.code(), Some(0));
}

#[test]
fn config_show_tells_where_each_value_comes_from_and_no_secret() {
    let variables = [("HALFWAY_RELAY__PASSWORD", "01234"), ("HALFWAY_LISTEN__MAX_CONNECTIONS", "7")];
    let shown = halfway(&["config", "show", "--json"], &variables);
    assert!(!text(&shown.stdout).contains("01234"));
    let entries = json_of(&shown);
    let find = |key: &str| entries.as_array()?.iter().find(|entry| entry["key"] == key).cloned();
    let connections = json!({"key": "listen.max_connections", "value": 7, "source": "HALFWAY_LISTEN__MAX_CONNECTIONS"});
    assert_eq!(find("listen.max_connections"), Some(connections));
    assert_eq!(find("relay.password").expect("it is a key")["source"], "HALFWAY_RELAY__PASSWORD");
    assert_eq!(find("store.max_size").expect("it is a key")["source"], "default");
    let lines = text(&halfway(&["config", "show"], &variables).stdout);
    assert!(lines.lines().any(|line| line.starts_with("store.max_size = \"10GiB\"") && line.ends_with("# default")));
    assert!(!lines.contains("01234"));
}

#[test]
fn the_doctor_tells_what_the_relays_account_lacks() {
    let proxy = Proxy::prepare(broker().port, &[]);
    let report = |variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halfway"));
        command.args(["doctor", "--json", "--config"]).arg(proxy.configuration()).envs(variables.iter().copied());
        let output = command.output().expect("the binary can be started");
        let verdicts: Vec<_> = json_of(&output)
            .as_array()
            .expect("a list")
            .iter()
            .map(|found| format!("{} {}", found["verdict"].as_str().unwrap_or("?"), found["text"]))
            .collect();
        (output.status.code(), verdicts)
    };
    let (code, good) = report(&[]);
    // The store's place is not judged here: a temporary folder may lie in memory.
    assert!(good[..4].iter().all(|line| line.starts_with("ok ")), "{good:?}");
    assert!(code.is_some(), "{good:?}");

    let guest = [("HALFWAY_RELAY__USERNAME", "guest"), ("HALFWAY_RELAY__PASSWORD", "guest")];
    let guest_account = guest;
    let (_, guest) = report(&guest);
    assert!(guest[3].starts_with("warning ") && guest[3].contains("impersonator"), "{guest:?}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_halfway"));
    let told = command.args(["doctor", "--config"]).arg(proxy.configuration()).envs(guest_account).output();
    let told = text(&told.expect("the binary can be started").stdout);
    assert!(told.contains("         cure: rabbitmqctl set_user_tags guest impersonator"), "{told}");

    let (code, wrong) = report(&[("HALFWAY_RELAY__PASSWORD", "wrong")]);
    assert_eq!(code, Some(1));
    assert!(wrong[1].starts_with("failed ") && wrong[1].contains("ACCESS_REFUSED"), "{wrong:?}");

    let (code, gone) = report(&[("HALFWAY_UPSTREAM__URLS", "amqp://127.0.0.1:1")]);
    assert_eq!(code, Some(1));
    assert!(gone[0].starts_with("failed ") && gone[0].contains("refused"), "{gone:?}");
}

#[test]
fn health_is_asked_of_the_running_proxy() {
    let mut proxy = Proxy::prepare(broker().port, &[]);
    let health = |proxy: &Proxy| proxy.command(&["doctor", "--health"]).status.code();
    assert_eq!(health(&proxy), Some(1));
    proxy.spawn(&[]);
    wait_until(deadline(Duration::from_secs(30)), "the proxy to live", || health(&proxy) == Some(0));
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_for_end().code(), Some(0));
    assert_eq!(health(&proxy), Some(1));
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let mut proxy = Proxy::prepare(broker().port, &[("admin.address", &format!("'{address}'"))]);
    proxy.spawn(&[]);
    assert_eq!(proxy.wait_for_end().code(), Some(1));
    assert!(proxy.log().contains(&format!("cannot listen on {address} (admin.address)")), "{}", proxy.log());
}

#[test]
fn a_store_is_counted_checked_and_copied_and_a_copy_never_overwrites() {
    let proxy = Proxy::prepare(broker().port, &[]);
    let missing = proxy.command(&["store", "stats"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("halfway.db"), "{}", text(&missing.stderr));

    SqliteStore::open(SqliteSettings::new(proxy.folder().join("halfway.db")), Arc::new(Nowhere)).expect("made").close();
    let stats = json_of(&proxy.command(&["store", "stats", "--json"]));
    assert_eq!((&stats["committed"], &stats["lanes"]), (&json!(0), &json!([])));
    let check = proxy.command(&["store", "check"]);
    assert_eq!(check.status.code(), Some(0));
    assert!(text(&check.stdout).contains("problems             none"), "{}", text(&check.stdout));

    let copy = proxy.folder().join("copy.db").display().to_string();
    assert_eq!(proxy.command(&["store", "backup", &copy]).status.code(), Some(0));
    let again = proxy.command(&["store", "backup", &copy]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("is there already"), "{}", text(&again.stderr));

    std::fs::write(proxy.folder().join("halfway.db"), [7; 8192]).expect("written");
    let broken = proxy.command(&["store", "check"]);
    assert_eq!(broken.status.code(), Some(1), "{}", text(&broken.stdout));
}

/// Parks a transaction in doubt in the store of a proxy that does not run, and gives its id.
pub fn park(proxy: &Proxy, name: &str) -> String {
    let path = proxy.folder().join("halfway.db");
    let store = SqliteStore::open(SqliteSettings::new(path), Arc::new(Nowhere)).expect("made");
    let mut batch = Batch::default();
    batch.push(HalfMessage { publish: b"\0\0\0\x06orders\0", header: b"", body: b"order" });
    let id = TransactionId(uuid::Uuid::now_v7());
    let origin = Origin {
        id,
        user: "alice".into(),
        lane: Lane::new("/".into(), 0),
        strand: Strand(0),
        created_at: system_clock(),
        named: Some(Arc::new(Named {
            name: TransactionName::new(name.as_bytes()).expect("a name"),
            check: None,
            transactional: false,
        })),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(store.park(origin, batch)).expect("parked");
    store.close();
    id.to_string()
}

#[test]
fn a_transaction_in_doubt_is_found_and_decided_by_hand() {
    let mut proxy = Proxy::prepare(broker().port, &[]);
    let id = park(&proxy, "order/1 \u{1b}[2J");
    let other = park(&proxy, "order-2");
    let starred = park(&proxy, "order-*");
    proxy.resume();
    let shown = json_of(&proxy.command(&["tx", "show", "--user", "alice", "--name", "order-*", "--json"]));
    assert_eq!(shown["id"], json!(starred), "a name is no pattern here");

    let list = json_of(&proxy.command(&["tx", "list", "--state", "in_doubt", "--json"]));
    let ids: Vec<_> = list["items"].as_array().expect("items").iter().map(|item| item["id"].clone()).collect();
    assert_eq!((ids, &list["next_cursor"]), (vec![json!(id), json!(other), json!(starred)], &Value::Null));
    let shown = proxy.command(&["tx", "list"]);
    let lines = text(&shown.stdout);
    assert!(lines.contains(&id) && lines.contains("order/1 \\u{1b}[2J") && !lines.contains('\u{1b}'), "{lines}");
    let first = text(&proxy.command(&["tx", "list", "--limit", "1"]).stdout);
    assert!(first.contains(&id) && !first.contains(&other) && first.contains("raise --limit"), "{first}");
    for (filter, found) in [
        (["--exchange", ""], 3),
        (["--exchange", "orders"], 0),
        (["--min-age", "0s"], 3),
        (["--min-age", "1h 30m"], 0),
        (["--name", "order-?"], 2),
    ] {
        let list = json_of(&proxy.command(&[&["tx", "list", "--json"][..], &filter].concat()));
        assert_eq!(list["items"].as_array().map(Vec::len), Some(found), "{filter:?}");
    }

    // By name, with characters that a path has other uses for.
    let by_name = |what: &str, more: &[&str]| {
        let named = ["tx", what, "--user", "alice", "--name", "order/1 \u{1b}[2J"];
        proxy.command(&[&named[..], more].concat())
    };
    let shown = json_of(&by_name("show", &["--json"]));
    assert_eq!((&shown["id"], &shown["state"], &shown["vhost"]), (&json!(id), &json!("in_doubt"), &json!("/")));
    let done = by_name("rollback", &["--reason", "never ordered"]);
    assert_eq!(
        (done.status.code(), text(&done.stdout)),
        (Some(0), format!("{id}: rolled_back\n")),
        "{}",
        text(&done.stderr)
    );
    let again = by_name("rollback", &["--reason", "never ordered", "--json"]);
    assert_eq!((again.status.code(), &json_of(&again)["changed"]), (Some(0), &json!(false)));
    let again = text(&proxy.command(&["tx", "rollback", &id, "--reason", "once more"]).stdout);
    assert!(again.contains("already, decided by operator local") && again.contains("nothing changed"), "{again}");
    let opposite = proxy.command(&["tx", "commit", &id, "--reason", "a mistake"]);
    assert_eq!(opposite.status.code(), Some(1));
    assert!(text(&opposite.stderr).contains("rolled_back by operator local at "), "{}", text(&opposite.stderr));

    let asked = proxy.command(&["tx", "check", &other]);
    assert_eq!(asked.status.code(), Some(1), "there is no checker");
    let history = text(&proxy.command(&["tx", "show", &id]).stdout);
    assert!(history.contains("operator local: never ordered"), "{history}");
    wait_until(deadline(Duration::from_secs(10)), "the decision to be counted", || {
        proxy.metric("halfway_decisions_total") == 1.0
    });
    assert!(proxy.log().contains("halfway::audit"), "{}", proxy.log());
    wait_until(deadline(Duration::from_secs(10)), "the gauge to follow", || {
        proxy
            .http("/metrics")
            .is_ok_and(|(_, text)| text.contains("halfway_transactions_in_store{state=\"in_doubt\"} 2\n"))
    });

    // What was answered is durable: a kill takes nothing of it back.
    proxy.kill();
    proxy.resume();
    assert_eq!(json_of(&proxy.command(&["tx", "show", &id, "--json"]))["state"], "rolled_back");
}

#[test]
fn a_proxy_that_is_not_there_an_unknown_id_and_a_wrong_token_are_told_apart() {
    const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
    let mut proxy = Proxy::prepare(broker().port, &[]);
    let (alice, wrong) = (proxy.folder().join("alice.token"), proxy.folder().join("wrong"));
    std::fs::write(&alice, "secret\n").expect("written");
    std::fs::write(&wrong, "guessed\n").expect("written");
    let (alice, wrong) = (alice.display().to_string(), wrong.display().to_string());
    let gone = proxy.command(&["tx", "list"]);
    assert_eq!(gone.status.code(), Some(1));
    let url = format!("http://127.0.0.1:{}", proxy.admin_port);
    let said = text(&gone.stderr);
    assert!(
        said.contains(&format!("no proxy answers at {url} (admin.address)")) && said.contains("halfway serve"),
        "{said}"
    );

    proxy.set("admin.tokens", &format!("[{{ token_file = '{alice}', role = 'operator' }}]"));
    proxy.resume();
    let none = proxy.command(&["tx", "list"]);
    assert_eq!(
        (none.status.code(), text(&none.stdout).as_str()),
        (Some(0), "There are none.\n"),
        "{}",
        text(&none.stderr)
    );
    assert_eq!(json_of(&proxy.command(&["tx", "list", "--json"])), json!({"items": [], "next_cursor": null}));
    for command in [
        &["tx", "show", ID][..],
        &["tx", "check", ID],
        &["tx", "commit", ID, "--reason", "r"],
        &["tx", "rollback", "--user", "u", "--name", "n", "--vhost", "v", "--reason", "r"],
        &["tx", "show", "--user", "u", "--name", "n"],
    ] {
        let unknown = proxy.command(command);
        assert_eq!(unknown.status.code(), Some(1), "{command:?}");
        let said = text(&unknown.stderr);
        assert!(said.contains("there is no such transaction, or not any more"), "{command:?}: {said}");
    }
    let refused = proxy.command(&["tx", "list", "--token-file", &wrong]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("valid token") && !text(&refused.stderr).contains("guessed"));
    // The configuration's token stays with the configuration's proxy.
    assert!(text(&proxy.command(&["tx", "list", "--url", &url]).stderr).contains("valid token"));
    assert_eq!(proxy.command(&["tx", "list", "--url", &url, "--token-file", &alice]).status.code(), Some(0));
    assert_eq!(halfway(&["tx", "list", "--url", &url], &[("HALFWAY_TOKEN", "secret")]).status.code(), Some(0));
    assert_eq!(halfway(&["tx", "list", "--url", &url], &[("HALFWAY_TOKEN", "guessed")]).status.code(), Some(1));
    // SIGHUP reads the file again.
    let with = |token: &str| halfway(&["tx", "list", "--url", &url], &[("HALFWAY_TOKEN", token)]).status.code();
    std::fs::write(&alice, "changed\n").expect("written");
    assert_eq!((with("secret"), with("changed")), (Some(0), Some(1)));
    proxy.signal(Signal::HUP);
    wait_until(deadline(Duration::from_secs(10)), "the new token to be in force", || with("changed") == Some(0));
    assert_eq!(with("secret"), Some(1));
    assert_eq!(halfway(&["tx", "list", "--url", "nowhere"], &[]).status.code(), Some(2));
    assert_eq!(halfway(&["tx", "commit", ID], &[]).status.code(), Some(2), "a reason is needed");
    assert!(!proxy.log().contains("secret\n"), "{}", proxy.log());
}

#[test]
fn config_check_looks_into_the_files_that_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let missing = |name: &str| folder.path().join(name).display().to_string();
    let proxy = Proxy::prepare(
        broker().port,
        &[
            ("listen.tls_address", "'127.0.0.1:1'"),
            ("listen.tls.certificate", &format!("'{}'", missing("certificate"))),
            ("listen.tls.key", &format!("'{}'", missing("key"))),
            ("upstream.urls", "['amqps://127.0.0.1:1']"),
            ("upstream.tls.ca", &format!("'{}'", missing("ca"))),
            ("admin.tokens", &format!("[{{ token_file = '{}', role = 'viewer' }}]", missing("token"))),
        ],
    );
    let checked = proxy.command(&["config", "check"]);
    assert_eq!(checked.status.code(), Some(1));
    let said = text(&checked.stderr);
    for (key, file) in [("listen.tls.certificate", "certificate"), ("upstream.tls.ca", "ca"), ("admin.tokens", "token")]
    {
        assert!(said.contains(&format!("`{key}`: cannot read {}", missing(file))), "{said}");
    }
    let json = json_of(&proxy.command(&["config", "check", "--json"]));
    assert_eq!((&json["valid"], json["problems"].as_array().map(Vec::len)), (&json!(false), Some(3)));
    std::fs::write(missing("token"), "two words").expect("written");
    let said = text(&proxy.command(&["config", "check"]).stderr);
    assert!(said.contains("`admin.tokens`") && !said.contains("two words"), "{said}");
}

/// What a terminal may obey, or show in another order.
fn is_harmless(text: &str) -> bool {
    !text.chars().any(|c| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c))
}

#[test]
fn every_command_tells_programs_json_and_nobody_a_terminals_escape() {
    const NAME: &str = "order \u{1b}[2J\u{202e}17";
    let mut proxy = Proxy::prepare(broker().port, &[]);
    let id = park(&proxy, NAME);
    proxy.resume();
    let named = ["--user", "alice", "--name", NAME];
    let why = ["--reason", "a \u{1b}]0;title\u{7} of\u{202e} mine"];
    let copy = proxy.folder().join("copy.db").display().to_string();
    // What a command needs, and whether it succeeds.
    let commands: [(&[&str], bool); 18] = [
        (&["config", "check"], true),
        (&["config", "show"], true),
        (&["tx", "list"], true),
        (&["tx", "show", &id], true),
        (&[&["tx", "show"], &named[..]].concat(), true),
        (&["tx", "check", &id], false),
        (&[&["tx", "rollback"], &named[..], &why].concat(), true),
        (&[&["tx", "rollback", &id], &why[..]].concat(), true),
        (&[&["tx", "commit", &id], &why[..]].concat(), false),
        (&["tx", "show", &id], true),
        (&["dead", "list"], true),
        (&["dead", "show", "7"], false),
        (&[&["dead", "retry", "7"], &why[..]].concat(), false),
        (&[&["dead", "retry", "--all"], &why[..]].concat(), true),
        (&[&["dead", "discard", "7"], &why[..]].concat(), false),
        (&["store", "check"], true),
        (&["store", "stats"], true),
        (&["store", "backup", &copy], true),
    ];
    for (command, succeeds) in commands {
        let people = proxy.command(command);
        if command[1] == "backup" {
            std::fs::remove_file(&copy).expect("it was made");
        }
        let program = proxy.command(&[command, &["--json"]].concat());
        for (output, is_json) in [(people, false), (program, true)] {
            assert_eq!(output.status.success(), succeeds, "{command:?}: {}", text(&output.stderr));
            let (said, failed) = (text(&output.stdout), text(&output.stderr));
            assert!(is_harmless(&said) && is_harmless(&failed), "{command:?}: {said}{failed}");
            assert_eq!(succeeds, !said.is_empty(), "{command:?}");
            assert_eq!(succeeds, failed.is_empty(), "{command:?}: {failed}");
            if is_json {
                let told = if succeeds { &said } else { &failed };
                let told: Value =
                    serde_json::from_str(told).unwrap_or_else(|error| panic!("{command:?}: {error}: {told}"));
                assert!(succeeds || told["detail"].is_string(), "{command:?}: {told}");
            }
        }
    }
}

#[test]
fn long_work_shows_on_a_terminal_how_far_it_is_and_nowhere_else() {
    let proxy = Proxy::prepare(broker().port, &[]);
    park(&proxy, "order-1");
    let backup = ["store", "backup", &proxy.folder().join("copy.db").display().to_string()].join(" ");
    for (command, doing) in [("store check", "checking transactions"), (&backup, "copying bytes [")] {
        let arguments: Vec<_> = command.split(' ').collect();
        if command == "store check" {
            assert!(proxy.command(&arguments).stderr.is_empty());
        }
        // `script` is a terminal for what it runs.
        let line = format!("{} {command} --config {}", env!("CARGO_BIN_EXE_halfway"), proxy.configuration().display());
        let terminal = Command::new("script").args(["-qec", &line, "/dev/null"]).output().expect("script is there");
        assert_eq!(terminal.status.code(), Some(0), "{}", text(&terminal.stdout));
        let shown = text(&terminal.stdout);
        assert!(shown.contains(&format!("\r{doing}")), "{shown:?}");
        assert!(
            shown.rfind("\r\u{1b}[K").is_some_and(|at| !shown[at..].contains(doing)),
            "the line is gone: {shown:?}"
        );
    }
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let made = halfway(&["man", &folder.path().join("man1").display().to_string()], &[]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    let page = std::fs::read_to_string(folder.path().join("man1/halfway-tx-commit.1")).expect("a page");
    assert!(page.contains("Why, for its history"), "{page}");
    assert!(!text(&halfway(&["--help"], &[]).stdout).contains("  man "), "it is for packages");
}

#[test]
fn a_token_file_that_is_not_there_keeps_the_proxy_from_starting() {
    let token = "[{ token_file = '/nowhere/token', role = 'viewer' }]";
    let mut proxy = Proxy::prepare(broker().port, &[("admin.tokens", token)]);
    proxy.spawn(&[]);
    assert_eq!(proxy.wait_for_end().code(), Some(1));
    assert!(proxy.log().contains("cannot read /nowhere/token (named by `admin.tokens`)"), "{}", proxy.log());
}

/// For a store that is only looked at.
struct Nowhere;

impl Outlet for Nowhere {
    fn committed(&self, _: Vec<Committed>) {}
}
