//! The task of one checker: finds what is due, asks, and writes down what came of it.

use super::Clock;
use super::ask::{Ask, NoAnswer};
use super::metrics::CheckerCounts;
use super::question::{Question, READ_BYTES_MAX};
use crate::roster::{LastCheck, Roster};
use crate::store::{Check, Due, ForCheckBack, Pack, Reply, StoreError, Summary};
use crate::trace::{About, Operation, Span, Tracer, Value};
use crate::tx::check_back::{Answer, Asked, Breaker, Next, Pace, Permit, Policy, WhenExhausted};
use crate::tx::decision::{Actor, Decision, Target, Verdict};
use crate::tx::id::TransactionId;
use crate::tx::state::State;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, watch};
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout};

/// How often to look for what is due, when nobody tells.
const POLL: Duration = Duration::from_millis(200);
/// Between two attempts at a store that fails.
const RETRY: Duration = Duration::from_secs(1);

/// What every check of a checker needs.
pub(super) struct Context<A> {
    pub(super) name: Arc<str>,
    pub(super) asker: A,
    pub(super) policy: Policy,
    /// One check, from its start to the last byte of its answer.
    pub(super) timeout: Duration,
    pub(super) store: Arc<dyn ForCheckBack>,
    pub(super) clock: Clock,
    pub(super) counts: CheckerCounts,
    pub(super) roster: Arc<Roster>,
    pub(super) tracer: Option<Arc<Tracer>>,
}

/// The task's own state.
pub(super) struct Worker<A> {
    context: Arc<Context<A>>,
    concurrency: usize,
    pace: Pace,
    breaker: Breaker,
    /// Those that are asked about now, and by which task.
    busy: HashMap<TransactionId, task::Id>,
    running: JoinSet<Ended>,
    /// Whose transaction was asked about last.
    asked_for: Arc<str>,
    store_fails: bool,
}

/// A check that ended.
struct Ended {
    id: TransactionId,
    /// Whether there was an answer; none: the checker was not asked.
    answered: Option<bool>,
}

/// Returns when `stop` says so, or when nobody is left to say it.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone.
    let _ = stop.wait_for(|stop| *stop).await;
}

impl<A: Ask> Worker<A> {
    pub(super) fn new(context: Context<A>, concurrency: usize, rate: u32) -> Self {
        Self {
            context: Arc::new(context),
            concurrency,
            pace: Pace::new(rate),
            breaker: Breaker::default(),
            busy: HashMap::new(),
            running: JoinSet::new(),
            asked_for: "".into(),
            store_fails: false,
        }
    }

    /// Works until `stop` says to end, then waits for the checks that run. `wake` tells that something may be due.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>, wake: Arc<Notify>) {
        let mut hurried = self.context.roster.hurried();
        loop {
            let pause = tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                pause = self.begin_checks() => pause,
            };
            tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                Some(ended) = self.running.join_next() => self.end_check(ended),
                () = wake.notified() => {}
                // The sender lives as long as the roster, which this task holds.
                _ = hurried.changed() => self.breaker.hurry(Instant::now().into_std()),
                () = sleep(pause) => {}
            }
            // Those that ended together make room together.
            while let Some(ended) = self.running.try_join_next() {
                self.end_check(ended);
            }
        }
        while self.running.join_next().await.is_some() {}
        // Whoever is asked no more is not left alone for now.
        self.context.counts.circuit_open.set(0);
    }

    /// Begins as many checks as are due and may begin; how long to wait until the next look.
    async fn begin_checks(&mut self) -> Duration {
        let room = self.concurrency.saturating_sub(self.busy.len());
        if room == 0 {
            return POLL;
        }
        if let Some(pause) = self.held_back() {
            return pause;
        }
        // Those that are asked about are due as well, until their checks are written down.
        let found = match self.context.store.due(&self.context.name, &self.asked_for, self.busy.len() + room).await {
            Ok(found) => found,
            Err(error) if error.is_final() => return RETRY,
            Err(error) => {
                if !std::mem::replace(&mut self.store_fails, true) {
                    tracing::warn!(checker = %self.context.name, %error, "the store can't say what is to be checked");
                }
                return RETRY;
            }
        };
        self.store_fails = false;
        let mut due = found.due;
        due.retain(|due| !self.busy.contains_key(&due.id));
        for due in due.into_iter().take(room) {
            if let Some(pause) = self.held_back() {
                return pause;
            }
            self.breaker.begin();
            self.pace.take(Instant::now().into_std());
            let id = due.id;
            self.asked_for = Arc::clone(&due.user);
            let task = self.running.spawn(check(Arc::clone(&self.context), due));
            self.busy.insert(id, task.id());
        }
        self.count_breaker();
        found.next.map_or(POLL, |next| next.clamp(Duration::from_millis(1), POLL))
    }

    /// How long no check may begin, if that is so.
    fn held_back(&self) -> Option<Duration> {
        let now = Instant::now().into_std();
        match self.breaker.permit(now) {
            Permit::Now => {}
            Permit::At(at) => return Some(at - now),
            // The answer, or its absence, wakes the task.
            Permit::WithTheAnswer => return Some(POLL),
        }
        let free_at = self.pace.free_at().filter(|at| *at > now)?;
        Some(free_at - now)
    }

    fn end_check(&mut self, ended: Result<Ended, JoinError>) {
        let now = Instant::now().into_std();
        let answered = match ended {
            Ok(Ended { id, answered }) => {
                self.busy.remove(&id);
                answered
            }
            Err(error) => {
                // A panic is a fault of ours; it must cost neither the slot nor the transaction its checks.
                self.busy.retain(|_, task| *task != error.id());
                tracing::error!(checker = %self.context.name, %error, "a check broke off");
                Some(false)
            }
        };
        match answered {
            Some(answered) => {
                let was_open = self.breaker.is_open();
                self.breaker.end(answered, now, fastrand::f64());
                match (was_open, self.breaker.is_open()) {
                    (false, true) => {
                        tracing::warn!(checker = %self.context.name, "the checker does not answer and is left alone for a while");
                    }
                    (true, false) => tracing::info!(checker = %self.context.name, "the checker answers again"),
                    _ => {}
                }
            }
            None => self.breaker.cancel(now),
        }
        self.count_breaker();
    }

    fn count_breaker(&self) {
        self.context.counts.circuit_open.set(self.breaker.is_open().into());
    }
}

/// One check, from what is known of the transaction to the answer's effect.
async fn check<A: Ask>(context: Arc<Context<A>>, due: Due) -> Ended {
    let answered = match ask(&context, &due).await {
        Ok(Some((transaction, answer))) => {
            let answered = answer.is_ok();
            context.write_down(&transaction, answer).await;
            Some(answered)
        }
        Ok(None) => None,
        Err(error) => {
            if !error.is_final() {
                tracing::warn!(checker = %context.name, transaction = %due.id, %error, "not checked; tried again");
            }
            sleep(RETRY).await;
            None
        }
    };
    Ended { id: due.id, answered }
}

/// The answer, and how long it took.
type Answered = Result<(Answer, Duration), NoAnswer>;

/// Asks, if the transaction is still in doubt and due; `None` if it isn't.
async fn ask<A: Ask>(context: &Context<A>, due: &Due) -> Result<Option<(Summary, Answered)>, StoreError> {
    let packs = context.store.messages(due.id, 0, READ_BYTES_MAX).await?;
    // Last, so that as little as can be lies between this look and the question: none comes after the decision.
    let Some((transaction, _)) = context.store.transaction(due.id).await? else { return Ok(None) };
    // As it was when it was found due: nobody has asked since, nor said that a person has to look.
    let is_due = transaction.state == State::InDoubt
        && transaction.checker.as_ref() == Some(&context.name)
        && transaction.next_check_at.is_some()
        && transaction.attempts == due.attempts;
    let Some(question) = Question::about(&transaction, &packs).filter(|_| is_due) else { return Ok(None) };
    let begun = Instant::now();
    let asked = timeout(context.timeout, context.asker.ask(&question)).await;
    let took = begun.elapsed();
    context.counts.seconds.observe(took);
    context.trace(&transaction, &packs, took, &asked);
    let answer = match asked {
        Ok(answer) => answer.map(|answer| (answer, took)),
        Err(_) => {
            Err(NoAnswer::new(format_args!("nothing came within {}", humantime::format_duration(context.timeout))))
        }
    };
    context.tell(&answer, begun.elapsed());
    Ok(Some((transaction, answer)))
}

impl<A> Context<A> {
    fn tell(&self, answered: &Answered, took: Duration) {
        let (answer, reason) = match answered {
            Ok((answer, _)) => (Some(*answer), None),
            Err(reason) => (None, Some(reason.to_string())),
        };
        self.roster.checked(&self.name, LastCheck { at: (self.clock)(), answer, reason, took });
    }

    /// Tells of a check that ended just now.
    fn trace(
        &self,
        transaction: &Summary,
        packs: &[Pack],
        took: Duration,
        asked: &Result<Result<Answer, NoAnswer>, Elapsed>,
    ) {
        let Some(tracer) = self.tracer.as_ref().filter(|tracer| tracer.samples(transaction.id)) else { return };
        let mut about = About::new(&transaction.vhost, transaction.name.as_ref().map(|name| name.as_str()));
        packs.iter().for_each(|pack| about.read(pack.messages.bytes()));
        let (result, error) = match asked {
            Ok(Ok(answer)) => (answer.as_str(), None),
            Ok(Err(reason)) => ("no_answer", Some(reason.to_string())),
            Err(_) => ("no_answer", Some("timeout".to_owned())),
        };
        let end = SystemTime::now();
        tracer.send(Span {
            transaction: transaction.id,
            operation: Operation::Check,
            start: end.checked_sub(took).unwrap_or(end),
            end,
            about: Some(Arc::new(about)),
            more: vec![
                ("halfway.checker", (&*self.name).into()),
                ("halfway.check.result", result.into()),
                ("halfway.check.attempt", Value::Number(i64::from(transaction.attempts) + 1)),
            ],
            error,
        });
    }

    async fn write_down(&self, transaction: &Summary, answered: Answered) {
        let id = transaction.id;
        let (answer, result) = match &answered {
            Ok((answer, took)) => (Some(*answer), format!("{} in {} ms", answer.as_str(), took.as_millis())),
            Err(reason) => (None, reason.to_string()),
        };
        self.counts.checks.count(answer);
        if let Err(reason) = &answered {
            tracing::info!(checker = %self.name, transaction = %id, attempt = transaction.attempts + 1, %reason, "checked");
        }
        let asked = Asked { attempts: transaction.attempts, answered: transaction.checks_answered };
        match self.policy.next(asked, answer, fastrand::f64()) {
            Next::Decide(decision) => {
                let took = answered.map(|(_, took)| took).unwrap_or_default();
                let reason = format!("answered {decision} in {} ms", took.as_millis(), decision = decision.as_str());
                self.decide(id, decision, Actor::Checker(Arc::clone(&self.name)), reason).await;
            }
            Next::Later { after, counted } => {
                let (checker, answered) = (Arc::clone(&self.name), answer.is_some());
                let check = Check { checker, result, answered, counted, again_after: Some(after) };
                self.persist(id, || self.store.checked(id, check.clone())).await;
            }
            Next::Exhausted(WhenExhausted::Decide(decision)) => {
                let reason = format!("{} answers, and none knew", asked.answered.saturating_add(1));
                self.decide(id, decision, Actor::Exhausted(Arc::clone(&self.name)), reason).await;
            }
            Next::Exhausted(WhenExhausted::Hold) => {
                let checker = Arc::clone(&self.name);
                let check = Check { checker, result, answered: true, counted: true, again_after: None };
                if self.persist(id, || self.store.checked(id, check.clone())).await == Some(true) {
                    self.counts.exhausted.inc();
                    tracing::warn!(
                        checker = %self.name, transaction = %id, answers = asked.answered.saturating_add(1),
                        "the checker never knew; the transaction stays in doubt and waits for a person"
                    );
                }
            }
        }
    }

    async fn decide(&self, id: TransactionId, decision: Decision, actor: Actor, reason: String) {
        let decide = || self.store.decide(Target::Id(id), decision, actor.clone(), Some(reason.clone()));
        match self.persist(id, decide).await {
            Some(Verdict::Decided(_)) => {
                tracing::info!(transaction = %id, decision = decision.as_str(), by = %actor, "decided");
            }
            Some(Verdict::Contradicted(fate)) => {
                tracing::warn!(
                    transaction = %id, answer = decision.as_str(), decided = %fate.state, by = fate.decided_by,
                    "the checker's answer came after an opposite decision, which stays"
                );
            }
            Some(Verdict::Before(_) | Verdict::Unknown) | None => {}
        }
    }

    /// Asks the store until it does it: the answer is there, and asking the checker again would not help. `None` if the
    /// store never will.
    async fn persist<T>(&self, id: TransactionId, call: impl Fn() -> Reply<T>) -> Option<T> {
        loop {
            match call().await {
                Ok(done) => return Some(done),
                Err(StoreError::Fenced | StoreError::Closed) => return None,
                Err(error @ (StoreError::Conflict(_) | StoreError::Locked(_) | StoreError::Refused(..))) => {
                    tracing::debug!(transaction = %id, %error, "a check came too late");
                    return None;
                }
                Err(error @ (StoreError::Full(_) | StoreError::Io(_) | StoreError::Unknown(_))) => {
                    tracing::warn!(transaction = %id, %error, "a check can't be written down; tried again");
                    sleep(RETRY).await;
                }
            }
        }
    }
}
