//! The check-back: asks the producers' checkers what became of transactions in doubt, and writes down what they say.
//!
//! One task for each checker finds what is due at it, oldest first, and asks with bounded concurrency and rate. What an
//! answer leads to is decided in [`crate::tx::check_back`]; how a checker is asked is behind [`ask::Ask`].

mod amqp;
mod answer;
mod ask;
mod http;
mod metrics;
mod postgres;
mod question;
mod sweep;
mod transport;
mod worker;

#[cfg(test)]
mod tests;

pub use amqp::queue_exists;
pub use http::reach;
pub use metrics::CheckMetrics;

use crate::config::{Asked, Checker, WhenExhausted};
use crate::relay::Credentials;
use crate::roster::Roster;
use crate::store::{ForCheckBack, system_clock};
use crate::tls::ClientTls;
use crate::trace::Tracer;
use crate::tx::check_back::{self as policy, Policy};
use crate::tx::checker::{Rule, Rules};
use crate::tx::decision::Decision;
use crate::tx::id::Timestamp;
use crate::upstream::Upstream;
use ask::Ask;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use wildmatch::WildMatch;
use worker::{Context, Worker};

/// What every checker's task works with.
#[derive(Clone)]
pub struct Parts {
    /// Where transactions in doubt are.
    pub store: Arc<dyn ForCheckBack>,
    /// The nodes of AMQP checkers.
    pub upstream: Arc<Upstream>,
    /// The account that asks AMQP checkers.
    pub credentials: Credentials,
    /// Trust for HTTP checkers; needed for `https://` only.
    pub tls: Option<Arc<ClientTls>>,
    /// Where checks are counted.
    pub metrics: CheckMetrics,
    /// Where the last of each checker is told of.
    pub roster: Arc<Roster>,
    /// Where spans of checks go, if they go anywhere.
    pub tracer: Option<Arc<Tracer>>,
}

/// Tells what time it is.
type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The running check-back.
pub struct CheckBack {
    tasks: JoinSet<()>,
    workers: Vec<Running>,
    /// Ends the sweep when it is dropped.
    sweep: watch::Sender<bool>,
}

/// A checker's task. It ends when this is dropped.
struct Running {
    checker: Checker,
    credentials: Credentials,
    _stop: watch::Sender<bool>,
    wake: Arc<Notify>,
    ended: Ended,
}

/// Comes to its end, which is an error, with the task of a checker.
type Ended = oneshot::Receiver<Infallible>;

/// The rules by which a transaction gets its checker, in the order of the configuration.
pub fn rules(checkers: &[Checker]) -> Rules {
    let rule = |checker: &Checker| Rule {
        checker: checker.name.as_str().into(),
        vhost: checker.matches.vhost.clone(),
        user: checker.matches.user.as_deref().map(WildMatch::new),
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
        let mut check_back = Self { tasks: JoinSet::new(), workers: Vec::new(), sweep: watch::Sender::new(false) };
        for checker in checkers {
            check_back.spawn(checker, parts, None);
        }
        check_back.sweep(checkers, parts, None);
        check_back
    }

    /// Goes on with these checkers. The tasks of those that are gone, or are others now, end after the checks that run;
    /// what a checker that is gone was to be asked about is given to others by the new rules.
    pub fn change(&mut self, checkers: &[Checker], parts: &Parts) {
        while self.tasks.try_join_next().is_some() {}
        let mut before = std::mem::take(&mut self.workers);
        for checker in checkers {
            match before.iter().position(|running| running.checker.name == checker.name) {
                None => self.spawn(checker, parts, None),
                Some(place) if before[place].is_still(checker, parts) => self.workers.push(before.swap_remove(place)),
                Some(place) => {
                    let ended = before.swap_remove(place).ended;
                    self.spawn(checker, parts, Some(ended));
                }
            }
        }
        before.iter().for_each(|gone| parts.metrics.forget(&gone.checker.name));
        self.sweep(checkers, parts, Some(before.into_iter().map(|running| running.ended).collect()));
    }

    /// Starts the task of a checker, to work when the one `before` it has ended: nothing is asked twice at a time.
    fn spawn(&mut self, checker: &Checker, parts: &Parts, before: Option<Ended>) {
        match checker.asked() {
            Some(Asked::Http { url, secret }) => {
                let secret = secret.map(|secret| secret.expose().as_bytes());
                let tls = parts.tls.clone().filter(|_| url.tls);
                self.spawn_with(checker, parts, before, http::HttpChecker::new(url.clone(), tls, secret));
            }
            Some(Asked::Amqp { vhost, queue }) => {
                let (upstream, credentials) = (Arc::clone(&parts.upstream), parts.credentials.clone());
                let asker = amqp::AmqpChecker::new(upstream, credentials, vhost, queue, checker.timeout);
                self.spawn_with(checker, parts, before, asker);
            }
            Some(Asked::Postgres { url, look }) => {
                let asker = postgres::PostgresChecker::new(url.clone(), look, checker.timeout);
                self.spawn_with(checker, parts, before, asker);
            }
            // The configuration was checked for this.
            None => {}
        }
    }

    fn spawn_with(&mut self, checker: &Checker, parts: &Parts, before: Option<Ended>, asker: impl Ask) {
        let context = Context {
            name: checker.name.as_str().into(),
            asker,
            policy: policy_of(checker),
            timeout: checker.timeout,
            store: Arc::clone(&parts.store),
            clock: Arc::new(system_clock),
            roster: Arc::clone(&parts.roster),
            counts: parts.metrics.checker(&checker.name),
            tracer: parts.tracer.clone(),
        };
        // A database has one connection, where a second question would wait with its time running.
        let at_once = if checker.postgres.is_some() { 1 } else { checker.concurrency as usize };
        let worker = Worker::new(context, at_once, checker.rate);
        let (stop, stopped) = watch::channel(false);
        let (alive, ended) = oneshot::channel();
        let wake = Arc::new(Notify::new());
        let woken = Arc::clone(&wake);
        self.tasks.spawn(async move {
            wait_for(before).await;
            worker.run(stopped, woken).await;
            drop(alive);
        });
        let (checker, credentials) = (checker.clone(), parts.credentials.clone());
        self.workers.push(Running { checker, credentials, _stop: stop, wake, ended });
    }

    /// Looks for transactions that nobody would ask about. `gone` are the tasks that may still have to do with some,
    /// where the checkers have changed.
    fn sweep(&mut self, checkers: &[Checker], parts: &Parts, gone: Option<Vec<Ended>>) {
        // With this the sweep before ends.
        self.sweep = watch::Sender::new(false);
        if checkers.is_empty() {
            return;
        }
        let names: Vec<Arc<str>> = checkers.iter().map(|checker| checker.name.as_str().into()).collect();
        let (store, rules, mut stop) = (Arc::clone(&parts.store), rules(checkers), self.sweep.subscribe());
        self.tasks.spawn(async move {
            let sweep = async {
                let again = gone.is_some();
                wait_for(gone.into_iter().flatten()).await;
                sweep::assign(&*store, &rules, names.clone()).await;
                if again {
                    sweep::assign_late(&*store, &rules, names).await;
                }
            };
            tokio::select! {
                () = sweep => {}
                () = worker::stopped(&mut stop) => {}
            }
        });
    }

    /// Has every checker's task look now for what is due, instead of within a fifth of a second.
    pub fn wake(&self) {
        self.workers.iter().for_each(|running| running.wake.notify_one());
    }

    /// Asks nothing more, and waits for the checks that run: `grace` at most, then they are given up. What was not
    /// written down is asked again after the next start.
    pub async fn drain(self, grace: Duration) {
        let Self { mut tasks, workers, sweep } = self;
        drop((workers, sweep));
        let ended = async { while tasks.join_next().await.is_some() {} };
        if timeout(grace, ended).await.is_err() {
            tracing::info!("checks that were still running are given up");
        }
    }
}

impl Running {
    /// Whether it does already what is wanted.
    fn is_still(&self, checker: &Checker, parts: &Parts) -> bool {
        self.checker == *checker && (checker.queue.is_none() || self.credentials == parts.credentials)
    }
}

async fn wait_for(tasks: impl IntoIterator<Item = Ended>) {
    for ended in tasks {
        let _ = ended.await;
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
