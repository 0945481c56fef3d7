//! An ordinary channel, in confirm mode or not, on which half messages are published among others.
//!
//! ```text
//! half message ──► Ordering ───────────► Judging ─────────► Parking ────────────► confirm
//!                  channel.flow, which   the judge asks     the store makes
//!                  changes nothing,      RabbitMQ, see      it durable
//!                  has come back         super::judge
//! decision     ──► (all before it are through) ──► Deciding ────────────────────► confirm
//! ```
//!
//! RabbitMQ must judge a half message after what the client did before it on this channel (it may have declared the
//! exchange) and before what it does behind it (it may delete it). Before: channel.flow(active) changes nothing and is
//! answered when RabbitMQ has been through everything on this channel; it is needed only after a method that could
//! change the judgement. Behind: messages, acks and all else of class basic pass at once; from the first other method on,
//! the client's frames wait until no half message is on its way.

mod waiting;

use self::waiting::{Half, Stage, Underway, Waiting};
use super::command::{Command, Io, Next, Ticket};
use super::half;
use super::judge::Judgement;
use super::leases::Leases;
use super::line::Line;
use super::numbering::Numbering;
use super::probe;
use crate::amqp::frame::{self, Frame, kind};
use crate::amqp::method::{self, CLASS_BASIC, Publish, Settle, id};
use crate::amqp::properties::{self, Properties};
use crate::amqp::reply_code::ReplyCode;
use crate::amqp::wire::Reader;
use crate::tx::batch::{Batch, HalfMessage};
use crate::tx::checker::Named;
use crate::tx::decision::{Decision, Verdict};
use crate::tx::id::TransactionId;
use crate::tx::name::TransactionName;
use crate::tx::outcome::StoreError;
use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes of half messages on their way, and of frames behind them, past which the client has to wait.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// What the client is in the middle of.
#[derive(Debug)]
enum Receiving {
    /// A message whose header is not there yet: the arguments of its basic.publish.
    Header(Vec<u8>),
    /// A message that is held, and whose body is not all there.
    Body(Held),
    /// The body of an ordinary message, which passes.
    Passing(u64),
}

/// A message that does not pass, as far as it is there.
#[derive(Debug)]
struct Held {
    what: What,
    publish: Vec<u8>,
    header: Vec<u8>,
    /// Of a half message; the others' is not looked at.
    body: Vec<u8>,
    received: u64,
    body_bytes: u64,
}

/// What a held message turned out to be.
#[derive(Debug)]
enum What {
    Half(Named),
    Decision(Decision, TransactionName),
    /// To be refused when all of it is there, as RabbitMQ does.
    Wrong(String),
}

/// See the module.
#[derive(Debug)]
pub struct HalfChannel {
    number: u16,
    /// `None`: not in confirm mode.
    numbering: Option<Numbering>,
    receiving: Option<Receiving>,
    /// Half messages and decisions.
    underway: Underway,
    /// What waits on it does so until nothing is on its way.
    pub(super) line: Line,
    /// What RabbitMQ has said to the judge.
    leases: Leases,
    /// Whether a method that may change RabbitMQ's judgement went out since the last flow-ok was asked for.
    unordered: bool,
    /// Who waits for the next flow-ok: this (`true`), or the client.
    flows: VecDeque<bool>,
    /// Why it will be closed once the client's content is through.
    refusal: Option<(ReplyCode, String, (u16, u16))>,
}

impl HalfChannel {
    /// For a channel on which so many messages were published since confirm.select; `None`: it is not in confirm mode.
    /// `flows` is how many channel.flow of its client RabbitMQ has not answered.
    pub fn new(number: u16, published: Option<u64>, flows: usize) -> Self {
        Self {
            number,
            numbering: published.map(Numbering::new),
            receiving: None,
            underway: Underway::default(),
            line: Line::default(),
            // What the client did before this was not looked at.
            leases: Leases::default(),
            unordered: true,
            flows: vec![false; flows].into(),
            refusal: None,
        }
    }

    /// The client closes it, and RabbitMQ's answer is to come. What waits for room goes with it.
    pub fn close(&mut self, io: &mut Io) {
        self.line.closing = true;
        self.underway.clear(io);
    }

    /// Whether closing it has to wait, because an ordinary message is passing: RabbitMQ closes the whole connection over
    /// a method in the middle of a content. When it is through, the client's last frame gives this back as
    /// [`Next::Refuse`].
    pub fn holds_refusal(&mut self, code: ReplyCode, text: &str, method: (u16, u16), io: &mut Io) -> bool {
        let is_passing = matches!(self.receiving, Some(Receiving::Passing(_)));
        if is_passing {
            self.refusal.get_or_insert((code, text.to_owned(), method));
            // A connection that is about to end reads no more of the client, and must not wait for this channel.
            self.underway.clear(io);
        }
        is_passing
    }

    /// Whether something waits for RabbitMQ or the store's answer: one that is not the client's must come before any that
    /// is. What waits for room is not in the way: nobody can tell how long it does.
    pub fn is_busy(&self) -> bool {
        self.underway.is_on_its_way() || self.flows.contains(&true)
    }

    /// Whether the client has to wait before it may send more.
    pub fn is_congested(&self) -> bool {
        self.refusal.is_none() && self.line.behind.len() + self.underway.bytes_on_their_way() > WAITING_BYTES_MAX
    }

    /// Bytes of a message that is not all there.
    pub fn begun_bytes(&self) -> usize {
        if let Some(Receiving::Body(held)) = &self.receiving { held.header.len() + held.body.len() } else { 0 }
    }

    /// Bytes that it holds in memory.
    pub fn held_bytes(&self) -> usize {
        self.underway.bytes() + self.begun_bytes() + self.line.held_bytes()
    }

    /// A frame from the client.
    pub fn handle_client(&mut self, frame: &Frame<'_>, io: &mut Io) -> Next {
        if self.line.closing {
            // Nothing may come here; RabbitMQ says so.
            return Next::Pass;
        }
        if !self.line.behind.is_empty() {
            self.line.behind.push(frame.raw);
            return Next::Nothing;
        }
        match (frame.kind, self.receiving.take()) {
            (kind::METHOD, None) => self.handle_method(frame, io),
            (kind::HEADER, Some(Receiving::Header(publish))) => self.handle_header(publish, frame, io),
            (kind::BODY, Some(Receiving::Body(mut held))) => {
                held.received += frame.payload.len() as u64;
                if held.received > held.body_bytes {
                    return self.broken(&held.publish, Some(&held.header), frame, io);
                }
                if matches!(held.what, What::Half(_)) {
                    held.body.extend_from_slice(frame.payload);
                }
                self.proceed(held, io)
            }
            (kind::BODY, Some(Receiving::Passing(rest))) => {
                let rest = rest.saturating_sub(frame.payload.len() as u64);
                self.receiving = (rest > 0).then_some(Receiving::Passing(rest));
                match self.refusal.take_if(|_| rest == 0) {
                    None => Next::Pass,
                    Some((code, text, method)) => {
                        io.to_upstream.extend_from_slice(frame.raw);
                        Next::Refuse(code, text, method)
                    }
                }
            }
            (_, Some(Receiving::Header(publish))) => self.broken(&publish, None, frame, io),
            (_, Some(Receiving::Body(held))) => self.broken(&held.publish, Some(&held.header), frame, io),
            // Out of order: RabbitMQ says so.
            (_, None | Some(Receiving::Passing(_))) => Next::Pass,
        }
    }

    /// A frame that may not stand here. RabbitMQ is shown what came, and says what it says to that.
    fn broken(&mut self, publish: &[u8], header: Option<&[u8]>, frame: &Frame<'_>, io: &mut Io) -> Next {
        self.pass(publish, header, io);
        io.to_upstream.extend_from_slice(frame.raw);
        Next::BreakOff
    }

    /// Lets RabbitMQ have the front of a message that was held.
    fn pass(&self, publish: &[u8], header: Option<&[u8]>, io: &mut Io) {
        let (out, number) = (&mut io.to_upstream, self.number);
        frame::write_method(out, number, id::BASIC_PUBLISH, |out| out.extend_from_slice(publish));
        if let Some(header) = header {
            frame::write(out, kind::HEADER, number, |out| out.extend_from_slice(header));
        }
    }

    fn handle_method(&mut self, frame: &Frame<'_>, io: &Io) -> Next {
        let method = frame.method_id();
        match method {
            Some(id::BASIC_PUBLISH) => {
                self.receiving = Some(Receiving::Header(frame.arguments().to_vec()));
                return Next::Nothing;
            }
            Some((CLASS_BASIC, _)) => return Next::Pass,
            _ if self.is_busy() => {
                self.line.behind.push(frame.raw);
                return Next::Nothing;
            }
            // The channel would be another one, with nobody to tell of what waits.
            Some(id::TX_SELECT) if !self.underway.is_empty() => {
                return io.refuse_full("half messages wait on this channel");
            }
            Some(id::CHANNEL_FLOW) => self.flows.push_back(false),
            Some(id::CONFIRM_SELECT) => drop(self.numbering.get_or_insert_with(|| Numbering::new(0))),
            _ => {
                self.unordered = true;
                self.leases.forget();
            }
        }
        Next::Pass
    }

    fn handle_header(&mut self, publish: Vec<u8>, frame: &Frame<'_>, io: &mut Io) -> Next {
        let what = match (Publish::parse(&publish), properties::body_size(frame.payload)) {
            (Ok(parsed), Ok(body_bytes)) => look(&parsed, frame.payload, io).map(|what| (what, body_bytes)),
            _ => None,
        };
        let Some((what, body_bytes)) = what else {
            if let Some(numbering) = &mut self.numbering {
                numbering.pass();
            }
            let rest = properties::body_size(frame.payload).unwrap_or(0);
            self.receiving = (rest > 0).then_some(Receiving::Passing(rest));
            self.pass(&publish, None, io);
            return Next::Pass;
        };
        io.published |= matches!(what, What::Half(_));
        let (header, body) = (frame.payload.to_vec(), Vec::new());
        self.proceed(Held { what, publish, header, body, received: 0, body_bytes }, io)
    }

    /// Goes on receiving, or takes the message if all of it is there.
    fn proceed(&mut self, held: Held, io: &mut Io) -> Next {
        if held.received < held.body_bytes {
            self.receiving = Some(Receiving::Body(held));
            return Next::Nothing;
        }
        let Held { what, publish, header, body, .. } = held;
        let stage = match what {
            What::Wrong(text) => return Next::Refuse(ReplyCode::PRECONDITION_FAILED, text, id::BASIC_PUBLISH),
            What::Decision(decision, name) => Stage::Decision(decision, name),
            What::Half(named) => {
                let (mut probe, mut kind) = (Vec::new(), None);
                let read = (Publish::parse(&publish), Properties::parse(&header));
                if let (Ok(publish), Ok(properties)) = read {
                    if !io.user_confirmed {
                        probe::write_claim(&mut probe, self.number, &publish, io.user());
                    }
                    probe::write(&mut probe, self.number, &publish, &properties);
                    kind = probe::kind(&publish, &properties);
                }
                let mut batch = Batch::default();
                batch.push(HalfMessage { publish: &publish, header: &header, body: &body });
                Stage::Ordering { probe, half: Half { named: Arc::new(named), batch, kind } }
            }
        };
        let tag = self.numbering.as_mut().map(Numbering::park);
        let bytes = publish.len() + header.len() + body.len();
        let is_decision = matches!(stage, Stage::Decision(..));
        self.underway.push(Waiting { ticket: io.next_ticket(), tag, bytes, stage }, io);
        // The answer also tells where RabbitMQ is within a content, which the confirm of a decision needs too.
        if std::mem::take(&mut self.unordered) {
            self.flows.push_back(true);
            method::write_flow(&mut io.to_upstream, self.number);
        }
        if is_decision {
            return self.decide_first(io);
        }
        if self.flows.contains(&true) {
            return Next::Nothing;
        }
        let is_next = self.underway.is_last_next_to_be_parked();
        let Some(waiting) = self.underway.last() else { return Next::Nothing };
        if let Stage::Ordering { half: Half { kind: Some(kind), .. }, .. } = &waiting.stage
            && self.leases.look(kind, io).holds()
            && is_next
        {
            let ticket = waiting.ticket;
            return self.handle_judged(ticket, Judgement::Fine, io);
        }
        waiting.ask(io.now).map_or(Next::Nothing, |asked| Next::Ask(vec![asked]))
    }

    /// Asks the store for a decision, if all before it are through, or wait for room that it may make, and the client may
    /// make it.
    fn decide_first(&mut self, io: &mut Io) -> Next {
        let Some(Waiting { ticket, stage: Stage::Decision(decision, name), .. }) = self.underway.first() else {
            return Next::Nothing;
        };
        let (ticket, decision, name) = (*ticket, *decision, name.clone());
        if self.underway.holds_back_first(&name) {
            return io.refuse_full("a message waits of the transaction that is to be decided");
        }
        let Some(Waiting { stage, .. }) = self.underway.get(ticket) else { return Next::Nothing };
        if !io.user_confirmed {
            let mut probe = Vec::new();
            probe::write_claim_anywhere(&mut probe, self.number, io.user());
            *stage = Stage::Confirming(decision, name);
            return Next::Ask(vec![(ticket, probe)]);
        }
        let channel = self.number;
        *stage = Stage::Deciding(name.clone());
        io.commands.push_back(Command::Decide { channel, ticket, decision, name });
        Next::Nothing
    }

    /// What RabbitMQ says of a half message.
    pub fn handle_judged(&mut self, ticket: Ticket, judgement: Judgement, io: &mut Io) -> Next {
        let Some(waiting) = self.underway.get(ticket) else { return Next::Nothing };
        if let Stage::Confirming(decision, name) = &waiting.stage {
            if let Err(text) = judgement.confirms(io.user(), io.vhost()) {
                return Next::Refuse(ReplyCode::PRECONDITION_FAILED, text, id::BASIC_PUBLISH);
            }
            waiting.stage = Stage::Decision(*decision, name.clone());
            io.user_confirmed = true;
            return self.decide_first(io);
        }
        let (half, asked) = match &mut waiting.stage {
            Stage::Judging(half, asked) => (half, Some(*asked)),
            Stage::Ordering { half, .. } => (half, None),
            _ => return Next::Nothing,
        };
        match judgement {
            refused @ Judgement::Refused { .. } => refused.refuse(),
            Judgement::Fine => {
                io.user_confirmed = true;
                if let (Some(kind), Some(asked)) = (half.kind.take(), asked) {
                    self.leases.confirmed(kind, asked, io);
                }
                let (named, batch) = (Arc::clone(&half.named), std::mem::take(&mut half.batch));
                if io.no_room.is_some() {
                    return self.hold_back(ticket, named, batch, io);
                }
                waiting.park(self.number, named, batch, io);
                Next::Nothing
            }
        }
    }

    /// The store has no room for a half message: it waits, and nothing else waits for it.
    fn hold_back(&mut self, ticket: Ticket, named: Arc<Named>, batch: Batch, io: &mut Io) -> Next {
        self.underway.hold_back(ticket, named, batch, io);
        if self.underway.bytes_held_back() > WAITING_BYTES_MAX {
            return io.refuse_full(&format!("more than {WAITING_BYTES_MAX} bytes wait on this channel"));
        }
        match self.decide_first(io) {
            Next::Nothing if !self.is_busy() => Next::Release,
            next => next,
        }
    }

    /// There is room again: what waited for it goes to the store, in order.
    pub fn have_room(&mut self, io: &mut Io) -> Next {
        self.underway.park_held_back(self.number, io);
        Next::Nothing
    }

    /// The store has kept, or not kept, a half message.
    pub fn handle_parked(&mut self, id: TransactionId, result: Result<(), StoreError>, io: &mut Io) -> Next {
        let Some(ticket) = self.underway.parking(id) else { return Next::Nothing };
        match result {
            Err(error) => Next::Refuse(error.reply_code(), error.to_string(), id::BASIC_PUBLISH),
            Ok(()) => self.done(ticket, io),
        }
    }

    /// The store's answer to a decision.
    pub fn handle_decided(&mut self, ticket: Ticket, result: Result<Verdict, StoreError>, io: &mut Io) -> Next {
        let Some(Waiting { stage: Stage::Deciding(name), .. }) = self.underway.get(ticket) else {
            return Next::Nothing;
        };
        match half::check_verdict(name, result) {
            Ok(()) => self.done(ticket, io),
            Err((code, text)) => Next::Refuse(code, text, id::BASIC_PUBLISH),
        }
    }

    /// RabbitMQ is asked anew about the next message of each kind.
    pub fn end_leases(&mut self) {
        self.leases.forget();
    }

    /// A half message or decision is durable: it is confirmed, and others may go on.
    fn done(&mut self, ticket: Ticket, io: &mut Io) -> Next {
        let Some(waiting) = self.underway.take(ticket, io) else { return Next::Nothing };
        if let (Some(numbering), Some(tag)) = (&mut self.numbering, waiting.tag) {
            let settle = numbering.parked(tag);
            let mut ack = Vec::new();
            method::write_settle(&mut ack, self.number, id::BASIC_ACK, settle);
            self.line.say(&ack, io);
        }
        if !self.underway.is_on_its_way() {
            return Next::Release;
        }
        self.decide_first(io)
    }

    /// A frame from RabbitMQ.
    pub fn handle_upstream(&mut self, frame: &Frame<'_>, io: &mut Io) -> Next {
        if self.line.pass_content(frame, io) {
            return Next::Nothing;
        }
        match frame.method_id() {
            Some(id::CHANNEL_FLOW_OK) if self.flows.pop_front() == Some(true) => match self.is_busy() {
                true if self.flows.contains(&true) => Next::Nothing,
                true => Next::Ask(self.underway.ask(io.now)),
                false => Next::Release,
            },
            Some(method @ (id::BASIC_ACK | id::BASIC_NACK)) => {
                let Some(numbering) = &mut self.numbering else { return Next::Pass };
                let Ok(settle) = Settle::parse(frame.arguments()) else { return Next::Pass };
                for settle in numbering.translate(settle) {
                    method::write_settle(&mut io.to_client, self.number, method, settle);
                }
                Next::Nothing
            }
            _ => Next::Pass,
        }
    }

    /// RabbitMQ is gone, and with it its judgement. What the store is asked already goes on.
    pub fn lose_upstream(&mut self, io: &mut Io) {
        self.underway.keep_asked(io);
    }

    /// The channel is over. What the store is asked to keep, it may keep; the rest is not kept.
    pub fn abandon(&mut self, io: &mut Io) {
        self.underway.clear(io);
        self.receiving = None;
    }

    /// Shows RabbitMQ the front of a message whose rest will not be held back any more.
    pub fn pass_receiving(&mut self, io: &mut Io) {
        match self.receiving.take() {
            Some(Receiving::Header(publish)) => self.pass(&publish, None, io),
            Some(Receiving::Body(held)) => self.pass(&held.publish, Some(&held.header), io),
            Some(Receiving::Passing(_)) | None => {}
        }
    }
}

/// Whether a message on an ordinary channel is the proxy's business; `header` is the payload of its content header.
pub fn is_ours(publish: &[u8], header: &[u8], control_exchange: &str) -> bool {
    let mut reader = Reader::new(publish);
    let is_control =
        reader.u16().and_then(|_| reader.short_string()).is_ok_and(|name| name == control_exchange.as_bytes());
    is_control || Properties::parse(header).is_ok_and(|properties| half::is_named(&properties))
}

/// What a message is, if it is not an ordinary one.
fn look(publish: &Publish<'_>, header: &[u8], io: &Io) -> Option<What> {
    let Ok(properties) = Properties::parse(header) else { return None };
    let body_bytes = properties::body_size(header).unwrap_or_default();
    if publish.exchange == io.settings.control_exchange.as_bytes() {
        return Some(match half::read_control(publish, &properties, body_bytes) {
            Ok((decision, name)) => What::Decision(decision, name),
            Err(text) => What::Wrong(text),
        });
    }
    match half::read(publish, &properties, false, io) {
        Ok(None) => None,
        Err(text) => Some(What::Wrong(text)),
        Ok(Some(_)) if probe::is_native(publish, &properties) => Some(What::Wrong(half::NATIVE.into())),
        Ok(Some(named)) => Some(match half::too_large(header.len(), body_bytes, &io.settings, io) {
            Some(text) => What::Wrong(text),
            None => What::Half(named),
        }),
    }
}
