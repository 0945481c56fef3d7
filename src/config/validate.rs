//! What a single value can't tell: ranges, and keys that need one another.

use std::{collections::BTreeMap, time::Duration};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::{AdminToken, Checker, Config, MessageSizeLimit, PartSize};

/// Everything that is wrong with `config`: the key to look at, and what is wrong with it.
pub(super) fn problems(config: &Config) -> Vec<(String, String)> {
    let Config { listen, upstream, relay, store, transaction, checker: checkers, admin, .. } = config;
    let mut found = Vec::new();
    let mut check = |holds: bool, key: &'static str, text: &str| {
        if !holds {
            found.push((key.to_owned(), text.to_owned()));
        }
    };

    let tls = &listen.tls;
    let has_tls = !listen.tls_address.is_empty();
    check(!has_tls || tls.certificate.is_some(), "listen.tls.certificate", "listen.tls_address needs a certificate");
    check(!has_tls || tls.key.is_some(), "listen.tls.key", "listen.tls_address needs the certificate's key");
    let without_port = "does nothing while listen.tls_address is not set";
    check(has_tls || tls.certificate.is_none(), "listen.tls.certificate", without_port);
    check(has_tls || tls.key.is_none(), "listen.tls.key", without_port);
    check(has_tls || tls.client_ca.is_none(), "listen.tls.client_ca", without_port);
    check(!listen.address.is_empty(), "listen.address", "needs at least one address");
    let mut taken = BTreeMap::new();
    let ports = [("listen.address", &listen.address), ("listen.tls_address", &listen.tls_address)];
    for (key, addresses) in ports.into_iter().chain([("admin.address", &admin.address)]) {
        // Port 0 asks the system for any free one.
        for address in addresses.iter().filter(|address| address.port() != 0) {
            if let Some(other) = taken.insert(address, key) {
                check(false, key, &format!("{address} stands in {other} too"));
            }
        }
    }
    let named = |token: &AdminToken| token.token_file.file_stem().is_some();
    check(admin.tokens.iter().all(named), "admin.tokens", "a token_file is empty, or names no file");
    check(listen.max_connections > 0, "listen.max_connections", AT_LEAST_ONE);
    check(listen.max_handshakes > 0, "listen.max_handshakes", AT_LEAST_ONE);
    check(listen.handshake_timeout > Duration::ZERO, "listen.handshake_timeout", LONGER_THAN_ZERO);

    check(!upstream.urls.is_empty(), "upstream.urls", "needs at least one URL");
    check(upstream.connect_timeout > Duration::ZERO, "upstream.connect_timeout", LONGER_THAN_ZERO);
    check(upstream.wait <= LONGEST_TIMEOUT, "upstream.wait", "must be at most 10m");

    check(!relay.username.is_empty(), "relay.username", "is empty");
    check((1..=MOST_LANES).contains(&relay.lanes), "relay.lanes", "must be 1 to 1024");
    check(relay.window > 0, "relay.window", AT_LEAST_ONE);
    check(relay.retry.initial > Duration::ZERO, "relay.retry.initial", LONGER_THAN_ZERO);
    check(relay.retry.initial <= relay.retry.max, "relay.retry.max", "is shorter than relay.retry.initial");
    check(relay.confirm_timeout > Duration::ZERO, "relay.confirm_timeout", LONGER_THAN_ZERO);

    check(store.max_size >= LEAST_STORE, "store.max_size", "must be at least 1MiB");
    if store.password_file.is_some() {
        let mut url = store.url.clone();
        let password = url.password();
        check(password.is_some(), "store.password_file", "belongs to a store.url that is a database");
        let two = "stands beside a password in store.url; there is one of them";
        check(password.is_none_or(|password| password.is_none()), "store.password_file", two);
    }

    let has_memory = !matches!(config.memory.max, PartSize::Bytes(bytes) if bytes < LEAST_MEMORY);
    check(has_memory, "memory.max", "must be at least 16MiB");
    let has_share = !matches!(config.store.max_size_per_user, PartSize::Bytes(bytes) if bytes < LEAST_STORE);
    check(has_share, "store.max_size_per_user", "must be at least 1MiB");

    check(transaction.max_messages > 0, "transaction.max_messages", AT_LEAST_ONE);
    check(transaction.max_size > 0, "transaction.max_size", AT_LEAST_ONE);
    check(transaction.max_size <= store.max_size, "transaction.max_size", "is larger than store.max_size");
    if let MessageSizeLimit::Bytes(bytes) = transaction.max_message_size {
        check(bytes > 0, "transaction.max_message_size", AT_LEAST_ONE);
        check(bytes <= transaction.max_size, "transaction.max_message_size", "is larger than transaction.max_size");
    }

    let telemetry = &config.telemetry;
    check((0.0..=1.0).contains(&telemetry.sample), "telemetry.sample", "must be 0.0 to 1.0");
    check(!telemetry.service_name.is_empty(), "telemetry.service_name", "is empty");

    let exchange = &transaction.control_exchange;
    check((1..=255).contains(&exchange.len()), "transaction.control_exchange", "must have 1 to 255 bytes");

    if let Err(text) = check_level(&config.log.level) {
        found.push(("log.level".to_owned(), text));
    }
    for (number, checker) in checkers.iter().enumerate() {
        let mut check = |holds: bool, key: &str, text: String| {
            if !holds {
                found.push((format!("checker.{number}.{key}"), text));
            }
        };
        check_alone(checker, &mut check);
        let twin = checkers[..number].iter().position(|other| other.name == checker.name);
        if let Some(twin) = twin.filter(|_| !checker.name.is_empty()) {
            check(false, "name", format!("`{}` is the name of checker.{twin} too", checker.name));
        }
    }
    found
}

/// What one checker must be like, whatever the others are.
fn check_alone(checker: &Checker, check: &mut impl FnMut(bool, &str, String)) {
    let Checker { name, url, queue, vhost, postgres, secret, secret_file, .. } = checker;
    check((1..=NAME_BYTES_MAX).contains(&name.len()), "name", "must have 1 to 255 bytes".into());
    check(!name.contains(char::is_control), "name", "must not contain control characters".into());
    let ways = [("url", url.is_some()), ("queue", queue.is_some()), ("postgres", postgres.is_some())];
    let mut given = ways.iter().filter(|(_, given)| *given).map(|(way, _)| *way);
    match (given.next(), given.next()) {
        (None, _) => check(false, "url", "needs either `url`, `queue` or `postgres`".into()),
        (Some(way), Some(other)) => check(false, other, format!("stands beside `{way}`; a checker has one of them")),
        (Some(_), None) => {}
    }
    if let Some(queue) = queue {
        check((1..=NAME_BYTES_MAX).contains(&queue.len()), "queue", "must have 1 to 255 bytes".into());
        check(vhost.as_deref() != Some(""), "vhost", "is empty".into());
    } else {
        check(vhost.is_none(), "vhost", "belongs to `queue`, and there is none".into());
    }
    if url.is_none() && (queue.is_some() || postgres.is_some()) {
        let unused = "does nothing without a `url`: only requests to one are signed";
        check(secret.is_none(), "secret", unused.into());
        check(secret_file.is_none(), "secret_file", unused.into());
    }
    check_database(checker, check);
    check(secret.as_ref().is_none_or(|secret| !secret.expose().is_empty()), "secret", "is empty".into());
    check(checker.interval > Duration::ZERO, "interval", LONGER_THAN_ZERO.into());
    check(checker.interval <= checker.max_interval, "max_interval", "is shorter than `interval`".into());
    check(checker.timeout > Duration::ZERO, "timeout", LONGER_THAN_ZERO.into());
    check(checker.timeout <= LONGEST_TIMEOUT, "timeout", "must be at most 10m".into());
    for (key, duration) in [("first_after", checker.first_after), ("max_interval", checker.max_interval)] {
        check(duration <= LONGEST_PAUSE, key, "must be at most 365 days".into());
    }
    check(checker.max_checks > 0, "max_checks", AT_LEAST_ONE.into());
    check((1..=MOST_CHECKS_AT_ONCE).contains(&checker.concurrency), "concurrency", "must be 1 to 1024".into());
    check((1..=HIGHEST_RATE).contains(&checker.rate), "rate", "must be 1 to 10000".into());
}

/// What a checker that is a database must be like, and any other must not have.
fn check_database(checker: &Checker, check: &mut impl FnMut(bool, &str, String)) {
    let Checker { postgres, password_file, barrier, query, absent, absent_is_rollback_after, .. } = checker;
    let Some(url) = postgres else {
        let unused = || "belongs to `postgres`, and there is none".to_owned();
        check(password_file.is_none(), "password_file", unused());
        check(barrier.is_none(), "barrier", unused());
        check(query.is_none(), "query", unused());
        check(absent.is_none(), "absent", unused());
        check(absent_is_rollback_after.is_none(), "absent_is_rollback_after", unused());
        return;
    };
    let two = "stands beside a password in the URL; there is one of them";
    check(password_file.is_none() || url.place.password.is_none(), "password_file", two.into());
    match (barrier, query) {
        (None, None) => check(false, "barrier", "needs either `barrier` or `query`".into()),
        (Some(_), Some(_)) => check(false, "query", "stands beside `barrier`; a database has one of them".into()),
        (Some(table), None) => {
            let text = "must be a table's name, or schema.table: letters, digits and _";
            check(is_table(table), "barrier", text.into());
        }
        (None, Some(statement)) => {
            check(statement.contains("$1"), "query", "does not look at the transaction's name, which is $1".into());
        }
    }
    let unused = "does nothing without `query`";
    check(absent.is_none() || query.is_some(), "absent", unused.into());
    check(absent_is_rollback_after.is_none() || query.is_some(), "absent_is_rollback_after", unused.into());
    let both = absent.is_some() && absent_is_rollback_after.is_some();
    check(!both, "absent", "does nothing beside `absent_is_rollback_after`: until then it is \"ongoing\"".into());
    if let Some(after) = absent_is_rollback_after {
        check(*after > Duration::ZERO, "absent_is_rollback_after", LONGER_THAN_ZERO.into());
        check(*after <= LONGEST_PAUSE, "absent_is_rollback_after", "must be at most 365 days".into());
    }
}

/// Whether this can stand in a statement as it is.
fn is_table(name: &str) -> bool {
    let is_word = |word: &str| {
        word.len() < 64
            && word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    name.split('.').count() <= 2 && name.split('.').all(is_word)
}

/// What works and is probably not meant: the key to look at, and why.
pub(super) fn warnings(config: &Config) -> Vec<(String, String)> {
    let shadow = |(number, checker): (usize, &Checker)| {
        let earlier = config.checker[..number].iter().position(|other| other.matches.covers(&checker.matches))?;
        let by = &config.checker[earlier].name;
        let text = format!(
            "checker `{by}` fits everything that this fits and stands before it: only x-half-checker can pick `{}`",
            checker.name
        );
        Some((format!("checker.{number}.match"), text))
    };
    config.checker.iter().enumerate().filter_map(shadow).collect()
}

/// What a list of directives has to be: [`EnvFilter`] would take a word that is no level, or a level left out, for all
/// levels of a module.
fn check_level(list: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("is neither a level nor a list of module=level: {what}"));
    if let Err(error) = EnvFilter::try_new(list) {
        return wrong(&error.to_string());
    }
    for directive in list.split(',') {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level);
        if level.is_empty() || level.parse::<LevelFilter>().is_err() {
            return wrong(&format!("\"{directive}\" has no level"));
        }
    }
    Ok(())
}

const AT_LEAST_ONE: &str = "must be at least 1";
const LONGER_THAN_ZERO: &str = "must be longer than zero";
const MOST_LANES: u16 = 1024;
const NAME_BYTES_MAX: usize = 255;
const MOST_CHECKS_AT_ONCE: u32 = 1024;
const HIGHEST_RATE: u32 = 10_000;
const LONGEST_TIMEOUT: Duration = Duration::from_secs(10 * 60);
const LONGEST_PAUSE: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const LEAST_STORE: u64 = 1024 * 1024;
const LEAST_MEMORY: u64 = 16 * 1024 * 1024;
