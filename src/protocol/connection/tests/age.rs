//! Transactions that are open for longer than they may be.

use super::half::channel_open;
use super::*;

const AGE_MAX: Duration = Duration::from_secs(60);

fn aging() -> Script {
    Script::transactional(ConnectionSettings { age_max: AGE_MAX, forward_wait: Duration::ZERO, ..settings() })
}

#[test]
fn an_old_transaction_is_rolled_back_and_its_channel_closed() {
    let mut script = aging();
    script.client(&[channel_open(2), bare(2, id::TX_SELECT), half(1, "order-1", b"one")].concat());
    script.upstream(&[bare(2, id::TX_SELECT_OK), bare(1, id::TX_ROLLBACK_OK)].concat());
    let Command::Park { transaction, .. } = script.command() else { panic!("it is parked") };
    script.connection.handle_parked(1, transaction, Ok(()));
    script.later(Duration::from_secs(30));
    script.client(&publish(2, b"two"));
    script.later(Duration::from_secs(29));
    script.sent();
    assert!(script.commands.is_empty());
    script.later(Duration::from_secs(1));
    let (to_client, to_upstream) = script.sent();
    let text = "PRECONDITION_FAILED - the transaction is open for more than 60s (transaction.max_age)";
    assert_eq!(closed(&to_client), (1, text.into()));
    assert_eq!(methods(&to_upstream), [(1, id::CHANNEL_CLOSE)]);
    let Command::RollBack { transaction: rolled_back, reason, .. } = script.command() else { panic!("rolled back") };
    assert_eq!(rolled_back, transaction);
    assert!(reason.is_some_and(|reason| reason.contains("transaction.max_age")), "its history tells why");
    script.later(Duration::from_secs(30));
    assert_eq!(closed(&script.sent().0).0, 2, "each in its time");
    assert_eq!((script.connection.oldest_open(), script.connection.deadline()), (None, None));
}

#[test]
fn what_is_decided_is_open_no_more_and_the_next_one_begins_anew() {
    let mut script = aging();
    let begun = script.now;
    for end in [id::TX_ROLLBACK, id::TX_COMMIT] {
        script.client(&publish(1, b"one"));
        assert!(script.connection.oldest_open().is_some_and(|since| since >= begun));
        script.later(Duration::from_secs(50));
        script.client(&bare(1, end));
        assert_eq!(script.connection.oldest_open(), None);
        // What was judged long ago is asked again, behind another fence.
        script.upstream(&[bare(1, id::TX_ROLLBACK_OK), bare(1, id::TX_ROLLBACK_OK)].concat());
    }
    // RabbitMQ, or the store, may take its time over a commit.
    let (id, ..) = script.decide();
    script.later(Duration::from_secs(600));
    script.committed(id);
    assert!(methods(&script.sent().0).ends_with(&[(1, id::TX_COMMIT_OK)]));
}
