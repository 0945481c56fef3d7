//! What the service manager is told, if one asks for it (`NOTIFY_SOCKET`, as systemd sets it): ready, reloading, stopping,
//! and signs of life. Without one nothing happens here.

use sd_notify::NotifyState;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// More than the grace, so that the end is never cut off by the manager first.
const AFTER_GRACE: Duration = Duration::from_secs(15);

/// Clients are served.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("clients are served")]);
}

/// A reload begins; it ends with [`ready`] or [`not_reloaded`].
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        // The time tells the manager that it is the answer to its signal, and not to one before.
        Ok(now) => tell(&[NotifyState::Reloading, now, NotifyState::Status("the configuration is reloaded")]),
        Err(error) => tracing::warn!(%error, "the service manager is not told of the reload: no clock"),
    }
}

/// Clients are served as before.
pub(crate) fn not_reloaded(reason: &str) {
    // The text has to be one line.
    let reason = reason.lines().next().unwrap_or_default();
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("the configuration was not reloaded: {reason}"))]);
}

/// The end begins, and takes at most `grace` and a little.
pub(crate) fn stopping(connections: usize, grace: Duration) {
    let limit = u32::try_from((grace + AFTER_GRACE).as_micros()).unwrap_or(u32::MAX);
    let status = format!("draining {connections} connections");
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(limit), NotifyState::Status(&status)]);
}

/// Gives signs of life for as long as the runtime takes turns, if the manager wants them. Must be called within the
/// runtime.
pub(crate) fn start_signs_of_life() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    // Twice as often as needed, as systemd's own manual has it.
    let mut ticks = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::spawn(async move {
        loop {
            ticks.tick().await;
            tell(&[NotifyState::Watchdog]);
        }
    });
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager can't be told");
    }
}
