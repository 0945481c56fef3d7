//! Decisions about all that fit a filter: counted first, then made a batch at a time, so that who asked sees how far it
//! is and can stop.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use futures_util::future::join_all;
use serde::Serialize;
use utoipa::ToSchema;

use super::access::Operator;
use super::body::{self, Bulk, BulkCursor};
use super::decisions::{NO_CHECKER, check_now, settle};
use super::letters::{self, Fate};
use super::openapi::{Refusals, Wrong};
use super::problem::Problem;
use super::request::{just_after, one_of};
use super::{Admin, apart};
use crate::store::{Bookmark, Filter, LetterFilter, Listing, Reply, system_clock};
use crate::tx::decision::{Decision, Target, Verdict};
use crate::tx::state;

/// Decisions in one batch.
const BATCH: usize = 200;
/// What is counted at a time.
const COUNTED: usize = 1000;
/// How often, at most: what is beyond is not worth the store's time.
const COUNTS_MAX: usize = 20;
/// What is said of a batch that panicked.
const BROKE_OFF: &str = "the batch broke off; see the log";

/// How many fit, or what became of a batch.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum BulkAnswer {
    /// The answer to a dry run.
    Counted(Counted),
    /// The answer to the rest.
    Done(Done),
}

/// How many fit.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Counted {
    matched: usize,
    /// There may be more: counting was given up.
    at_least: bool,
}

/// What became of a batch.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Done {
    done: u32,
    /// Somebody else had decided before, or it is gone.
    skipped: u32,
    failed: Vec<Failure>,
    /// To be sent with the next request; null: that was all.
    next_cursor: Option<String>,
}

/// Why one of a batch was not done.
#[derive(Debug, Serialize, ToSchema)]
struct Failure {
    id: String,
    detail: String,
}

/// What happened to one.
enum Handled {
    Done,
    Skipped,
    Failed(String),
}

/// What happened to each, where `judge` knows it of those that did not fail.
fn outcomes<T>(
    ids: impl Iterator<Item: ToString>,
    results: Vec<Result<T, Problem>>,
    judge: impl Fn(T) -> Handled,
) -> Vec<(String, Handled)> {
    let failed = |problem: Problem| Handled::Failed(problem.detail().to_owned());
    ids.zip(results).map(|(id, result)| (id.to_string(), result.map_or_else(failed, &judge))).collect()
}

impl Done {
    fn add(&mut self, id: String, outcome: Handled) {
        match outcome {
            Handled::Done => self.done += 1,
            Handled::Skipped => self.skipped += 1,
            Handled::Failed(detail) => self.failed.push(Failure { id, detail }),
        }
    }
}

/// What may become of many transactions.
#[derive(Clone, Copy)]
enum Action {
    Decide(Decision),
    Check,
}

impl Action {
    fn parse(word: &str) -> Result<Self, Problem> {
        match word {
            "commit" => Ok(Self::Decide(Decision::Commit)),
            "rollback" => Ok(Self::Decide(Decision::RollBack)),
            "check" => Ok(Self::Check),
            _ => Err(Problem::field("action", one_of(&["commit", "rollback", "check"]))),
        }
    }
}

/// Decides about transactions in doubt, or about those that the filter's state says.
#[utoipa::path(
    post,
    path = "/transactions/bulk",
    tag = "transactions",
    operation_id = "decideTransactions",
    request_body = body::TransactionsBulk,
    responses(
        (status = 200, body = BulkAnswer, description = "How many fit, or what became of a batch of at most 200."),
        Wrong,
        Refusals,
    ),
)]
pub(super) async fn transactions(
    State(admin): State<Admin>,
    Operator(who): Operator,
    bulk: Bulk<Filter>,
) -> Result<Json<BulkAnswer>, Problem> {
    let action = Action::parse(&bulk.action)?;
    let mut filter = bulk.filter;
    match *filter.state.get_or_insert(state::State::InDoubt) {
        state::State::InDoubt => {}
        state::State::Open if matches!(action, Action::Decide(_)) => {}
        _ => {
            return Err(Problem::field(
                "state",
                "has to be one in which this can be done: in_doubt, or open for decisions",
            ));
        }
    }
    let begun = begin(bulk.cursor);
    filter.parked_before.get_or_insert(begun.until);
    let store = admin.store()?;
    let Some(reason) = bulk.reason else {
        return count(|after| store.transactions(filter.clone(), after, COUNTED)).await;
    };
    let page = store.transactions(filter, begun.after, BATCH).await?;
    let ids: Vec<_> = page.items.iter().map(|summary| summary.id).collect();
    let work = async move {
        Ok(match action {
            // Called in order, so that they are decided in order, and awaited together: they share their syncs.
            Action::Decide(decision) => {
                let calls: Result<Vec<_>, _> = ids
                    .iter()
                    .map(|id| settle(&admin, Arc::clone(&who), Target::Id(*id), decision, Arc::clone(&reason), true))
                    .collect();
                outcomes(ids.iter(), join_all(calls?).await, |verdict| match verdict {
                    Verdict::Decided(_) => Handled::Done,
                    _ => Handled::Skipped,
                })
            }
            Action::Check => {
                let calls = ids.iter().map(|id| check_now(&admin, &who, *id, Some(&reason)));
                outcomes(ids.iter(), join_all(calls).await, |asked| match asked {
                    true => Handled::Done,
                    false => Handled::Failed(NO_CHECKER.into()),
                })
            }
        })
    };
    do_all(work, begun, page.next).await
}

/// Decides about dead letters.
#[utoipa::path(
    post,
    path = "/dead-letters/bulk",
    tag = "dead letters",
    operation_id = "decideDeadLetters",
    request_body = body::LettersBulk,
    responses(
        (status = 200, body = BulkAnswer, description = "How many fit, or what became of a batch of at most 200."),
        Wrong,
        Refusals,
    ),
)]
pub(super) async fn dead_letters(
    State(admin): State<Admin>,
    Operator(who): Operator,
    bulk: Bulk<LetterFilter>,
) -> Result<Json<BulkAnswer>, Problem> {
    let fate = match &*bulk.action {
        "retry" => Fate::Retry,
        "discard" => Fate::Discard,
        _ => return Err(Problem::field("action", one_of(&["retry", "discard"]))),
    };
    let begun = begin(bulk.cursor);
    let filter = LetterFilter { since_before: Some(begun.until), ..bulk.filter };
    let store = admin.store()?;
    let Some(reason) = bulk.reason else {
        return count(|after| store.dead_letters(filter.clone(), after, COUNTED)).await;
    };
    let page = store.dead_letters(filter, begun.after, BATCH).await?;
    let ids: Vec<_> = page.items.iter().map(|letter| letter.id).collect();
    let work = async move {
        let calls: Result<Vec<_>, _> = ids
            .iter()
            .map(|id| letters::settle(&admin, Arc::clone(&who), *id, fate, Arc::clone(&reason), true))
            .collect();
        Ok(outcomes(ids.iter(), join_all(calls?).await, |transaction| match transaction {
            Some(_) => Handled::Done,
            None => Handled::Skipped,
        }))
    };
    do_all(work, begun, page.next).await
}

/// Does what is to be done with a page, and tells what became of it. `next`: what to ask the store for to get the rest.
async fn do_all(
    work: impl Future<Output = Result<Vec<(String, Handled)>, Problem>> + Send + 'static,
    begun: BulkCursor,
    next: Option<Bookmark>,
) -> Result<Json<BulkAnswer>, Problem> {
    let next_cursor = next.map(|after| BulkCursor { after, ..begun }.to_string());
    let mut done = Done { next_cursor, ..Done::default() };
    for (id, outcome) in apart(work, BROKE_OFF).await? {
        done.add(id, outcome);
    }
    Ok(Json(BulkAnswer::Done(done)))
}

/// Counts what `list` gives page by page, as far as that is worth the store's time.
async fn count<T>(list: impl Fn(Bookmark) -> Reply<Listing<T>>) -> Result<Json<BulkAnswer>, Problem> {
    let mut count = Count::default();
    while let Some(after) = count.next() {
        let page = list(after).await?;
        count.add(page.items.len(), page.next);
    }
    Ok(Json(BulkAnswer::Counted(count.end())))
}

/// The first request takes everything that is there at its moment.
fn begin(cursor: Option<BulkCursor>) -> BulkCursor {
    // What came at this very moment is there.
    cursor.unwrap_or_else(|| BulkCursor { after: Bookmark::START, until: just_after(system_clock()) })
}

/// A count that goes on page by page, and not forever.
#[derive(Default)]
struct Count {
    matched: usize,
    pages: usize,
    after: Option<Bookmark>,
}

impl Count {
    /// Behind what to go on; none: it is done.
    fn next(&self) -> Option<Bookmark> {
        if self.pages == 0 { Some(Bookmark::START) } else { self.after.filter(|_| self.pages < COUNTS_MAX) }
    }

    fn add(&mut self, matched: usize, next: Option<Bookmark>) {
        self.matched += matched;
        self.pages += 1;
        self.after = next;
    }

    fn end(self) -> Counted {
        Counted { matched: self.matched, at_least: self.after.is_some() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_given_up_where_it_costs_too_much() {
        let mut count = Count::default();
        let bookmark = |pages: usize| format!("{pages:016x}").parse::<Bookmark>().expect("a bookmark");
        let mut pages = 0;
        while let Some(after) = count.next() {
            assert_eq!(after, bookmark(pages));
            pages += 1;
            count.add(3, Some(bookmark(pages)));
        }
        assert_eq!((pages, count.matched), (COUNTS_MAX, 3 * COUNTS_MAX));
        assert!(count.end().at_least);
        let mut short = Count::default();
        short.add(2, None);
        assert_eq!(short.next(), None);
        assert!(!short.end().at_least);
    }
}
