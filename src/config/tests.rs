use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use super::{load::load_from, *};

mod reference;

fn load_text(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("halfway.toml");
    fs::write(&path, text).expect("the file is written");
    load_from(Some(&path), variables.iter().map(|(name, value)| (name.into(), value.into())))
}

fn problems(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    match load_text(text, variables) {
        Err(ConfigError::Problems(problems)) => problems.iter().map(|p| format!("{}: {}", p.key, p.text)).collect(),
        other => panic!("expected problems, got {other:?}"),
    }
}

fn origin(loaded: &Loaded, key: &str) -> Origin {
    loaded.entries().into_iter().find(|entry| entry.key == key).expect("a known key").origin
}

#[test]
fn an_empty_file_means_the_defaults() {
    assert_eq!(load_text("", &[]).expect("valid").config, Config::default());
    assert_eq!(load_from(None, []).expect("valid").config, Config::default());
}

#[test]
fn a_named_file_must_exist() {
    let missing = PathBuf::from("/nowhere/halfway.toml");
    let error = load(Some(&missing)).expect_err("there is no such file").to_string();
    assert!(error.contains("/nowhere/halfway.toml"), "{error}");
}

#[test]
fn the_variable_wins_over_the_file_and_each_value_knows_its_origin() {
    let loaded = load_text(
        "[listen]\naddress = '0.0.0.0:1'\nmax_connections = 7\n[relay.retry]\nmax = '1m'",
        &[("HALFWAY_LISTEN__ADDRESS", "[::1]:2"), ("HALFWAY_RELAY__LANES", "3"), ("HOME", "/root")],
    )
    .expect("valid");
    assert_eq!(loaded.config.listen.address, ["[::1]:2".parse().expect("an address")]);
    assert_eq!(loaded.config.listen.max_connections, 7);
    assert_eq!(loaded.config.relay.lanes, 3);
    assert_eq!(loaded.config.relay.retry, Retry { initial: Duration::from_millis(100), max: Duration::from_secs(60) });
    assert_eq!(origin(&loaded, "listen.address"), Origin::Variable("HALFWAY_LISTEN__ADDRESS".into()));
    assert!(matches!(origin(&loaded, "relay.retry.max"), Origin::File(_)));
    assert_eq!(origin(&loaded, "relay.retry.initial"), Origin::Default);
}

#[test]
fn an_address_may_be_a_list_of_them() {
    let both = ["127.0.0.1:2", "[::1]:2"].map(|text| text.parse().expect("an address"));
    let in_file = load_text("listen.address = ['127.0.0.1:2', '[::1]:2']\nadmin.address = ''", &[]).expect("valid");
    assert_eq!(in_file.config.listen.address, both);
    assert_eq!(in_file.config.admin.address, []);
    let entry = in_file.entries().into_iter().find(|entry| entry.key == "listen.address").expect("a key");
    assert_eq!(entry.value, serde_json::json!(["127.0.0.1:2", "[::1]:2"]));
    for text in ["127.0.0.1:2, [::1]:2", "[\"127.0.0.1:2\", '[::1]:2']"] {
        let variable = [("HALFWAY_LISTEN__ADDRESS", text)];
        assert_eq!(load_text("", &variable).expect("valid").config.listen.address, both, "{text}");
    }
    let one = load_text("", &[("HALFWAY_LISTEN__ADDRESS", "[::1]:2")]).expect("valid");
    assert_eq!(one.config.listen.address, both[1..]);
}

#[test]
fn a_secret_of_digits_stays_a_string_and_is_never_shown() {
    let loaded = load_text("", &[("HALFWAY_RELAY__PASSWORD", "01234"), ("HALFWAY_RELAY__USERNAME", "true")]);
    let loaded = loaded.expect("valid");
    assert_eq!(loaded.config.relay.password.expose(), "01234");
    assert_eq!(loaded.config.relay.username, "true");
    assert!(!format!("{loaded:?} {:?}", loaded.entries()).contains("01234"));
    assert_eq!(problems("[relay]\npassword = 98765", &[]), ["relay.password: expected a string in quotes"]);
    let syntax = load_text("[relay]\npassword = hunter2", &[]).expect_err("quotes are missing").to_string();
    assert!(syntax.contains("line 2") && !syntax.contains("hunter2"), "{syntax}");
}

#[test]
fn a_secret_comes_from_its_file_without_the_newline() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("password");
    fs::write(&path, "s3cret \n").expect("the file is written");
    let variables = [("HALFWAY_RELAY__PASSWORD_FILE", path.to_str().expect("UTF-8"))];
    let loaded = load_text("[relay]\npassword = 'other'", &variables).expect("valid");
    assert_eq!(loaded.config.relay.password.expose(), "s3cret ");
    assert_eq!(origin(&loaded, "relay.password"), Origin::SecretFile(path));

    let error = load_text("[relay]\npassword_file = '/nowhere/password'", &[]).expect_err("no such file").to_string();
    assert!(error.contains("/nowhere/password") && error.contains("relay.password_file"), "{error}");
}

#[test]
fn unknown_keys_name_the_place_and_the_nearest_valid_key() {
    let text = "[stor]\nurl = 'x'\n[relay.retry]\ninitail = '1s'\n[[chekcer]]\nname = 'a'";
    let variables = [("HALFWAY_STORE_URL", "x"), ("HALFWAY_LISTEN__TLS", "x")];
    let Err(ConfigError::Problems(found)) = load_text(text, &variables) else { panic!("unknown keys are errors") };
    let shown: Vec<_> = found.iter().map(Problem::to_string).collect();
    assert_eq!(shown.len(), 5, "{shown:#?}");
    assert!(
        shown[0].contains("halfway.toml: `chekcer`: unknown key, the nearest valid one is `checker`"),
        "{shown:#?}"
    );
    assert!(shown[1].ends_with("`relay.retry.initail`: unknown key, the nearest valid one is `relay.retry.initial`"));
    assert!(shown[2].ends_with("`stor.url`: unknown key, the nearest valid one is `store.url`"));
    assert_eq!(shown[3], "HALFWAY_STORE_URL: unknown variable, the nearest valid one is HALFWAY_STORE__URL");
    assert!(shown[4].starts_with("HALFWAY_LISTEN__TLS: unknown variable"));
}

#[test]
fn tokens_are_tables_in_a_list_and_their_keys_are_checked_like_all_others() {
    let text = "[admin]\naddress = '0.0.0.0:1'\n[[admin.tokens]]\ntoken_file = 'a/alice.txt'\nrole = 'operator'";
    let admin = load_text(text, &[]).expect("valid").config.admin;
    assert_eq!(admin.tokens, [AdminToken { token_file: "a/alice.txt".into(), role: Role::Operator }]);
    let item = serde_json::to_value(&admin.tokens[0]).expect("JSON");
    assert_eq!(item.as_object().expect("a table").len(), 2, "the list of valid keys has to follow");

    let variable = [("HALFWAY_ADMIN__TOKENS", "[{ token_file = 'b', role = 'viewer' }]"), ("HALFWAY_TOKEN", "x")];
    let loaded = load_text(text, &variable).expect("valid");
    assert_eq!(loaded.config.admin.tokens[0].role, Role::Viewer);
    assert_eq!(origin(&loaded, "admin.tokens.0.role"), Origin::Variable("HALFWAY_ADMIN__TOKENS".into()));
    assert!(matches!(origin(&load_text(text, &[]).expect("valid"), "admin.tokens.0.token_file"), Origin::File(_)));
    let closed = load_text("", &[("HALFWAY_ADMIN__OPEN_ON_LOOPBACK", "false")]).expect("valid");
    assert!(!closed.config.admin.is_open());

    let wrong =
        "[admin]\ntokens = [{ token_file = 'a', role = 'viewer' }, { token_file = 'b', role = 'viewer', rol = 1 }]";
    let found = "admin.tokens.1.rol: unknown key, the nearest valid one is `role`";
    assert_eq!(problems(wrong, &[]), [found]);
    let wrong = [("HALFWAY_ADMIN__TOKENS", "[{ token_fil = 'a', role = 'viewer', token_file = 'a' }]")];
    let found = "admin.tokens.0.token_fil: unknown key, the nearest valid one is `token_file`";
    assert_eq!(problems("", &wrong), [found]);
    for (text, expected) in [
        ("[admin]\ntokens = [{ token_file = 'a', role = 'admin' }]", "admin.tokens.0.role: unknown variant"),
        ("[admin]\ntokens = [{ token_file = 'a' }]", "admin.tokens.0: missing field `role`"),
        ("[admin]\ntokens = [{ token_file = '', role = 'viewer' }]", "admin.tokens: a token_file is empty"),
        ("[admin]\nopen_on_loopback = 'yes'", "admin.open_on_loopback: invalid type"),
    ] {
        let found = problems(text, &[]);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{text}: {found:?}");
    }
    let variable = [("HALFWAY_ADMIN__OPEN_ON_LOOPBACK", "yes")];
    assert_eq!(problems("", &variable), ["admin.open_on_loopback: expected true or false, found \"yes\""]);
}

#[test]
fn only_a_loopback_port_without_tokens_is_open() {
    let mut admin = Admin::default();
    assert!(admin.is_open());
    admin.address = vec!["[::1]:1".parse().expect("an address")];
    assert!(admin.is_open());
    for closed in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
        admin.address = vec!["[::1]:1".parse().expect("an address"), closed.parse().expect("an address")];
        assert!(!admin.is_open(), "{closed}");
    }
    admin = Admin { open_on_loopback: false, ..Admin::default() };
    assert!(!admin.is_open());
    admin = Admin { tokens: vec![AdminToken { token_file: "a".into(), role: Role::Viewer }], ..Admin::default() };
    assert!(!admin.is_open());
}

#[test]
fn the_variables_of_a_kubernetes_service_are_not_ours() {
    for service in ["HALFWAY", "HALFWAY_ADMIN", "HALFWAY_AMQP", "HALFWAY_HEADLESS", "HALFWAY_PORT_2"] {
        let variables = [
            ("SERVICE_HOST", "10.0.0.1"),
            ("SERVICE_PORT", "5673"),
            ("SERVICE_PORT_AMQP_TLS", "5671"),
            ("PORT", "tcp://10.0.0.1:5673"),
            ("PORT_5673_TCP", "tcp://[fd00::1]:5673"),
            ("PORT_5673_TCP_PROTO", "tcp"),
            ("PORT_5673_TCP_PORT", "5673"),
            ("PORT_5673_TCP_ADDR", "fd00::1"),
        ]
        .map(|(name, value)| (format!("{service}_{name}"), value));
        let given: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let loaded = load_text("", &given).expect("valid");
        assert_eq!(loaded.config, Config::default());
        assert_eq!(loaded.service_links, variables.map(|(name, _)| name));
    }
    for misspelt in [
        ("HALFWAY_LISTEN_PORT", "5673"),
        ("HALFWAY_PORT_5673", "tcp://10.0.0.1:5673"),
        ("HALFWAY_PORT_5673_TCP_HOST", "10.0.0.1"),
        ("HALFWAY_SERVICE_HOST", "rabbit"),
        ("HALFWAY_LISTEN_ADDRESS", "127.0.0.1:5673"),
    ] {
        let found = problems("", &[misspelt]);
        assert!(found.len() == 1 && found[0].contains("unknown variable"), "{misspelt:?}: {found:?}");
    }
}

#[test]
fn a_secret_or_a_store_that_everybody_can_read_is_worth_a_warning() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("password");
    fs::write(&path, "hare\n").expect("written");
    let warnings = |mode| {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("changed");
        let text = format!(
            "relay.password_file = {path:?}\nstore.url = 'sqlite:{store}'\nadmin.tokens = [{{ token_file = {path:?}, role = 'viewer' }}]\n\
             [[checker]]\nname = 'a'\nurl = 'http://a'\nsecret_file = {path:?}",
            store = path.display(),
        );
        load_text(&text, &[]).expect("valid").warnings.iter().map(|found| found.key.clone()).collect::<Vec<_>>()
    };
    assert!(warnings(0o600).is_empty());
    assert!(warnings(0o640).is_empty(), "a group was chosen on purpose");
    let keys = ["relay.password_file", "store.url", "checker.0.secret_file", "admin.tokens.0.token_file"];
    assert_eq!(warnings(0o644), keys);
}

#[test]
fn lists_come_by_variable_in_both_forms() {
    for text in ["amqp://a,amqps://b:1", " amqp://a:5672 , amqps://b:1/,", "[\"amqp://a\", 'amqps://b:1']"] {
        let loaded = load_text("", &[("HALFWAY_UPSTREAM__URLS", text)]).expect("valid");
        let urls: Vec<_> = loaded.config.upstream.urls.iter().map(UpstreamUrl::to_string).collect();
        assert_eq!(urls, ["amqp://a:5672", "amqps://b:1"]);
    }
    assert!(
        load_text("", &[("HALFWAY_LISTEN__LOOPBACK_USERS", "")])
            .expect("valid")
            .config
            .listen
            .loopback_users
            .is_empty()
    );
    assert_eq!(problems("", &[("HALFWAY_UPSTREAM__URLS", "")]), ["upstream.urls: needs at least one URL"]);
}

#[test]
fn values_that_do_not_parse_name_their_key_and_show_what_is_expected() {
    for (text, expected) in [
        ("[listen]\nhandshake_timeout = '10'", "listen.handshake_timeout: expected a duration such as \"30s\""),
        ("[store]\nmax_size = 'big'", "store.max_size: expected a size such as \"10MiB\""),
        ("[store]\nurl = 'postgres://u:p@/d'", "store.url: has no host"),
        ("[transaction]\nmax_message_size = 'x'", "transaction.max_message_size: expected \"auto\" or a size"),
        ("[transaction]\nunroutable = 'keep'", "transaction.unroutable: unknown variant"),
        ("[listen]\naddress = 'localhost:1'", "listen.address: expected an IP address and a port"),
        (
            "[listen]\naddress = ['127.0.0.1:1', '::1:2']",
            "listen.address: expected an IP address and a port such as \"127.0.0.1:5673\", found \"::1:2\"",
        ),
        ("[admin]\naddress = 3", "admin.address: expected an IP address and a port, or a list of such"),
        ("[relay]\nlanes = '8'", "relay.lanes: invalid type"),
        ("[upstream]\nurls = ['http://h']", "upstream.urls.0: `http://h` does not begin with amqp://"),
        ("[upstream]\nurls = ['amqp://u:p@h']", "upstream.urls.0: an upstream URL carries no user"),
        ("[upstream]\nurls = ['amqp://h/vhost']", "upstream.urls.0: `amqp://h/vhost` has more than a host"),
        ("[upstream]\nurls = ['amqp://::1']", "upstream.urls.0: `amqp://::1`: an IPv6 address stands in brackets"),
        ("[upstream]\nurls = ['amqp://h:0']", "upstream.urls.0: `0` in `amqp://h:0` is not a port"),
        ("listen = 3", "listen: invalid type"),
    ] {
        let found = problems(text, &[]);
        assert!(found[0].starts_with(expected), "{text}: {found:?}");
    }
    assert_eq!(
        problems("", &[("HALFWAY_RELAY__LANES", "many")]),
        ["relay.lanes: expected a whole number, found \"many\""]
    );
}

#[test]
fn keys_that_need_one_another_are_checked_together() {
    for (text, key) in [
        ("[listen]\ntls_address = '0.0.0.0:5671'\ntls.key = 'k'", "listen.tls.certificate"),
        ("[listen]\ntls_address = '0.0.0.0:5671'\ntls.certificate = 'c'", "listen.tls.key"),
        ("[listen.tls]\nclient_ca = 'c'", "listen.tls.client_ca"),
        ("[admin]\naddress = '127.0.0.1:5673'", "admin.address"),
        ("[admin]\naddress = ['[::1]:1', '[::1]:1']", "admin.address"),
        ("[listen]\naddress = ''", "listen.address"),
        ("[relay.retry]\ninitial = '1m'", "relay.retry.max"),
        ("[relay]\nlanes = 0", "relay.lanes"),
        ("[store]\nmax_size = '100MiB'", "transaction.max_size"),
        ("[transaction]\nmax_message_size = '2GiB'", "transaction.max_message_size"),
        ("[log]\nlevel = 'info,halfway=loud'", "log.level"),
        ("[log]\nlevel = 'nonsense='", "log.level"),
        ("[log]\nlevel = 'wran'", "log.level"),
        ("[log]\nlevel = 'info,'", "log.level"),
        ("[log]\nlevel = 'info,[connection{id=7}]'", "log.level"),
    ] {
        let found = problems(text, &[]);
        assert!(found.len() == 1 && found[0].starts_with(&format!("{key}: ")), "{text}: {found:?}");
    }
    for level in ["off", "WARN", "info,halfway::relay=debug,halfway::audit=info", "warn,[connection{id}]=trace"] {
        assert!(load_text(&format!("[log]\nlevel = '{level}'"), &[]).is_ok(), "{level}");
    }
    let both = "[listen]\ntls_address = '0.0.0.0:5671'\ntls = { certificate = 'c', key = 'k' }";
    let tls = load_text(both, &[]).expect("valid").config.listen.tls().expect("a TLS port");
    assert_eq!((tls.certificate, tls.key, tls.client_ca), ("c".into(), "k".into(), None));
}

#[test]
fn sizes_are_shown_as_they_are_written() {
    for text in ["10GiB", "1536KiB", "1000B", "0B"] {
        let bytes = text.parse::<bytesize::ByteSize>().expect("a size").as_u64();
        assert_eq!(format_size(bytes), text);
    }
}

const ORDERS: &str = "[[checker]]\nname = 'orders'\nurl = 'http://orders:8080/half/check'\n";

#[test]
fn a_checker_has_defaults_and_knows_how_it_is_asked() {
    let text = format!(
        "{ORDERS}secret = 'key'\nmatch = {{ vhost = '/', transaction = 'order-*', exchange = 'orders' }}\n\
         first_after = '1s'\n[[checker]]\nname = 'refunds'\nqueue = 'refunds.check'\nwhen_exhausted = 'rollback'"
    );
    let loaded = load_text(&text, &[]).expect("valid");
    let [orders, refunds] = &loaded.config.checker[..] else { panic!("two checkers") };
    assert_eq!((orders.first_after, orders.interval), (Duration::from_secs(1), Duration::from_secs(30)));
    assert_eq!((orders.max_checks, orders.when_exhausted), (15, WhenExhausted::Hold));
    assert_eq!(orders.matches.transaction.as_deref(), Some("order-*"));
    let Some(Asked::Http { url, secret: Some(secret) }) = orders.asked() else { panic!("by HTTP") };
    assert_eq!((url.host.as_str(), url.port, url.path.as_str()), ("orders", 8080, "/half/check"));
    assert_eq!(secret.expose(), "key");
    assert_eq!(refunds.asked(), Some(Asked::Amqp { vhost: "/", queue: "refunds.check" }));
    assert_eq!(refunds.when_exhausted, WhenExhausted::RollBack);
    let entries = loaded.entries();
    let shown = |key: &str| entries.iter().find(|entry| entry.key == key).map(|entry| entry.value.to_string());
    assert_eq!(shown("checker.0.secret").as_deref(), Some("\"<redacted>\""));
    assert_eq!(shown("checker.0.match.exchange").as_deref(), Some("\"orders\""));
    assert_eq!(shown("checker.1.interval").as_deref(), Some("\"30s\""));
    assert!(matches!(origin(&loaded, "checker.0.url"), Origin::File(_)));
}

#[test]
fn unknown_keys_of_a_checker_name_the_nearest_one() {
    let text = format!("{ORDERS}intervall = '1s'\nmatch = {{ exchnge = 'x' }}");
    assert_eq!(
        problems(&text, &[]),
        [
            "checker.0.intervall: unknown key, the nearest valid one is `interval`",
            "checker.0.match.exchnge: unknown key, the nearest valid one is `match.exchange`",
        ]
    );
    let list = "[{ name = 'a', urll = 'http://a' }]";
    let found = problems("", &[("HALFWAY_CHECKER", list)]);
    assert_eq!(found[0], "checker.0.urll: unknown key, the nearest valid one is `url`");
    assert!(problems("[checker]\nname = 'a'", &[])[0].starts_with("checker: "));
}

#[test]
fn checkers_that_cannot_work_are_refused() {
    for (lines, expected) in [
        ("url = 'http://a'", "checker.0.name: must have 1 to 255 bytes"),
        ("name = 'a'", "checker.0.url: needs either `url`, `queue` or `postgres`"),
        ("name = 'a'\nurl = 'http://a'\nqueue = 'q'", "checker.0.queue: stands beside `url`"),
        ("name = 'a'\nurl = 'http://a'\nvhost = 'v'", "checker.0.vhost: belongs to `queue`"),
        ("name = 'a'\nqueue = 'q'\nsecret = 's'", "checker.0.secret: does nothing without a `url`"),
        ("name = 'a'\nurl = 'http://a'\nbarrier = 'b'", "checker.0.barrier: belongs to `postgres`"),
        ("name = 'a'\nqueue = 'q'\npassword_file = 'p'", "checker.0.password_file: belongs to `postgres`"),
        ("name = 'a'\npostgres = 'postgres://u:p4ss@/a'", "checker.0.postgres: has no host"),
        ("name = 'a'\npostgres = 'postgres://u@h/a'", "checker.0.barrier: needs either `barrier` or `query`"),
        (
            "name = 'a'\npostgres = 'postgres://u@h/a'\nurl = 'http://a'\nbarrier = 'b'",
            "checker.0.postgres: stands beside",
        ),
        ("name = 'a'\npostgres = 'postgres://u@h/a'\nquery = '$1'\nbarrier = 'b'", "checker.0.query: stands beside"),
        ("name = 'a'\npostgres = 'postgres://u@h/a'\nbarrier = 'b; c'", "checker.0.barrier: must be a table's name"),
        ("name = 'a'\npostgres = 'postgres://u@h/a'\nbarrier = 'a.b.c'", "checker.0.barrier: must be a table's name"),
        (
            "name = 'a'\npostgres = 'postgres://u@h/a'\nbarrier = 'b'\nabsent = 'unknown'",
            "checker.0.absent: does nothing",
        ),
        ("name = 'a'\npostgres = 'postgres://u@h/a'\nbarrier = 'b'\nsecret = 's'", "checker.0.secret: does nothing"),
        (
            "name = 'a'\npostgres = 'postgres://u:p4ss@h/a'\nbarrier = 'b'\npassword_file = 'f'",
            "checker.0.password_file: stands beside",
        ),
        ("name = 'a'\npostgres = 'postgres://u@h/a'\nquery = 'SELECT 1'", "checker.0.query: does not look at"),
        (
            "name = 'a'\npostgres = 'postgres://u@h/a'\nquery = '$1'\nabsent = 'rollback'",
            "checker.0.absent: unknown variant",
        ),
        (
            "name = 'a'\npostgres = 'postgres://u@h/a'\nquery = '$1'\nabsent = 'ongoing'\nabsent_is_rollback_after = '1h'",
            "checker.0.absent: does nothing beside",
        ),
        (
            "name = 'a'\npostgres = 'postgres://u@h/a'\nquery = '$1'\nabsent_is_rollback_after = '0s'",
            "checker.0.absent_is_rollback_after: must be longer than zero",
        ),
        ("name = 'a'\nurl = 'ftp://a'", "checker.0.url: does not begin with http:// or https://"),
        ("name = 'a'\nurl = 'http://u:p4ss@a/'", "checker.0.url: a checker's URL carries no user"),
        ("name = 'a'\nurl = 'http://a/#x'", "checker.0.url: `http://a/#x` has a fragment"),
        ("name = 'a'\nurl = 'http://a b'", "checker.0.url: `http://a b` is not a URL"),
        ("name = 'a'\nurl = 'http://a:0/'", "checker.0.url: `http://a:0/` has no port"),
        ("name = 'a'\nurl = 'http://a'\nsecret = ''", "checker.0.secret: is empty"),
        ("name = 'a'\nurl = 'http://a'\nsecret = 7", "checker.0.secret: expected a string in quotes"),
        ("name = 'a'\nurl = 'http://a'\ninterval = '1h'", "checker.0.max_interval: is shorter"),
        ("name = 'a'\nurl = 'http://a'\nmax_checks = 0", "checker.0.max_checks: must be at least 1"),
        ("name = 'a'\nurl = 'http://a'\nrate = 0", "checker.0.rate: must be 1 to 10000"),
        ("name = 'a'\nurl = 'http://a'\nconcurrency = 0", "checker.0.concurrency: must be 1 to 1024"),
        ("name = 'a'\nurl = 'http://a'\ntimeout = '0s'", "checker.0.timeout: must be longer than zero"),
        ("name = 'a'\nurl = 'http://a'\nfirst_after = 'x'", "checker.0.first_after: expected a duration"),
        ("name = 'a'\nurl = 'http://a'\nwhen_exhausted = 'x'", "checker.0.when_exhausted: unknown variant"),
    ] {
        let found = problems(&format!("[[checker]]\n{lines}"), &[]);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{lines}: {found:?}");
        assert!(!found[0].contains("p4ss"), "{found:?}");
    }
    let twins = problems(&format!("{ORDERS}{ORDERS}"), &[]);
    assert_eq!(twins, ["checker.1.name: `orders` is the name of checker.0 too"]);
}

#[test]
fn a_database_says_how_it_is_asked_and_its_password_is_never_shown() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("password");
    fs::write(&path, "s3cret\n").expect("the file is written");
    let text = |more: &str| format!("[[checker]]\nname = 'a'\npostgres = 'postgres://u@h/a'\n{more}");
    let barrier = text(&format!("barrier = 'shop.half_barrier'\npassword_file = '{}'", path.display()));
    let loaded = load_text(&barrier, &[]).expect("valid");
    let Some(Asked::Postgres { url, look }) = loaded.config.checker[0].asked() else { panic!("a database") };
    assert_eq!(look, Look::Barrier("shop.half_barrier"));
    assert_eq!(url.place.password.as_ref().map(Secret::expose), Some("s3cret"));
    assert!(!format!("{loaded:?} {:?}", loaded.entries()).contains("s3cret"));
    let absent = |more: &str| {
        let loaded = load_text(&text(&format!("query = 'SELECT $1'\n{more}")), &[]).expect("valid");
        let Some(Asked::Postgres { look: Look::Query { absent, .. }, .. }) = loaded.config.checker[0].asked() else {
            panic!("a query")
        };
        absent
    };
    assert_eq!(absent(""), Absent::Unknown);
    assert_eq!(absent("absent = 'ongoing'"), Absent::Ongoing);
    assert_eq!(absent("absent_is_rollback_after = '1h'"), Absent::RollbackAfter(Duration::from_secs(3600)));

    let before = load_text(&barrier, &[]).expect("valid").config;
    fs::write(&path, "another\n").expect("the file is written");
    let after = load_text(&barrier, &[]).expect("valid").config;
    let changes = before.changes(&after);
    assert_eq!(changes.iter().map(|change| change.key.as_str()).collect::<Vec<_>>(), ["checker.a.postgres"]);
    assert!(!format!("{changes:?}").contains("another"));
    fs::remove_file(&path).expect("removed");
    let error = load_text(&barrier, &[]).expect_err("no such file").to_string();
    assert!(error.contains("checker.0.password_file"), "{error}");
}

#[test]
fn a_checker_behind_one_that_fits_everything_is_worth_a_warning() {
    let with = |first: &str, second: &str| {
        let text =
            format!("{ORDERS}match = {{ {first} }}\n{}match = {{ {second} }}", ORDERS.replace("'orders'", "'b'"));
        load_text(&text, &[]).expect("valid").warnings.iter().map(|found| found.key.clone()).collect::<Vec<_>>()
    };
    assert_eq!(with("", "exchange = 'x'"), ["checker.1.match"]);
    assert_eq!(with("transaction = '*', exchange = 'x'", "transaction = 'a-*', exchange = 'x'"), ["checker.1.match"]);
    assert!(with("vhost = 'a'", "vhost = 'b'").is_empty());
    assert!(with("exchange = 'x'", "").is_empty());
}

#[test]
fn a_checkers_secret_comes_from_a_variable_or_a_file_and_is_never_shown() {
    let text = ORDERS.replace("'orders'", "'my-orders'");
    let loaded = load_text(&text, &[("HALFWAY_CHECKER__MY_ORDERS__SECRET", "hunter2")]).expect("valid");
    assert_eq!(loaded.config.checker[0].secret.as_ref().map(Secret::expose), Some("hunter2"));
    assert_eq!(origin(&loaded, "checker.0.secret").to_string(), "HALFWAY_CHECKER__MY_ORDERS__SECRET");
    assert!(!format!("{loaded:?} {:?}", loaded.entries()).contains("hunter2"));
    let stray = problems(&text, &[("HALFWAY_CHECKER__OTHER__SECRET", "hunter2")]);
    assert_eq!(stray, ["checker: no checker has a name that is written OTHER in a variable"]);

    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("secret");
    fs::write(&path, "s3cret\n").expect("the file is written");
    let with_file = format!("{text}secret_file = '{}'", path.display());
    let loaded = load_text(&with_file, &[]).expect("valid");
    assert_eq!(loaded.config.checker[0].secret.as_ref().map(Secret::expose), Some("s3cret"));
    assert_eq!(origin(&loaded, "checker.0.secret"), Origin::SecretFile(path.clone()));
    fs::write(&path, "\n").expect("the file is written");
    assert_eq!(problems(&with_file, &[]), ["checker.0.secret_file: is empty"]);
    let error = load_text(&format!("{text}secret_file = '/nowhere/secret'"), &[]).expect_err("no such file");
    assert!(error.to_string().contains("checker.0.secret_file"), "{error}");
}
