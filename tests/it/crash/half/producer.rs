//! One producer: a thread that publishes one named transaction after the other, and dies now and then.

use super::super::{answer, connect_and_work, open, open_tx, say, write_message, write_publish};
use super::FIRST_AFTER;
use super::ledger::{Ledger, Local};
use crate::support::id::{self, Id};
use crate::support::raw::describe;
use crate::support::table::{Properties, Table};
use crate::support::{PATIENCE, Raw};
use halfway::amqp::wire::Reader;
use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow::{self, Break, Continue};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// In tx mode.
const TX: u16 = 1;
/// In confirm mode: half messages.
const HALF: u16 = 2;
/// In confirm mode: decisions, some of them.
const CONTROL: u16 = 3;

/// Longer than it takes until a check, so that a check that does not wait for the channel's end comes meanwhile.
const LINGER: Duration = Duration::from_millis(1_500);

/// Where a producer dies, or does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Publishing(u64),
    BeforeTheBarrierIsAnswered,
    BeforeItsDatabase,
    BehindItsDatabase,
    BeforeTheDecisionIsAnswered,
    Never,
}

/// What is drawn of a transaction before it begins.
struct Plan {
    name: String,
    messages: u64,
    /// The header `x-half-check-after`.
    check_after: Option<u32>,
    death: Death,
    /// Whether it takes its time before its database commits.
    lingers: bool,
    /// What its database is to do.
    local: Local,
    /// Whether it goes on with the next transaction without a word about this one: it closes the channel, or says nothing.
    forgets: bool,
}

impl Plan {
    fn properties(&self) -> Properties {
        let mut headers = Table::new().string("x-half-transaction", &self.name);
        if let Some(seconds) = self.check_after {
            headers = headers.entry("x-half-check-after", b'I', &seconds.to_be_bytes());
        }
        Properties::persistent().headers(headers)
    }

    fn check_after(&self) -> Duration {
        self.check_after.map_or(FIRST_AFTER, |seconds| Duration::from_secs(seconds.into()))
    }
}

/// A producer and its connection.
pub struct Producer<'a> {
    number: u64,
    random: fastrand::Rng,
    ledger: &'a Ledger,
    /// The next tag of each confirm channel of the present connection.
    tags: [u64; 2],
}

/// Break: the producer has died. What it has not told its database by then, it never will.
type HowFar = io::Result<ControlFlow<()>>;

impl<'a> Producer<'a> {
    pub fn new(number: u64, seed: u64, ledger: &'a Ledger) -> Self {
        Self { number, random: fastrand::Rng::with_seed(seed), ledger, tags: [0; 2] }
    }

    /// Connects again and again, and publishes until `done`.
    pub fn produce(mut self, port: u16, done: &AtomicBool) {
        connect_and_work(port, done, |raw, connection| {
            let end = self.work(raw, connection, done);
            if let Err(error) = &end
                && error.kind() == io::ErrorKind::Other
            {
                self.ledger.note_unexpected(format!("producer {}: {error}", self.number));
            }
            end
        });
    }

    fn work(&mut self, raw: &mut Raw, connection: u64, done: &AtomicBool) -> io::Result<()> {
        open_tx(raw, TX).map_err(crash)?;
        self.tags = [1; 2];
        for channel in [HALF, CONTROL] {
            open(raw, channel).map_err(crash)?;
            raw.method(channel, id::CONFIRM_SELECT, |out| out.push(0))?;
            answer(raw, channel, id::CONFIRM_SELECT_OK).map_err(crash)?;
        }
        for number in 0.. {
            if done.load(Ordering::Relaxed) {
                break;
            }
            let plan = self.draw(format!("{}.{connection}.{number}", self.number));
            self.ledger.begin(&plan.name, plan.messages, plan.check_after());
            let step = match self.random.u8(0..100) {
                0..4 => self.refused(raw, &plan),
                4..64 => self.transactional(raw, &plan),
                _ => self.ordinary(raw, &plan),
            };
            if step? == Break(()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(self.random.u64(0..10)));
        }
        Ok(())
    }

    fn draw(&mut self, name: String) -> Plan {
        let random = &mut self.random;
        let messages = random.u64(1..=4);
        let death = match random.u8(0..100) {
            0..2 => Death::Publishing(random.u64(1..=messages)),
            2..4 => Death::BeforeTheBarrierIsAnswered,
            4..6 => Death::BeforeItsDatabase,
            6..9 => Death::BehindItsDatabase,
            9..12 => Death::BeforeTheDecisionIsAnswered,
            _ => Death::Never,
        };
        Plan {
            name,
            messages,
            death,
            check_after: (random.u8(0..10) == 0).then(|| random.u32(1..=2)),
            lingers: random.u8(0..100) == 0,
            local: if random.u8(0..4) == 0 { Local::RolledBack } else { Local::Committed },
            forgets: random.u8(0..6) == 0,
        }
    }

    /// Publishes; whether the producer lives.
    fn publish(&mut self, raw: &mut Raw, channel: u16, plan: &Plan) -> HowFar {
        let properties = plan.properties();
        let mut out = Vec::new();
        for index in 0..plan.messages {
            write_message(&mut out, channel, &plan.name, index, &properties);
            if plan.death == Death::Publishing(index + 1) {
                // Sometimes in the middle of a frame.
                out.truncate(out.len() - self.random.usize(0..8));
                raw.send(&out)?;
                return Ok(Break(()));
            }
        }
        raw.send(&out)?;
        Ok(Continue(()))
    }

    /// Publishes what RabbitMQ refuses: that decides.
    fn refused(&mut self, raw: &mut Raw, plan: &Plan) -> HowFar {
        if self.publish(raw, TX, plan)?.is_break() {
            return Ok(Break(()));
        }
        let mut out = Vec::new();
        write_publish(&mut out, TX, ("no-such-exchange", "k"), &plan.properties(), b"refused");
        raw.send(&out)?;
        self.answer(raw, TX, id::CHANNEL_CLOSE)?;
        self.ledger.end(&plan.name, Local::RolledBack);
        say(raw, TX, id::CHANNEL_CLOSE_OK)?;
        open_tx(raw, TX).map_err(crash)?;
        Ok(Continue(()))
    }

    /// Publish, barrier, database, decision.
    fn transactional(&mut self, raw: &mut Raw, plan: &Plan) -> HowFar {
        if self.publish(raw, TX, plan)?.is_break() {
            return Ok(Break(()));
        }
        for _ in 0..if plan.lingers { 2 } else { 1 } {
            let sent = Instant::now();
            say(raw, TX, id::TX_SELECT)?;
            if plan.death == Death::BeforeTheBarrierIsAnswered {
                return Ok(Break(()));
            }
            self.answer(raw, TX, id::TX_SELECT_OK)?;
            self.ledger.channel_lived(&plan.name, sent);
            if plan.lingers {
                std::thread::sleep(LINGER);
            }
        }
        let Some(local) = self.end_database(plan) else { return Ok(Break(())) };
        if plan.forgets {
            raw.method(TX, id::CHANNEL_CLOSE, |out| out.extend([0, 200, 0, 0, 0, 0, 0]))?;
            self.answer(raw, TX, id::CHANNEL_CLOSE_OK)?;
            open_tx(raw, TX).map_err(crash)?;
            return Ok(Continue(()));
        }
        let (decide, decided) = match local {
            Local::Committed => (id::TX_COMMIT, id::TX_COMMIT_OK),
            Local::RolledBack => (id::TX_ROLLBACK, id::TX_ROLLBACK_OK),
        };
        say(raw, TX, decide)?;
        if plan.death == Death::BeforeTheDecisionIsAnswered {
            return Ok(Break(()));
        }
        self.answer(raw, TX, decided)?;
        self.ledger.decided(&plan.name);
        Ok(Continue(()))
    }

    /// Half messages on a confirm channel, database, decision through the control exchange.
    fn ordinary(&mut self, raw: &mut Raw, plan: &Plan) -> HowFar {
        if self.publish(raw, HALF, plan)?.is_break() || plan.death == Death::BeforeTheBarrierIsAnswered {
            return Ok(Break(()));
        }
        self.confirmed(raw, HALF, plan.messages)?;
        if plan.lingers {
            std::thread::sleep(LINGER);
        }
        let Some(local) = self.end_database(plan) else { return Ok(Break(())) };
        if plan.forgets {
            return Ok(Continue(()));
        }
        let key = match local {
            Local::Committed => "commit",
            Local::RolledBack => "rollback",
        };
        let channel = if self.random.bool() { HALF } else { CONTROL };
        let mut out = Vec::new();
        let name = Properties::new().headers(Table::new().string("x-half-transaction", &plan.name));
        write_publish(&mut out, channel, ("halfway", key), &name, b"");
        raw.send(&out)?;
        if plan.death == Death::BeforeTheDecisionIsAnswered {
            return Ok(Break(()));
        }
        self.confirmed(raw, channel, 1)?;
        self.ledger.decided(&plan.name);
        Ok(Continue(()))
    }

    /// The local transaction, if the producer lives to see it, and to go on.
    fn end_database(&self, plan: &Plan) -> Option<Local> {
        if plan.death == Death::BeforeItsDatabase {
            return None;
        }
        let local = self.ledger.end(&plan.name, plan.local);
        (plan.death != Death::BehindItsDatabase).then_some(local)
    }

    /// Waits for the confirms of the next `count` messages on a channel.
    fn confirmed(&mut self, raw: &mut Raw, channel: u16, count: u64) -> io::Result<()> {
        let next = &mut self.tags[usize::from(channel - HALF)];
        let mut open: BTreeSet<u64> = (*next..*next + count).collect();
        *next += count;
        while !open.is_empty() {
            let frame = raw.read(PATIENCE)?;
            if (frame.channel, frame.id()) != (channel, id::ACK) {
                return Err(unless_crash(&frame, id::ACK));
            }
            let mut arguments = Reader::new(frame.arguments());
            let tag = arguments.u64().map_err(|_| io::Error::other("a confirm without a tag"))?;
            let multiple = arguments.u8().is_ok_and(|bits| bits & 1 == 1);
            if !open.contains(&tag) {
                return Err(io::Error::other(format!("a confirm of {tag} while {open:?} are open")));
            }
            open.retain(|other| if multiple { *other > tag } else { *other != tag });
        }
        Ok(())
    }

    /// Waits for an answer.
    fn answer(&self, raw: &mut Raw, channel: u16, id: Id) -> io::Result<()> {
        let frame = raw.read(PATIENCE)?;
        if (frame.channel, frame.id()) == (channel, id) { Ok(()) } else { Err(unless_crash(&frame, id)) }
    }
}

/// While channels are opened, RabbitMQ may be going down in any words.
fn crash(error: io::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, error)
}

/// Another frame than the one that was waited for: the connection's end, which is a crash, or a fault.
fn unless_crash(frame: &crate::support::raw::Frame, wanted: Id) -> io::Error {
    if frame.id() == id::CLOSE {
        return io::ErrorKind::ConnectionAborted.into();
    }
    io::Error::other(format!("{} in place of {wanted:?}", describe(frame)))
}
