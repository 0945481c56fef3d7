//! At start, and when the checkers change: transactions in doubt that nobody would ask about get a checker by today's
//! rules, so that a configuration that was changed counts for what is there already.

use super::question::first_exchange;
use crate::store::{Bookmark, ForCheckBack, StoreError, Summary};
use crate::tx::checker::{Rules, Subject};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Transactions that are looked at together.
const PAGE: usize = 500;
/// Between two attempts at a store that fails.
const RETRY: Duration = Duration::from_secs(1);

/// Between two looks for late ones. A look touches all that wait for a person without a checker, so it is rare.
const LATE_FIRST: Duration = Duration::from_secs(2);
const LATE_MAX: Duration = Duration::from_secs(10 * 60);

/// Goes through all that are without a checker, or with one that is not among `known`. Ends when it has seen them all.
pub(super) async fn assign(store: &dyn ForCheckBack, rules: &Rules, known: Vec<Arc<str>>) {
    let (mut after, mut assigned) = (Bookmark::START, 0_u64);
    loop {
        match page(store, rules, known.clone(), after, &mut assigned).await {
            Ok(Some(next)) => after = next,
            Ok(None) => break,
            Err(error) if error.is_final() => return,
            Err(error) => {
                tracing::warn!(%error, "transactions in doubt can't be given their checkers; tried again");
                sleep(RETRY).await;
            }
        }
    }
    if assigned > 0 {
        tracing::info!(transactions = assigned, "gave transactions in doubt a checker by the configuration");
    }
}

/// Does the same again and again, with growing pauses, and does not end: a transaction that had begun when the checkers
/// changed may be in doubt much later, with a checker that is gone.
pub(super) async fn assign_late(store: &dyn ForCheckBack, rules: &Rules, known: Vec<Arc<str>>) {
    let mut pause = LATE_FIRST;
    loop {
        sleep(pause).await;
        assign(store, rules, known.clone()).await;
        pause = (pause * 2).min(LATE_MAX);
    }
}

/// One page; where the next begins, if there is one.
async fn page(
    store: &dyn ForCheckBack,
    rules: &Rules,
    known: Vec<Arc<str>>,
    after: Bookmark,
    assigned: &mut u64,
) -> Result<Option<Bookmark>, StoreError> {
    let listing = store.unasked(known, after, PAGE).await?;
    // All are asked for before any is awaited, so that the store may write them down together.
    let mut answers = Vec::new();
    for transaction in &listing.items {
        if let Some(checker) = checker_of(store, rules, transaction).await? {
            answers.push(store.check_now(transaction.id, Some(checker)));
        }
    }
    for answer in answers {
        *assigned += u64::from(answer.await?);
    }
    Ok(listing.next)
}

async fn checker_of(
    store: &dyn ForCheckBack,
    rules: &Rules,
    transaction: &Summary,
) -> Result<Option<Arc<str>>, StoreError> {
    let Some(name) = &transaction.name else { return Ok(None) };
    // One byte: the first pack alone.
    let packs = store.messages(transaction.id, 0, 1).await?;
    let (vhost, user) = (&*transaction.vhost, &*transaction.user);
    let rule = first_exchange(&packs)
        .and_then(|exchange| rules.matching(&Subject { vhost, user, transaction: name, exchange }));
    Ok(rule.map(|rule| Arc::clone(&rule.checker)))
}
