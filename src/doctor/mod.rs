//! `halfway doctor`: looks at everything the proxy needs from the outside, and leaves it as it was.

mod certificate;
mod checker;
mod collector;
mod database;
mod health;
mod node;
mod store;
mod tokens;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

pub use health::ask_health;

use crate::{
    admin::read_token,
    check_back,
    config::{Config, HttpUrl, UpstreamTls},
    postgres::Postgres,
    tls::{ClientTls, ServerTls},
};

const PATIENCE: Duration = Duration::from_secs(3);

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// What was looked at.
    pub what: String,
    /// Whether it will do.
    pub fitness: Fitness,
    /// What was found, for a person.
    pub text: String,
}

/// Whether something will do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fitness {
    /// It will.
    Fine,
    /// It will, with a limit that the text names.
    Warning(Advice),
    /// It won't.
    Failed(Advice),
}

/// What to make of trouble.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Advice {
    /// Why it matters.
    pub why: &'static str,
    /// What mends it: a command, as far as one can.
    pub cure: String,
}

impl Finding {
    fn fine(what: impl Into<String>, text: impl Into<String>) -> Self {
        Finding { what: what.into(), fitness: Fitness::Fine, text: text.into() }
    }

    fn warning(what: impl Into<String>, text: impl Into<String>, why: &'static str, cure: impl Into<String>) -> Self {
        let fitness = Fitness::Warning(Advice { why, cure: cure.into() });
        Finding { what: what.into(), fitness, text: text.into() }
    }

    fn failed(what: impl Into<String>, text: impl Into<String>, why: &'static str, cure: impl Into<String>) -> Self {
        let fitness = Fitness::Failed(Advice { why, cure: cure.into() });
        Finding { what: what.into(), fitness, text: text.into() }
    }
}

/// Looks at the upstream nodes, the relay's account in each of `vhosts`, the checkers, and the store.
pub async fn examine(config: &Config, vhosts: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    match load_trust(config) {
        Err(text) => findings.push(Finding::failed(
            "trust in RabbitMQ's certificates",
            text,
            "no connection to an amqps:// node is made, so the proxy does not start",
            "put the authority's certificate in PEM where upstream.tls.ca says, and let the proxy's user read it",
        )),
        Ok(trust) => {
            for url in &config.upstream.urls {
                findings.extend(node::examine(config, url, trust.clone(), vhosts).await);
            }
            for checker in &config.checker {
                findings.extend(checker::examine(config, checker, trust.clone()).await);
            }
        }
    }
    findings.extend(store::examine(&config.store));
    findings.extend(certificate::examine(config, SystemTime::now()));
    findings.extend(tokens::examine(&config.admin));
    findings.extend(collector::examine(&config.telemetry).await);
    findings
}

/// Looks into the databases that are checkers: each finding with the key that it is about.
pub async fn examine_databases(config: &Config) -> Vec<(String, Finding)> {
    let mut found = Vec::new();
    for (number, checker) in config.checker.iter().enumerate() {
        let findings = database::examine(checker).await;
        found.extend(findings.into_iter().map(|finding| (format!("checker.{number}.postgres"), finding)));
    }
    found
}

/// What can't be used of the files that the configuration names, with the keys that name them: what would keep the proxy
/// from starting, or its clients from trusting it.
pub fn unusable_files(config: &Config) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let usable = |files| ServerTls::load(&files).and_then(|tls| tls.check_time(SystemTime::now()));
    if let Some(Err(error)) = config.listen.tls().map(usable) {
        found.push(("listen.tls.certificate".into(), error.to_string()));
    }
    if let Err(error) = load_trust(config) {
        found.push(("upstream.tls.ca".into(), error));
    }
    for (number, checker) in config.checker.iter().enumerate() {
        if let Some(Err(error)) = checker.postgres.as_ref().map(|url| Postgres::new(url.clone(), checker.timeout)) {
            found.push((format!("checker.{number}.postgres"), error.to_string()));
        }
    }
    for token in &config.admin.tokens {
        if let Err(error) = read_token(&token.token_file) {
            found.push(("admin.tokens".into(), error.to_string()));
        }
    }
    found
}

/// Whether somebody takes connections at `url`, whose certificate the system's authorities know.
async fn reach(url: &HttpUrl, limit: Duration) -> Result<(), String> {
    let tls = url.tls.then(|| ClientTls::load(&UpstreamTls { ca: None })).transpose();
    check_back::reach(url, tls.map_err(|error| error.to_string())?.as_ref(), limit).await
}

fn load_trust(config: &Config) -> Result<Option<Arc<ClientTls>>, String> {
    if !config.upstream.urls.iter().any(|url| url.tls) {
        return Ok(None);
    }
    ClientTls::load(&config.upstream.tls).map(|trust| Some(Arc::new(trust))).map_err(|error| error.to_string())
}

/// A text as one word of a shell.
fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+=,".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_would_split_or_obey_is_quoted() {
        assert_eq!(
            ["relay", "/", "a b", "it's", "", "$(x)"].map(word),
            ["relay", "/", "'a b'", "'it'\\''s'", "''", "'$(x)'"]
        );
    }
}
