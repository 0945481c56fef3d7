use super::*;
use crate::protocol::command::ConnectionSettings;
use crate::protocol::connection::tests::settings;
use proptest::prelude::*;

const HOLDS: Duration = Duration::from_secs(1);

fn io() -> Io {
    Io::new(ConnectionSettings { judgement: HOLDS, ..settings() }, Instant::now())
}

const NO: Judgement =
    Judgement::Refused { code: crate::amqp::reply_code::ReplyCode::ACCESS_REFUSED, text: Vec::new(), method: (60, 40) };

/// Asks about a kind and has RabbitMQ answer.
fn given(leases: &mut Leases, io: &Io) {
    leases.asked(b"a".to_vec(), b"probe", io);
    leases.fence();
    leases.fenced();
}

#[test]
fn a_yes_counts_for_the_next_transactions_and_is_renewed_in_time() {
    let (mut leases, mut io) = (Leases::default(), io());
    assert_eq!(leases.look(b"a", &io), Standing::Unknown);
    leases.asked(b"a".to_vec(), b"probe", &io);
    leases.fence();
    assert_eq!(leases.look(b"a", &io), Standing::Awaited);
    leases.fenced();
    leases.next_transaction(&io);
    assert_eq!(leases.look(b"a", &io), Standing::Holds);
    assert_eq!(leases.look(b"b", &io), Standing::Unknown);
    io.now += HOLDS / 2;
    assert_eq!(leases.look(b"a", &io), Standing::Renews);
    assert_eq!(leases.renew(b"a", Ticket(1), &io), Some(b"probe".to_vec()));
    assert_eq!(leases.look(b"a", &io), Standing::Holds, "it is on its way");
    assert_eq!(leases.renewed(Ticket(1), Judgement::Fine), None);
    io.now += HOLDS / 2;
    assert_eq!(leases.look(b"a", &io), Standing::Renews);
    io.now += HOLDS / 2;
    assert_eq!(leases.look(b"a", &io), Standing::Unknown);
}

#[test]
fn a_renewal_that_nobody_answers_ends_the_lease() {
    let (mut leases, mut io) = (Leases::default(), io());
    given(&mut leases, &io);
    io.now += HOLDS / 2;
    leases.renew(b"a", Ticket(1), &io);
    io.now += HOLDS / 2;
    assert_eq!(leases.look(b"a", &io), Standing::Unknown);
}

#[test]
fn a_no_ends_the_transaction_that_has_such_a_message_or_the_next_one() {
    let (mut leases, mut io) = (Leases::default(), io());
    given(&mut leases, &io);
    io.now += HOLDS / 2;
    assert_eq!(leases.look(b"a", &io), Standing::Renews);
    leases.renew(b"a", Ticket(1), &io);
    assert_eq!(leases.renewed(Ticket(2), NO), None, "nobody asked that");
    assert_eq!(leases.renewed(Ticket(1), NO), Some(NO));
    leases.renew(b"a", Ticket(3), &io);
    leases.next_transaction(&io);
    assert_eq!(leases.renewed(Ticket(3), NO), None);
    // Others hear of it, too, and that makes no yes of it.
    io.routing += 1;
    assert_eq!(leases.look(b"a", &io), Standing::Refused(NO));
}

#[test]
fn a_no_is_forgotten_when_the_client_has_mended_what_was_missing() {
    let (mut leases, io) = (Leases::default(), io());
    given(&mut leases, &io);
    leases.renew(b"a", Ticket(1), &io);
    leases.next_transaction(&io);
    assert_eq!(leases.renewed(Ticket(1), NO), None);
    leases.forget();
    assert_eq!(leases.look(b"a", &io), Standing::Unknown);
}

/// The question goes out on another channel, and RabbitMQ may come to it behind the deletion.
#[test]
fn a_no_behind_the_clients_own_deletion_is_none_for_what_came_before() {
    let (mut leases, io) = (Leases::default(), io());
    given(&mut leases, &io);
    leases.renew(b"a", Ticket(1), &io);
    leases.take_away();
    assert_eq!(leases.renewed(Ticket(1), NO), None);
}

#[test]
fn what_could_change_the_answer_ends_the_lease() {
    type Change = fn(&mut Leases, &mut Io);
    let changes: [Change; 4] = [
        |leases, _| leases.forget(),
        |_, io| io.routing += 1,
        |_, io| io.now += HOLDS,
        |leases, io| {
            io.settings = ConnectionSettings { judgement: Duration::ZERO, ..settings() }.into();
            leases.next_transaction(io);
        },
    ];
    for (number, change) in changes.iter().enumerate() {
        let (mut leases, mut io) = (Leases::default(), io());
        given(&mut leases, &io);
        change(&mut leases, &mut io);
        assert_eq!(leases.look(b"a", &io), Standing::Unknown, "{number}");
    }
}

#[test]
fn an_answer_to_an_earlier_fence_is_none_to_a_later_question() {
    let (mut leases, io) = (Leases::default(), io());
    leases.fence();
    leases.asked(b"a".to_vec(), b"probe", &io);
    leases.fenced();
    assert_eq!(leases.look(b"a", &io), Standing::Awaited);
    leases.fence();
    leases.fenced();
    assert_eq!(leases.look(b"a", &io), Standing::Holds);
}

#[test]
fn what_was_judged_long_ago_is_asked_again_each_once() {
    let (mut leases, mut io) = (Leases::default(), io());
    for (kind, wait) in [(b'a', Duration::ZERO), (b'a', HOLDS), (b'b', Duration::ZERO)] {
        io.now += wait;
        leases.asked(vec![kind], &[kind], &io);
    }
    leases.asked(b"c".to_vec(), b"c", &io);
    io.now += HOLDS / 2;
    leases.asked(b"d".to_vec(), b"d", &io);
    io.now += HOLDS / 2;
    assert_eq!(leases.outdated(&io), 3);
    assert_eq!((leases.ask_again(2, &mut io), io.to_upstream.len(), leases.outdated(&io)), (2, 2, 1));
    assert_eq!((leases.ask_again(2, &mut io), io.to_upstream.len(), leases.outdated(&io)), (1, 3, 0));
    io.routing += 1;
    assert_eq!(leases.outdated(&io), 4, "they may go somewhere else now");
    leases.next_transaction(&io);
    assert_eq!(leases.outdated(&io), 0, "they are not in this one");
}

#[test]
fn what_came_before_the_client_took_something_away_is_not_asked_again() {
    let (mut leases, mut io) = (Leases::default(), io());
    leases.asked(b"a".to_vec(), b"a", &io);
    leases.take_away();
    leases.asked(b"b".to_vec(), b"b", &io);
    io.now += HOLDS;
    assert_eq!((leases.look(b"a", &io), leases.outdated(&io)), (Standing::Unknown, 1));
}

#[test]
fn few_kinds_are_remembered_for_the_next_transaction() {
    let (mut leases, io) = (Leases::default(), io());
    for number in 0..2 * KINDS_MAX {
        leases.asked(number.to_be_bytes().to_vec(), b"", &io);
    }
    assert_eq!(leases.kinds.len(), KINDS_MAX);
    leases.next_transaction(&io);
    assert!(leases.kinds.is_empty());
}

/// What may happen to a channel: each with a number that says what it is about.
#[derive(Debug, Clone)]
enum Event {
    Publish(u8),
    Fence,
    Fenced,
    /// RabbitMQ answers the oldest question on the side with yes, or the one behind it.
    Renewed(u8),
    Commit,
    Later(u64),
    Declare,
    Delete,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0u8..3).prop_map(Event::Publish),
        2 => Just(Event::Fence),
        2 => Just(Event::Fenced),
        2 => (0u8..2).prop_map(Event::Renewed),
        2 => Just(Event::Commit),
        2 => (0u64..700).prop_map(Event::Later),
        1 => Just(Event::Declare),
        1 => Just(Event::Delete),
    ]
}

proptest! {
    /// A message counts as judged only if RabbitMQ has said yes to its kind, to a question that was asked at most
    /// `judgement` ago, and behind the last change.
    #[test]
    fn a_yes_is_never_older_than_it_may_be(events in proptest::collection::vec(event(), 0..300)) {
        let (mut leases, mut io) = (Leases::default(), io());
        // By kind, when the questions were asked to which there is a yes; those that wait for a fence, and for its answer.
        let (mut yes, mut asked, mut fenced) = (vec![Vec::new(); 3], Vec::new(), std::collections::VecDeque::new());
        let (mut renewals, mut changed) = (Vec::new(), io.now);
        for event in events {
            match event {
                Event::Publish(kind) => {
                    let standing = leases.look(&[kind], &io);
                    let word = yes[usize::from(kind)].iter().copied().filter(|at: &Instant| *at >= changed).max();
                    if standing.holds() {
                        prop_assert!(word.is_some_and(|at| io.now - at < HOLDS), "{:?}", standing);
                    }
                    match standing {
                        Standing::Renews => {
                            let ticket = io.next_ticket();
                            prop_assert!(leases.renew(&[kind], ticket, &io).is_some());
                            renewals.push((ticket, kind, io.now));
                        }
                        Standing::Unknown => {
                            leases.asked(vec![kind], b"", &io);
                            asked.push((kind, io.now));
                        }
                        Standing::Awaited => {
                            let mut on_their_way = asked.iter().chain(fenced.iter().flatten());
                            prop_assert!(on_their_way.any(|(other, at)| *other == kind && io.now - *at < HOLDS && *at >= changed));
                        }
                        Standing::Holds | Standing::Refused(_) => {}
                    }
                }
                Event::Fence => {
                    leases.fence();
                    fenced.push_back(std::mem::take(&mut asked));
                }
                Event::Fenced => {
                    if let Some(judged) = fenced.pop_front() {
                        leases.fenced();
                        judged.into_iter().for_each(|(kind, at)| yes[usize::from(kind)].push(at));
                    }
                }
                Event::Renewed(place) => {
                    if usize::from(place) < renewals.len() {
                        let (ticket, kind, at) = renewals.remove(place.into());
                        leases.renewed(ticket, Judgement::Fine);
                        yes[usize::from(kind)].push(at);
                    }
                }
                Event::Commit => leases.next_transaction(&io),
                Event::Later(wait) => io.now += Duration::from_millis(wait),
                Event::Declare | Event::Delete => {
                    // Not in the same instant as a question before it.
                    io.now += Duration::from_millis(1);
                    changed = io.now;
                    match event {
                        Event::Declare => leases.forget(),
                        _ => io.routing += 1,
                    }
                }
            }
        }
    }
}
