//! What differs between two configurations, and from when on a change counts.

use serde_json::Value as Json;

use super::load::{Keys, leaves};
use super::{Checker, Config};

/// From when on the change of a key counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// At once.
    AtOnce,
    /// For transactions that begin from then on.
    NewTransactions,
    /// For connections that are made from then on.
    NewConnections,
    /// After a restart; until then the old value stays in force.
    Restart,
}

/// One key that differs.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The path, such as `listen.address`; a checker stands under its name.
    pub key: String,
    /// The value so far, secrets redacted; none: there was none.
    pub from: Option<Json>,
    /// The new value, secrets redacted; none: there is none.
    pub to: Option<Json>,
    /// When it counts.
    pub effect: Effect,
}

/// What a reload changes, keys or whole tables; the first that fits counts. All else needs a restart.
const EFFECTS: [(&str, Effect); 26] = [
    ("listen.tls", Effect::NewConnections),
    ("listen.max_connections", Effect::AtOnce),
    ("listen.max_handshakes", Effect::AtOnce),
    ("listen.loopback_users", Effect::NewConnections),
    ("listen.handshake_timeout", Effect::NewConnections),
    ("upstream.tls", Effect::NewConnections),
    ("upstream.wait", Effect::NewConnections),
    ("relay.username", Effect::NewConnections),
    ("relay.password", Effect::NewConnections),
    ("relay.password_file", Effect::NewConnections),
    ("relay.lanes", Effect::NewConnections),
    ("relay.window", Effect::AtOnce),
    ("relay.retry", Effect::AtOnce),
    ("relay.confirm_timeout", Effect::AtOnce),
    ("store.max_size", Effect::AtOnce),
    ("store.max_size_per_user", Effect::AtOnce),
    ("transaction.unroutable", Effect::AtOnce),
    ("transaction.retention", Effect::AtOnce),
    ("transaction.max_age", Effect::AtOnce),
    ("transaction.control_exchange", Effect::NewConnections),
    ("transaction", Effect::NewTransactions),
    ("checker", Effect::AtOnce),
    ("admin.address", Effect::Restart),
    ("admin", Effect::AtOnce),
    ("shutdown.grace", Effect::AtOnce),
    ("log.level", Effect::AtOnce),
];

/// The effect of changing `key`.
pub(super) fn effect(key: &str) -> Effect {
    let is_in = |table: &str| key.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    EFFECTS.iter().find(|(known, _)| is_in(known)).map_or(Effect::Restart, |(_, effect)| *effect)
}

impl Config {
    /// The keys whose values differ in `new`, by their names.
    pub fn changes(&self, new: &Config) -> Vec<Change> {
        let without_checkers = |config: &Config| leaves(&Config { checker: Vec::new(), ..config.clone() });
        let secret = (self.relay.password != new.relay.password).then_some("relay.password");
        let change = |(key, from, to): Difference| Change { effect: self.effect(new, &key), key, from, to };
        let differences = differences(without_checkers(self), without_checkers(new), secret);
        let mut found: Vec<_> = differences.into_iter().map(change).collect();
        found.extend(changed_checkers(&self.checker, &new.checker));
        found.sort_by(|one, other| one.key.cmp(&other.key));
        found
    }

    /// `new`, but with those values of `self` that only a restart can change: what is in force once `new` is loaded.
    pub fn changed_to(&self, mut new: Config) -> Config {
        if self.listen.tls_address.is_empty() != new.listen.tls_address.is_empty() {
            new.listen.tls = self.listen.tls.clone();
        }
        new.listen.address = self.listen.address.clone();
        new.listen.tls_address = self.listen.tls_address.clone();
        new.upstream.urls = self.upstream.urls.clone();
        new.upstream.proxy_protocol = self.upstream.proxy_protocol;
        new.upstream.connect_timeout = self.upstream.connect_timeout;
        new.store.url = self.store.url.clone();
        new.store.password_file = self.store.password_file.clone();
        new.admin.address = self.admin.address.clone();
        new.memory = self.memory.clone();
        new.telemetry = self.telemetry.clone();
        new.log.format = self.log.format;
        new
    }

    fn effect(&self, new: &Config, key: &str) -> Effect {
        // Without a port, or with one that is yet to come, certificates are of no use.
        let tls_differs = self.listen.tls_address.is_empty() != new.listen.tls_address.is_empty();
        if tls_differs && key.starts_with("listen.tls.") { Effect::Restart } else { effect(key) }
    }
}

/// Checkers are known by their names: that one is gone does not change those behind it. Their order counts too.
fn changed_checkers(from: &[Checker], to: &[Checker]) -> Vec<Change> {
    let change = |key: String, from, to| Change { key, from, to, effect: effect("checker") };
    let whole = |checker: &Checker| serde_json::to_value(checker).ok();
    let named = |checkers: &[Checker], name: &str| checkers.iter().position(|checker| checker.name == name);
    let mut found = Vec::new();
    for old in from {
        let key = format!("checker.{}", old.name);
        match named(to, &old.name) {
            None => found.push(change(key, whole(old), None)),
            Some(place) => {
                let new = &to[place];
                let password = |checker: &Checker| Some(checker.postgres.as_ref()?.place.password.clone());
                // A checker has one of both.
                let secret = if old.secret != new.secret { Some("secret") } else { None };
                let secret = secret.or((password(old) != password(new)).then_some("postgres"));
                let differences = differences(leaves(old), leaves(new), secret);
                found.extend(differences.into_iter().map(|(name, from, to)| change(format!("{key}.{name}"), from, to)));
            }
        }
    }
    for new in to.iter().filter(|new| named(from, &new.name).is_none()) {
        found.push(change(format!("checker.{}", new.name), None, whole(new)));
    }
    let order = |checkers: &[Checker], others: &[Checker]| -> Vec<Json> {
        let common = checkers.iter().filter(|checker| named(others, &checker.name).is_some());
        common.map(|checker| checker.name.as_str().into()).collect()
    };
    let (before, after) = (order(from, to), order(to, from));
    if before != after {
        found.push(change("checker".into(), Some(before.into()), Some(after.into())));
    }
    found
}

/// A key that differs, and its values.
type Difference = (String, Option<Json>, Option<Json>);

/// The keys that differ, and `secret` if it is given: redacted, all secrets look alike.
fn differences(from: Keys, mut to: Keys, secret: Option<&str>) -> Vec<Difference> {
    let mut found = Vec::new();
    for (key, from) in from {
        let to = to.remove(&key);
        if to.as_ref() != Some(&from) || secret == Some(&key) {
            found.push((key, Some(from), to));
        }
    }
    // Lists of tables, whose items have keys of their own, may have become longer.
    found.extend(to.into_iter().map(|(key, to)| (key, None, Some(to))));
    found
}

#[cfg(test)]
mod tests {
    use super::super::load::load_from;
    use super::*;
    use std::fs;

    fn config(text: &str) -> Config {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.toml");
        fs::write(&path, text).expect("written");
        load_from(Some(&path), []).expect("valid").config
    }

    fn keys(changes: &[Change]) -> Vec<(&str, Effect)> {
        changes.iter().map(|change| (change.key.as_str(), change.effect)).collect()
    }

    fn names(changes: &[Change]) -> Vec<&str> {
        changes.iter().map(|change| change.key.as_str()).collect()
    }

    #[test]
    fn every_key_can_be_reloaded_or_stays_what_it_was_until_a_restart() {
        let before = Config::default();
        let after = config(
            "listen.address = '127.0.0.1:1'\nlisten.tls_address = '127.0.0.1:2'\nlisten.tls.certificate = 'c'\n\
             listen.tls.key = 'k'\nupstream.urls = ['amqp://other']\nupstream.proxy_protocol = 'v2'\n\
             upstream.connect_timeout = '1s'\nstore.url = 'postgres://u@h/d'\nstore.password_file = '/dev/null'\n\
             memory.max = '1GiB'\nadmin.address = '127.0.0.1:3'\n\
             telemetry.otlp_url = 'http://other'\ntelemetry.service_name = 'other'\ntelemetry.sample = 0.5\n\
             log.format = 'json'\nlog.level = 'debug'",
        );
        let changes = before.changes(&after);
        let restart = |effect: Effect| effect == Effect::Restart;
        let changed = keys(&changes).into_iter().filter(|(_, effect)| restart(*effect)).map(|(key, _)| key);
        let changed: Vec<&str> = changed.collect();
        // Whoever adds a key that needs a restart adds it above and to `changed_to`, or says in EFFECTS that it needs none.
        let all = leaves(&before).into_keys().filter(|key| restart(effect(key)));
        let of_the_port = ["listen.tls.certificate", "listen.tls.key"].map(String::from);
        let mut all: Vec<String> = all.chain(of_the_port).collect();
        all.sort();
        assert_eq!(changed, all);
        let told = include_str!("../../docs/operations.md").lines().find(|line| line.contains("| after a restart"));
        let told = told.expect("the table of what a reload changes");
        for key in all.iter().filter(|key| !key.starts_with("listen.tls.")) {
            assert!(told.contains(&format!("`{key}`")), "{key}");
        }
        let in_force = before.changed_to(after);
        assert_eq!(keys(&before.changes(&in_force)), [("log.level", Effect::AtOnce)]);
    }

    #[test]
    fn certificates_of_a_port_that_stays_need_no_restart() {
        let tls = |path: &str| {
            format!("listen.tls_address = '127.0.0.1:2'\nlisten.tls.certificate = '{path}'\nlisten.tls.key = 'k'")
        };
        let (before, after) = (config(&tls("one")), config(&tls("two")));
        assert_eq!(keys(&before.changes(&after)), [("listen.tls.certificate", Effect::NewConnections)]);
        assert_eq!(before.changed_to(after.clone()), after);
    }

    #[test]
    fn a_secret_that_changed_is_named_and_not_shown() {
        let with = |secret: &str| {
            config(&format!(
                "relay.password = '{secret}'\n[[checker]]\nname = 'orders'\nurl = 'http://orders'\nsecret = '{secret}'"
            ))
        };
        let changes = with("hidden-one").changes(&with("hidden-two"));
        assert_eq!(names(&changes), ["checker.orders.secret", "relay.password"]);
        assert!(!format!("{changes:?}").contains("hidden"), "{changes:?}");
        assert!(with("hidden").changes(&with("hidden")).is_empty());
    }

    #[test]
    fn checkers_are_known_by_their_names() {
        let checker = |name: &str, more: &str| format!("[[checker]]\nname = '{name}'\nqueue = 'q'\n{more}\n");
        let config = |texts: &[String]| config(&texts.concat());
        let before = config(&[checker("a", ""), checker("b", ""), checker("c", "")]);
        let after = config(&[checker("d", ""), checker("c", ""), checker("b", "rate = 7\nmatch = { vhost = '/' }")]);
        let changes = before.changes(&after);
        assert_eq!(names(&changes), ["checker", "checker.a", "checker.b.match.vhost", "checker.b.rate", "checker.d"]);
        assert_eq!(changes[0].to, Some(serde_json::json!(["c", "b"])));
        assert_eq!((changes[1].to.is_none(), changes[4].from.is_none()), (true, true));
        assert_eq!((&changes[2].from, &changes[2].to), (&None, &Some("/".into())));
    }

    #[test]
    fn a_list_of_tokens_that_grows_is_a_change() {
        let token = |number: u8| format!("{{ token_file = 't{number}', role = 'viewer' }}");
        let (one, two) = (token(1), token(2));
        let (before, after) = (config(""), config(&format!("admin.tokens = [{one}, {two}]")));
        assert!(before.changes(&after).iter().any(|change| change.key == "admin.tokens.1.token_file"));
        assert!(!after.changes(&before).is_empty());
    }
}
