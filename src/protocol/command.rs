//! What goes between a connection, its channels and the session: commands out, limits in, and the bytes that all of them
//! write to.

use super::handshake::{Identity, LoginRules};
use crate::amqp::method::id;
use crate::amqp::reply_code::ReplyCode;
use crate::tx::batch::Batch;
use crate::tx::checker::{Named, Rules};
use crate::tx::decision::Decision;
use crate::tx::id::TransactionId;
use crate::tx::limits::TransactionLimits;
use crate::tx::name::TransactionName;
use crate::tx::outcome::{Outcome, Wait};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long RabbitMQ's word counts within a transaction where it counts for no other: about as long as RabbitMQ's own
/// channel goes by it when it is silent.
const JUDGEMENT_HOLDS: Duration = Duration::from_secs(1);

/// By what a connection is served, its limits and waits: see `config.toml` for what users may set.
#[derive(Debug, Clone)]
pub struct ConnectionSettings {
    /// Who may log in from here.
    pub login: LoginRules,
    /// How long tx.commit-ok may wait for the relay; zero answers as soon as the decision is durable.
    pub forward_wait: Duration,
    /// The same where a message is mandatory and its return has to come first.
    pub mandatory_wait: Duration,
    /// How long RabbitMQ's yes to a kind of message counts for the next transactions; zero: for none.
    pub judgement: Duration,
    /// How long a transaction may be open; zero: as long as its channel.
    pub age_max: Duration,
    /// How much a transaction may be.
    pub limits: TransactionLimits,
    /// Who is asked about which named transaction.
    pub rules: Arc<Rules>,
    /// Messages to this exchange are decisions.
    pub control_exchange: Arc<str>,
    /// Makes transaction ids.
    pub new_id: fn() -> TransactionId,
}

/// What the connection has to do for a channel, after a frame or an event.
#[derive(Debug)]
pub enum Next {
    /// Nothing.
    Nothing,
    /// Let the frame go the way of every ordinary channel's.
    Pass,
    /// Forget it: it is closed, or RabbitMQ will close it, and from here on it passes through.
    Forget,
    /// Let the frames go on that waited on it.
    Release,
    /// Ask RabbitMQ about these probes.
    Ask(Vec<(Ticket, Vec<u8>)>),
    /// Ask RabbitMQ about this probe, if there is a channel for that: nothing waits for the answer.
    Renew(Ticket, Vec<u8>),
    /// Close it, with this text behind the code's name, about this method.
    Refuse(ReplyCode, String, (u16, u16)),
    /// Pass everything through: the client broke the framing, and what it sent was passed on, so RabbitMQ will close the
    /// connection.
    BreakOff,
}

/// Tells the half messages and decisions of a connection apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What the session has to do for the connection.
#[derive(Debug)]
pub enum Command {
    /// Connect to RabbitMQ: the client has greeted.
    Connect,
    /// The handshake is through.
    Opened(Opened),
    /// Keep messages of an undecided transaction; answer with [`super::connection::Connection::handle_parked`].
    Park {
        /// The client's channel.
        channel: u16,
        /// Whose messages.
        transaction: TransactionId,
        /// What a named one has.
        named: Option<Arc<Named>>,
        /// The messages.
        batch: Batch,
    },
    /// Make a transaction durable as committed; answer with [`super::connection::Connection::handle_committed`].
    Commit {
        /// The client's channel.
        channel: u16,
        /// Which.
        transaction: TransactionId,
        /// What a named one has.
        named: Option<Arc<Named>>,
        /// Its messages, but for those parked before.
        batch: Batch,
        /// Whether some were parked before.
        parked: bool,
        /// Whether it is a single message and nothing else, so that RabbitMQ may be given it before it is durable here.
        alone: bool,
        /// What [`super::connection::Connection::handle_forwarded`], or
        /// [`handle_unforwarded`](super::connection::Connection::handle_unforwarded), is waited for with; none: nothing.
        wait: Option<Wait>,
    },
    /// Forget a parked transaction; answer with [`super::connection::Connection::handle_rolled_back`].
    RollBack {
        /// The client's channel.
        channel: u16,
        /// Which.
        transaction: TransactionId,
        /// Why, where nobody asked for it: RabbitMQ's refusal, say.
        reason: Option<String>,
    },
    /// The channel of a named, parked transaction is gone: leave it in doubt.
    Abandon {
        /// Which.
        transaction: TransactionId,
    },
    /// Decide a named transaction of this user; answer with [`super::connection::Connection::handle_decided`].
    Decide {
        /// The client's channel.
        channel: u16,
        /// Tells its decisions apart.
        ticket: Ticket,
        /// What.
        decision: Decision,
        /// Whose.
        name: TransactionName,
    },
    /// RabbitMQ lets the user open no channel beside its own: remember that for its next connections, see
    /// [`Io::spare_channel`].
    NoSpareChannel,
    /// Let no session of the virtual host go by what RabbitMQ said before, see [`Io::routing`].
    EndLeases,
    /// The client is refused, or given up, before its connection is open.
    Refused(Refusal),
    /// A transaction has its first message.
    Began,
    /// A transaction that began is over.
    Ended(Outcome),
    /// So long after tx.commit it was answered, or given up waiting for.
    CommitTook(Duration),
    /// Send what is to be sent, then close both sockets.
    Close,
    /// Close both sockets at once.
    Abort,
}

/// Why a client was refused, to be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It does not speak AMQP 0-9-1.
    Protocol,
    /// It may not log in from where it is, or not in that way.
    Login,
    /// It took too long.
    Timeout,
    /// The proxy is about to end.
    Draining,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Both sides agree on how to talk.
    Opening,
    /// They do.
    Open,
    /// And the client was told not to publish: by RabbitMQ, or because the store is full.
    Blocked,
    /// It is about to end.
    Closing,
}

/// What both sides agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Who the client is: all commands behind this one are its.
    pub identity: Identity,
    /// Seconds; 0 is none.
    pub heartbeat: u16,
    /// The client's library; empty if it doesn't say.
    pub product: String,
    /// The version of it, if it says that.
    pub version: Option<String>,
    /// The client's name for the connection, if it gave one.
    pub name: Option<String>,
}

/// What channels write to and read from: the connection's outputs, limits and shared counters.
#[derive(Debug)]
pub struct Io {
    /// For the client, whole frames.
    pub to_client: Vec<u8>,
    /// For RabbitMQ, whole frames.
    pub to_upstream: Vec<u8>,
    /// For the session.
    pub commands: VecDeque<Command>,
    /// See [`ConnectionSettings`]. A transaction keeps those under which it began.
    pub settings: Arc<ConnectionSettings>,
    /// Bytes of one message's body that RabbitMQ takes, as its version tells.
    pub server_message_bytes_max: u64,
    /// Who the client is; none before open-ok, when there is no channel either.
    pub identity: Option<Identity>,
    /// RabbitMQ has said that it is: transactions may have its name.
    pub user_confirmed: bool,
    /// The negotiated frame_max; 0 is no limit.
    pub frame_max: u32,
    /// The frame_max that RabbitMQ offered, which the relay gets too; 0 is no limit.
    pub server_frame_max: u32,
    /// When channels stop waiting for the relay.
    pub timers: BTreeSet<(Instant, u16)>,
    /// Transactions that nobody has decided: since when, and on which channel.
    pub open: BTreeSet<(Instant, u16)>,
    /// Channels in the middle of a commit.
    pub committing: usize,
    /// Commits wait for the relay no more: the connection is about to end.
    pub hurried: bool,
    /// RabbitMQ is gone.
    pub upstream_lost: bool,
    /// Why the store takes nothing more of this client; none: it does.
    pub no_room: Option<&'static str>,
    /// A message that the store would have to keep has begun since this was last looked at.
    pub published: bool,
    /// What time it is, as the session last said.
    pub now: Instant,
    /// Whether RabbitMQ may be asked on a channel of the connection that is not the client's.
    pub spare_channel: bool,
    /// Another number since an exchange or a queue of the virtual host was deleted or unbound by anybody, or a message
    /// refused: what RabbitMQ said before counts no more.
    pub routing: u64,
    last_ticket: u64,
}

impl Io {
    /// Nothing said yet.
    pub fn new(settings: ConnectionSettings, now: Instant) -> Self {
        Self {
            to_client: Vec::new(),
            to_upstream: Vec::new(),
            commands: VecDeque::new(),
            settings: Arc::new(settings),
            server_message_bytes_max: u64::MAX,
            identity: None,
            user_confirmed: false,
            frame_max: 0,
            server_frame_max: 0,
            timers: BTreeSet::new(),
            open: BTreeSet::new(),
            committing: 0,
            hurried: false,
            upstream_lost: false,
            no_room: None,
            published: false,
            now,
            spare_channel: true,
            routing: 0,
            last_ticket: 0,
        }
    }

    /// How long RabbitMQ's word counts within a transaction.
    pub fn judgement_holds(&self) -> Duration {
        Some(self.settings.judgement).filter(|holds| !holds.is_zero()).unwrap_or(JUDGEMENT_HOLDS)
    }

    /// The virtual host; none is open, and no channel, before open-ok.
    pub fn vhost(&self) -> &str {
        self.identity.as_ref().map_or("", |identity| &identity.vhost)
    }

    /// The login name; as [`Io::vhost`].
    pub fn user(&self) -> &str {
        self.identity.as_ref().map_or("", |identity| &identity.user)
    }

    /// Closes a channel that the store has no room for, and that had better not wait for it.
    pub fn refuse_full(&self, why: &str) -> Next {
        let text = format!("{}, and {why}", self.no_room.unwrap_or("there was no room"));
        Next::Refuse(ReplyCode::RESOURCE_ERROR, text, id::BASIC_PUBLISH)
    }

    /// A ticket that no channel of the connection has had: an answer may come when its channel is closed, and another
    /// is open under the same number. They rise.
    pub fn next_ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        Ticket(self.last_ticket)
    }
}
