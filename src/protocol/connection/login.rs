//! From RabbitMQ's start to its open-ok: typed steps, each taken once.
//!
//! Client and RabbitMQ take turns. What a client sends before its turn waits where it is, in the session's input; so behind
//! connection.open, where RabbitMQ allows more to be sent, nothing is looked at before open-ok, and then all of it as usual.
//! What is not the step that is due goes to RabbitMQ, which ends the connection for it; nothing behind it counts.

use super::{Connection, Phase, REFUSED_FOR};
use crate::amqp::frame::{self, Frame, kind};
use crate::amqp::method::{self, Start, StartOk, Tune, id};
use crate::amqp::reply_code::ReplyCode;
use crate::protocol::command::{Command, Opened, Refusal};
use crate::protocol::handshake::{self, Claim, Identity, LoginRefused, LoginRules};

/// What is due next, with what the steps before it have told.
#[derive(Debug, Default)]
pub(super) enum Handshake {
    /// RabbitMQ's start.
    Start,
    /// The client's start-ok.
    StartOk,
    /// RabbitMQ's tune, if it lets the client in.
    Tune(Box<Applicant>),
    /// The client's tune-ok.
    TuneOk(Box<Applicant>),
    /// The client's open.
    Open(Box<Applicant>),
    /// RabbitMQ's open-ok, which makes an identity of the claim.
    OpenOk(Box<Opened>),
    /// RabbitMQ's end of it: something else was said than was due.
    #[default]
    End,
}

/// A client that RabbitMQ has not let in.
#[derive(Debug)]
pub(super) struct Applicant {
    claim: Claim,
    heartbeat: u16,
    product: String,
    version: Option<String>,
    name: Option<String>,
}

impl Handshake {
    /// Whether the client may speak; before, what it sends has to wait.
    pub(super) fn is_clients_turn(&self) -> bool {
        match self {
            Self::StartOk | Self::TuneOk(_) | Self::Open(_) | Self::End => true,
            Self::Start | Self::Tune(_) | Self::OpenOk(_) => false,
        }
    }
}

impl Connection {
    /// A frame of the client before open-ok.
    pub(super) fn login_client_frame(&mut self, frame: &Frame<'_>) {
        if frame.raw == frame::HEARTBEAT {
            return;
        }
        let method = frame.method_id().filter(|_| frame.channel == 0);
        self.handshake = match (std::mem::take(&mut self.handshake), method) {
            (Handshake::StartOk, Some(id::CONNECTION_START_OK)) => match StartOk::parse(frame.arguments()) {
                Ok(start_ok) => match self.io.settings.login.check(&start_ok) {
                    Ok(claim) => Handshake::Tune(Box::new(self.applicant(claim, &start_ok))),
                    Err(refused) => return self.refuse_login(&start_ok, refused),
                },
                Err(_) => Handshake::End,
            },
            (Handshake::TuneOk(mut applicant), Some(id::CONNECTION_TUNE_OK)) => match Tune::parse(frame.arguments()) {
                Ok(tune) => {
                    self.io.frame_max = tune.frame_max;
                    self.channel_max = tune.channel_max;
                    applicant.heartbeat = tune.heartbeat;
                    Handshake::Open(applicant)
                }
                Err(_) => Handshake::End,
            },
            (Handshake::Open(applicant), Some(id::CONNECTION_OPEN)) => {
                let vhost = method::open_vhost(frame.arguments()).ok().and_then(|vhost| str::from_utf8(vhost).ok());
                // Two names that are no text could not be told apart in what is kept.
                vhost.map_or(Handshake::End, |vhost| Handshake::OpenOk(Box::new(applicant.opens(vhost))))
            }
            // Of what comes behind a mistake RabbitMQ takes only the answer to its own close.
            (Handshake::End, Some(id::CONNECTION_CLOSE | id::CONNECTION_CLOSE_OK)) => Handshake::End,
            (Handshake::End, _) => return,
            _ => Handshake::End,
        };
        self.io.to_upstream.extend_from_slice(frame.raw);
    }

    fn applicant(&mut self, claim: Claim, start_ok: &StartOk<'_>) -> Applicant {
        let properties = start_ok.client_properties;
        self.understands_blocked = handshake::has_capability(properties, b"connection.blocked");
        let text = |name: &[u8]| handshake::property(properties, name);
        Applicant {
            claim,
            heartbeat: 0,
            product: text(b"product").unwrap_or_default(),
            version: text(b"version"),
            name: text(b"connection_name"),
        }
    }

    fn refuse_login(&mut self, start_ok: &StartOk<'_>, refused: LoginRefused) {
        let told = handshake::has_capability(start_ok.client_properties, b"authentication_failure_close");
        if refused == LoginRefused::LoopbackUser && told {
            let mechanism = String::from_utf8_lossy(start_ok.mechanism);
            let text = ReplyCode::ACCESS_REFUSED.text(&format!(
                "Login was refused using authentication mechanism {mechanism}. For details see the broker logfile."
            ));
            self.write_close(ReplyCode::ACCESS_REFUSED, &text);
        }
        self.refuse_in_silence(Refusal::Login);
    }

    /// What comes is no login that RabbitMQ would read: it says nothing either, and closes.
    pub(super) fn refuse_in_silence(&mut self, why: Refusal) {
        self.io.commands.push_back(Command::Refused(why));
        self.phase = Phase::Refused;
        self.phase_until = Some(self.io.now + REFUSED_FOR);
    }

    /// A frame from RabbitMQ before its open-ok, or that.
    pub(super) fn login_upstream_frame(&mut self, frame: &Frame<'_>) {
        if frame.channel == 0 && frame.kind == kind::HEARTBEAT {
            return;
        }
        let method = frame.method_id().filter(|_| frame.channel == 0);
        self.handshake = match (std::mem::take(&mut self.handshake), method) {
            (Handshake::Start, Some(id::CONNECTION_START)) => return self.start(frame),
            (Handshake::Tune(applicant), Some(id::CONNECTION_TUNE)) => {
                if let Ok(tune) = Tune::parse(frame.arguments()) {
                    self.io.server_frame_max = tune.frame_max;
                }
                Handshake::TuneOk(applicant)
            }
            (Handshake::OpenOk(opened), Some(id::CONNECTION_OPEN_OK)) => {
                self.phase = Phase::Running;
                self.phase_until = None;
                self.io.identity = Some(opened.identity.clone());
                self.io.commands.push_back(Command::Opened(*opened));
                Handshake::End
            }
            (_, Some(id::CONNECTION_CLOSE | id::CONNECTION_CLOSE_OK)) => Handshake::End,
            // RabbitMQ goes on with another login than the one that was followed here.
            _ => return self.close(),
        };
        self.io.to_client.extend_from_slice(frame.raw);
    }

    fn start(&mut self, frame: &Frame<'_>) {
        let Ok(start) = Start::parse(frame.arguments()) else { return self.handle_upstream_lost() };
        let version = handshake::property(start.server_properties, b"version");
        self.io.server_message_bytes_max = handshake::message_bytes_max(version.as_deref());
        self.login_frame_max = handshake::login_frame_max(version.as_deref());
        let mechanisms = LoginRules::offer(start.mechanisms);
        Start { mechanisms: &mechanisms, ..start }.write(&mut self.io.to_client);
        self.handshake = Handshake::StartOk;
    }
}

impl Applicant {
    fn opens(self, vhost: &str) -> Opened {
        let Self { claim: Claim { user }, heartbeat, product, version, name } = self;
        let identity = Identity { user, vhost: vhost.into() };
        Opened { identity, heartbeat, product, version, name }
    }
}
