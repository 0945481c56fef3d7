//! What the operator says by signals: SIGTERM or SIGINT drains, a second one ends at once, SIGHUP reads
//! the configuration again.

use std::{io, process};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

/// Tells every part that the proxy is to end. Clones see the same request.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// The other end of a [`Shutdown`]; dropping it requests the end as well.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

impl Shutdown {
    /// Both ends.
    pub fn pair() -> (ShutdownTrigger, Shutdown) {
        let (sender, receiver) = watch::channel(false);
        (ShutdownTrigger(sender), Shutdown(receiver))
    }

    /// Returns once the end was requested, at once if it was already. May be cancelled and called again.
    pub async fn requested(&mut self) {
        // An error means that the trigger is gone, which counts as a request.
        let _ = self.0.wait_for(|requested| *requested).await;
    }

    /// Whether the end was requested.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

impl ShutdownTrigger {
    /// Requests the end.
    pub fn request(&self) {
        self.0.send_replace(true);
    }
}

/// The process's signals, as the app sees them.
#[derive(Debug)]
pub(crate) struct Signals {
    /// SIGTERM or SIGINT.
    pub shutdown: Shutdown,
    /// One item for each SIGHUP; several that come before one is taken count as one.
    pub reload: mpsc::Receiver<()>,
}

impl Signals {
    /// Takes over SIGTERM, SIGINT and SIGHUP for the rest of the process's life. Must be called within the runtime.
    ///
    /// The second SIGTERM or SIGINT ends the process at once, with exit code 1: whoever sends it does not want to wait
    /// for commits, and nothing that was promised depends on a clean end.
    /// # Errors
    /// When the system refuses a handler.
    pub(crate) fn install() -> io::Result<Signals> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let (trigger, shutdown) = Shutdown::pair();
        let (reload_sender, reload) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    _ = hangup.recv() => {
                        // Full means that a reload is about to happen anyway.
                        let _ = reload_sender.try_send(());
                        continue;
                    }
                }
                if trigger.0.send_replace(true) {
                    tracing::warn!("second signal: ending at once");
                    process::exit(1);
                }
            }
        });
        Ok(Signals { shutdown, reload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_clone_sees_the_request_before_and_after() {
        let (trigger, mut early) = Shutdown::pair();
        let mut late = early.clone();
        assert!(!early.is_requested());
        let waiting = tokio::spawn(async move { early.requested().await });
        trigger.request();
        waiting.await.expect("the waiter is told");
        late.requested().await;
        assert!(late.is_requested());
    }

    #[tokio::test]
    async fn a_trigger_that_is_gone_counts_as_a_request() {
        let (trigger, mut shutdown) = Shutdown::pair();
        drop(trigger);
        shutdown.requested().await;
        assert!(shutdown.is_requested());
    }
}
