//! The connection over which messages are tried: made when there are some, and left when there have been none for a while.

use super::{Ruling, Trial};
use crate::amqp::frame;
use crate::amqp::method::{Close, id};
use crate::amqp::reply_code::ReplyCode;
use crate::relay::connection::{GOODBYE_TIMEOUT, Lost, Shared};
use crate::relay::login::Connection;
use crate::relay::message::Message;
use crate::relay::status::VhostStatus;
use crate::relay::wire::Wire;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::{sleep, sleep_until, timeout, timeout_at};

/// How long the connection stays when nothing is to be tried.
const IDLE: Duration = Duration::from_secs(10);

/// Tries the messages that come, until nobody can send more.
pub(in crate::relay) async fn start(
    vhost: Arc<str>,
    shared: Arc<Shared>,
    status: Arc<VhostStatus>,
    mut messages: UnboundedReceiver<Vec<Message>>,
    rulings: UnboundedSender<(Message, Ruling)>,
) {
    let (mut trial, mut failures, mut node) = (Trial::new(), 0, 0);
    loop {
        if trial.is_idle() {
            match messages.recv().await {
                Some(more) => trial.add(more),
                None => return,
            }
        }
        let lost = match connect(&vhost, &shared, node).await {
            Ok((connection, number)) => {
                status.set_trial(None);
                let began = trial.answers;
                let end = converse(&mut trial, connection, &shared, &mut messages, &rulings).await;
                match &end {
                    Err(lost @ Lost::Closed(code, text)) if lost.accuses() => trial.closed(*code, text),
                    _ => trial.disconnected(),
                }
                (failures, node) = if trial.answers > began { (0, 0) } else { (failures, number + 1) };
                end
            }
            Err(lost) => {
                node += 1;
                Err(lost)
            }
        };
        for ruling in trial.rulings.drain(..) {
            // A virtual host's task that is gone needs no ruling: the store has the message.
            let _ = rulings.send(ruling);
        }
        let Err(lost) = lost else {
            if messages.is_closed() {
                return;
            }
            continue;
        };
        tracing::info!(%vhost, reason = %lost, "the connection for messages under suspicion ended");
        if trial.is_idle() {
            continue;
        }
        failures = u32::saturating_add(failures, 1);
        if failures > 1 {
            status.set_trial(Some(lost.to_string()));
        }
        let pause = sleep(shared.settings.borrow().retry.pause(failures));
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                more = messages.recv() => match more {
                    Some(more) => trial.add(more),
                    None => return,
                },
            }
        }
    }
}

async fn connect(vhost: &str, shared: &Shared, node: usize) -> Result<(Connection, usize), Lost> {
    let credentials = shared.settings.borrow().credentials.clone();
    let (stream, number) = shared.upstream.connect_from(node, None).await?;
    Ok((Connection::open(stream, &credentials, vhost).await?, number))
}

/// Over one connection. `Ok`: there was nothing to try for a while, or nobody wants to know.
async fn converse(
    trial: &mut Trial,
    connection: Connection,
    shared: &Shared,
    messages: &mut UnboundedReceiver<Vec<Message>>,
    rulings: &UnboundedSender<(Message, Ruling)>,
) -> Result<(), Lost> {
    let mut wire = Wire::new(connection);
    let (mut blocked, mut idle_since) = (false, Instant::now());
    trial.connected(&mut wire.writer.out);
    loop {
        let Wire { reader, writer, frame_bytes_max, heartbeat } = &mut wire;
        let now = Instant::now();
        reader.frames::<Lost>(|frame| match frame.method_id() {
            _ if frame.channel != 0 => Ok(trial.handle_frame(frame, &mut writer.out, now)?),
            Some(id::CONNECTION_CLOSE) => {
                let close = Close::parse(frame.arguments())?;
                Err(Lost::Closed(close.code, String::from_utf8_lossy(close.text).into_owned()))
            }
            Some(id::CONNECTION_BLOCKED) => {
                blocked = true;
                Ok(())
            }
            Some(id::CONNECTION_UNBLOCKED) => {
                blocked = false;
                trial.excuse(now);
                Ok(())
            }
            _ => Ok(()),
        })?;
        if !blocked {
            trial.fill(&mut writer.out, *frame_bytes_max, now);
        }
        for ruling in trial.rulings.drain(..) {
            let _ = rulings.send(ruling);
        }
        if !trial.is_idle() {
            idle_since = now;
        }
        let patience = shared.settings.borrow().confirm_timeout;
        let owed = trial.oldest_since().filter(|_| !blocked).map(|since| since + patience);
        let silent = reader.last_read + *heartbeat * 2;
        let beat = writer.last_write + *heartbeat / 2;
        let idle = idle_since + IDLE;
        if owed.is_some_and(|owed| owed <= now) {
            trial.acquit();
            return goodbye(wire).await;
        }
        if idle <= now {
            return goodbye(wire).await;
        }
        if silent <= now {
            return Err(Lost::Silent);
        }
        if beat <= now {
            if writer.out.is_empty() {
                writer.out.extend_from_slice(&frame::HEARTBEAT);
            }
            writer.last_write = now;
        }
        let wake = owed.into_iter().chain([silent, beat, idle]).min().unwrap_or(idle);
        let dirty = !writer.out.is_empty();
        tokio::select! {
            result = writer.write(), if dirty => result?,
            result = reader.read() => result?,
            more = messages.recv() => match more {
                Some(more) => trial.add(more),
                None => return goodbye(wire).await,
            },
            () = sleep_until(wake.into()) => {}
        }
    }
}

/// As far as RabbitMQ plays along.
async fn goodbye(mut wire: Wire) -> Result<(), Lost> {
    Close { code: ReplyCode::SUCCESS, text: b"goodbye", method: (0, 0) }.write(&mut wire.writer.out, 0);
    let until = tokio::time::Instant::now() + GOODBYE_TIMEOUT;
    let _ = timeout(GOODBYE_TIMEOUT, wire.writer.write()).await;
    let mut is_over = false;
    while !is_over && timeout_at(until, wire.reader.read()).await.is_ok_and(|read| read.is_ok()) {
        wire.reader.frames::<Lost>(|frame| {
            is_over |= frame.method_id() == Some(id::CONNECTION_CLOSE_OK);
            Ok(())
        })?;
    }
    Ok(())
}
