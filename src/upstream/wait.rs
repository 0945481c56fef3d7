//! Clients that wait while no node answers. One of them dials for all; when it has come through, the others follow, not
//! all at once.

use super::{ClientAddresses, ConnectError, Stream, Upstream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, sleep, sleep_until};

/// Between two looks of the one that dials.
const PAUSE: Duration = Duration::from_millis(200);
/// How far apart those who follow are on average, and the longest that any of them is put off.
const APART: Duration = Duration::from_millis(5);
const PUT_OFF_MAX: Duration = Duration::from_secs(1);

/// Those who wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    count: AtomicUsize,
    /// Held by the one that dials.
    dialer: Mutex<()>,
    /// It has come through.
    reached: Notify,
}

/// One who waits, until it is dropped.
struct Counted<'a>(&'a Waiting);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Waiting {
    fn enter(&self) -> (Counted<'_>, bool) {
        let is_first = self.count.fetch_add(1, Ordering::Relaxed) == 0;
        (Counted(self), is_first)
    }

    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

impl Upstream {
    /// As [`Upstream::connect`], but waits until `until` for a node that answers. `away` is told why none does when the
    /// wait begins.
    ///
    /// # Errors
    /// [`ConnectError`] with the reason of each node at the last try.
    pub async fn connect_by(
        &self,
        client: Option<ClientAddresses>,
        until: Instant,
        away: impl Fn(&ConnectError),
    ) -> Result<Stream, ConnectError> {
        let waiting = &self.waiting;
        // While others wait there is one that dials already.
        let place = if waiting.count() == 0 || until <= Instant::now() {
            let error = match self.connect(client).await {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            if until <= Instant::now() {
                return Err(error);
            }
            away(&error);
            let (place, is_first) = waiting.enter();
            if is_first {
                tracing::warn!(%error, "RabbitMQ can't be reached; clients that connect wait for it");
            }
            place
        } else {
            waiting.enter().0
        };
        let stream = loop {
            let dials = tokio::select! {
                biased;
                () = waiting.reached.notified() => None,
                dials = waiting.dialer.lock() => Some(dials),
                () = sleep_until(until) => break self.connect(client).await?,
            };
            if dials.is_none() {
                let spread = (APART * u32::try_from(waiting.count()).unwrap_or(u32::MAX)).min(PUT_OFF_MAX);
                sleep(spread.mul_f64(fastrand::f64())).await;
            }
            match self.connect(client).await {
                Ok(stream) => {
                    waiting.reached.notify_waiters();
                    break stream;
                }
                Err(error) if until <= Instant::now() => return Err(error),
                // Whoever dials goes on dialing; whoever follows and finds the door closed waits again.
                Err(_) => sleep_until(until.min(Instant::now() + PAUSE)).await,
            }
        };
        drop(place);
        if waiting.count() == 0 {
            tracing::info!("no client waits for RabbitMQ any more");
        }
        Ok(stream)
    }

    /// How many clients wait for a node.
    pub fn waiting(&self) -> usize {
        self.waiting.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UpstreamUrl;
    use std::sync::Arc;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn upstream() -> Arc<Upstream> {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = UpstreamUrl { tls: false, host: "127.0.0.1".into(), port: gone.local_addr().unwrap().port() };
        Arc::new(Upstream::new(vec![url], None, false, Duration::from_secs(5)))
    }

    #[tokio::test]
    async fn all_who_wait_come_through_and_not_all_at_once() {
        const CLIENTS: usize = 100;
        let upstream = upstream().await;
        let until = Instant::now() + PATIENCE;
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..CLIENTS {
            let upstream = Arc::clone(&upstream);
            clients.spawn(async move { upstream.connect_by(None, until, |_| {}).await });
        }
        while upstream.waiting() < CLIENTS {
            tokio::task::yield_now().await;
        }
        let listener = TcpListener::bind(("127.0.0.1", upstream.urls()[0].port)).await.unwrap();
        let mut came = Vec::new();
        while timeout(2 * PUT_OFF_MAX, listener.accept()).await.is_ok() {
            came.push(Instant::now());
        }
        assert_eq!(came.len(), CLIENTS, "each came once");
        assert!(came[CLIENTS - 1] - came[0] > APART * 20, "they did not come all at once");
        while let Some(came) = clients.join_next().await {
            came.unwrap().expect("a connection");
        }
        assert_eq!(upstream.waiting(), 0);
    }

    #[tokio::test]
    async fn the_wait_ends_and_without_one_there_is_none() {
        let upstream = upstream().await;
        let away = std::cell::Cell::new(0);
        let begun = Instant::now();
        upstream.connect_by(None, begun, |_| away.set(1)).await.expect_err("nobody answers");
        assert!(begun.elapsed() < Duration::from_secs(1) && away.get() == 0);
        let wait = Duration::from_millis(700);
        let (one, other) = tokio::join!(
            upstream.connect_by(None, Instant::now() + wait, |_| away.set(2)),
            upstream.connect_by(None, Instant::now() + wait, |_| {})
        );
        assert!(one.is_err() && other.is_err() && away.get() == 2);
        assert!(begun.elapsed() >= wait && begun.elapsed() < wait + PATIENCE);
        assert_eq!(upstream.waiting(), 0);
    }

    #[tokio::test]
    async fn when_the_one_that_dials_gives_up_another_takes_over() {
        let upstream = upstream().await;
        let until = Instant::now() + PATIENCE;
        let dials = tokio::spawn({
            let upstream = Arc::clone(&upstream);
            async move { upstream.connect_by(None, until, |_| {}).await }
        });
        while upstream.waiting() < 1 {
            tokio::task::yield_now().await;
        }
        let follows = tokio::spawn({
            let upstream = Arc::clone(&upstream);
            async move { upstream.connect_by(None, until, |_| {}).await }
        });
        while upstream.waiting() < 2 {
            tokio::task::yield_now().await;
        }
        dials.abort();
        let _listener = TcpListener::bind(("127.0.0.1", upstream.urls()[0].port)).await.unwrap();
        follows.await.unwrap().expect("a connection");
    }
}
