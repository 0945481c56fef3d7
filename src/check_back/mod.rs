//! The check-back: asks the producers' checkers what became of transactions in doubt, and writes down what they say.
//!
//! One task for each checker finds what is due at it, oldest first, and asks with bounded concurrency and rate. What an
//! answer leads to is decided in [`crate::tx::check_back`]; how a checker is asked is behind [`ask::Ask`].

mod amqp;
mod answer;
mod ask;
mod http;
mod question;
mod sweep;
mod transport;
mod values;
mod worker;

#[cfg(test)]
mod tests;

pub use amqp::queue_exists;
pub use http::reach;

use crate::config::{Asked, Checker, WhenExhausted};
use crate::metrics::Metrics;
use crate::relay::Credentials;
use crate::store::{Store, system_clock};
use crate::tls::ClientTls;
use crate::tx::check_back::{self as policy, Policy};
use crate::tx::checker::{Rule, Rules};
use crate::tx::decision::Decision;
use crate::tx::id::Timestamp;
use crate::upstream::Upstream;
use ask::Ask;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use wildmatch::WildMatch;
use worker::{Context, Worker};

/// What every checker's task works with.
#[derive(Clone)]
pub struct Parts {
    /// Where transactions in doubt are.
    pub store: Arc<dyn Store>,
    /// The nodes of AMQP checkers.
    pub upstream: Arc<Upstream>,
    /// The account that asks AMQP checkers.
    pub credentials: Credentials,
    /// Trust for HTTP checkers; needed for `https://` only.
    pub tls: Option<Arc<ClientTls>>,
    /// Where checks are counted.
    pub metrics: Arc<Metrics>,
}

/// Tells what time it is.
type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The running check-back.
pub struct CheckBack {
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
    wake: Vec<Arc<Notify>>,
}

/// The rules by which a transaction gets its checker, in the order of the configuration.
pub fn rules(checkers: &[Checker]) -> Rules {
    let rule = |checker: &Checker| Rule {
        checker: checker.name.as_str().into(),
        vhost: checker.matches.vhost.clone(),
        transaction: checker.matches.transaction.as_deref().map(WildMatch::new),
        exchange: checker.matches.exchange.clone(),
        first_after: checker.first_after,
    };
    Rules::new(checkers.iter().map(rule).collect())
}

impl CheckBack {
    /// Starts a task for each checker, and gives transactions a checker that have none, or one that is gone. Must be
    /// called within the runtime.
    pub fn start(checkers: &[Checker], parts: &Parts) -> Self {
        let mut check_back = Self { tasks: JoinSet::new(), stop: watch::Sender::new(false), wake: Vec::new() };
        for checker in checkers {
            match checker.asked() {
                Some(Asked::Http { url, secret }) => {
                    let secret = secret.map(|secret| secret.expose().as_bytes());
                    let tls = parts.tls.clone().filter(|_| url.tls);
                    check_back.spawn(checker, parts, http::HttpChecker::new(url.clone(), tls, secret));
                }
                Some(Asked::Amqp { vhost, queue }) => {
                    let (upstream, credentials) = (Arc::clone(&parts.upstream), parts.credentials.clone());
                    let asker = amqp::AmqpChecker::new(upstream, credentials, vhost, queue, checker.timeout);
                    check_back.spawn(checker, parts, asker);
                }
                // The configuration was checked for this.
                None => {}
            }
        }
        if !checkers.is_empty() {
            let names = checkers.iter().map(|checker| checker.name.as_str().into()).collect();
            let (store, mut stop) = (Arc::clone(&parts.store), check_back.stop.subscribe());
            let rules = rules(checkers);
            check_back.tasks.spawn(async move {
                tokio::select! {
                    () = sweep::assign(&*store, &rules, names) => {}
                    () = worker::stopped(&mut stop) => {}
                }
            });
        }
        check_back
    }

    fn spawn(&mut self, checker: &Checker, parts: &Parts, asker: impl Ask) {
        let context = Context {
            name: checker.name.as_str().into(),
            asker,
            policy: policy_of(checker),
            timeout: checker.timeout,
            store: Arc::clone(&parts.store),
            clock: Arc::new(system_clock),
            counts: parts.metrics.checker(&checker.name),
        };
        let wake = Arc::new(Notify::new());
        let worker = Worker::new(context, checker.concurrency as usize, checker.rate);
        self.tasks.spawn(worker.run(self.stop.subscribe(), Arc::clone(&wake)));
        self.wake.push(wake);
    }

    /// Has every checker's task look now for what is due, instead of within a fifth of a second.
    pub fn wake(&self) {
        self.wake.iter().for_each(|wake| wake.notify_one());
    }

    /// Asks nothing more, and waits for the checks that run: `grace` at most, then they are given up. What was not
    /// written down is asked again after the next start.
    pub async fn drain(mut self, grace: Duration) {
        self.stop.send_replace(true);
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(grace, ended).await.is_err() {
            tracing::info!("checks that were still running are given up");
        }
    }
}

fn policy_of(checker: &Checker) -> Policy {
    Policy {
        interval: checker.interval,
        max_interval: checker.max_interval,
        max_checks: checker.max_checks,
        when_exhausted: match checker.when_exhausted {
            WhenExhausted::Hold => policy::WhenExhausted::Hold,
            WhenExhausted::Commit => policy::WhenExhausted::Decide(Decision::Commit),
            WhenExhausted::RollBack => policy::WhenExhausted::Decide(Decision::RollBack),
        },
    }
}
