//! Accepting clients: the connection limit, TLS, one task each.

use super::Shared;
use super::client;
use super::entry::{Entry, Seats};
use super::metrics::Refused;
use crate::places::{Leave, Places, told_to};
use crate::protocol::handshake::is_loopback;
use crate::roster::Seated;
use crate::store::system_clock;
use crate::tls::ServerTls;
use crate::upstream::{ClientAddresses, Stream};
use prometheus_client::metrics::gauge::Gauge;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsStream;

/// A pause after accept failed, for want of file descriptors say: trying again at once would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts clients on any number of ports, and knows how many there are.
#[derive(Debug, Clone)]
pub struct Listener {
    shared: Arc<Shared>,
    /// Taken by all that were accepted and have not ended.
    sessions: Arc<Seats>,
    /// Taken by those that have logged in.
    seats: Arc<Seats>,
    numbers: Arc<AtomicU64>,
}

/// A connection that is counted until this is dropped, however its session ends.
struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Listener {
    /// Serves as `shared` says.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, sessions: Arc::default(), seats: Arc::default(), numbers: Arc::default() }
    }

    /// Accepts until the shutdown is requested.
    pub async fn serve(self, listener: TcpListener, tls: Option<Arc<ServerTls>>) {
        // Each port has its own: who is in the middle of TLS has said nothing yet.
        let places = Places::default();
        let mut shutdown = self.shared.shutdown.clone();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.requested() => return,
            };
            match accepted {
                Ok((tcp, peer)) => {
                    self.admit(tcp, peer, &places, tls.clone());
                    // It has a turn, and can say something, before another wants its place.
                    tokio::task::yield_now().await;
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Returns when every session has ended.
    pub async fn ended(&self) {
        self.sessions.all_free().await;
    }

    /// Sessions that have not ended.
    pub fn sessions(&self) -> usize {
        self.sessions.taken()
    }

    fn admit(&self, tcp: TcpStream, peer: SocketAddr, places: &Places, tls: Option<Arc<ServerTls>>) {
        self.shared.metrics.accepted.inc();
        let terms = self.shared.terms();
        if !self.seats.has_free(terms.connections_max) {
            self.shared.metrics.refused(Refused::Limit);
            tracing::warn!(%peer, limit = terms.connections_max, "refused: listen.max_connections are open");
            return;
        }
        let (place, leave) = places.enter(peer.ip(), terms.handshakes);
        let entry = Entry::new(place, &self.seats);
        let session = self.sessions.take(usize::MAX);
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        let shared = Arc::clone(&self.shared);
        let counted = Counted::new(&shared.metrics.connections);
        tokio::spawn(async move {
            let seated = shared.roster.seat(number, peer, tls.is_some(), system_clock());
            if let Err(error) = greet(shared, &seated, (entry, leave), tcp, tls).await {
                tracing::debug!(connection = number, %peer, %error, "connection failed");
            }
            // In this order: who sees one fewer finds its seat free.
            drop(session);
            drop(counted);
        });
    }
}

/// Does TLS if the port has it, then runs the session.
async fn greet(
    shared: Arc<Shared>,
    seated: &Seated,
    (entry, mut leave): (Entry, Leave),
    tcp: TcpStream,
    tls: Option<Arc<ServerTls>>,
) -> io::Result<()> {
    let peer = seated.seat().peer;
    tcp.set_nodelay(true)?;
    let addresses = ClientAddresses { source: peer, destination: tcp.local_addr()? };
    let stream = match tls {
        None => Stream::Plain(tcp),
        Some(tls) => {
            let accepting = tokio::time::timeout(shared.terms().handshake_timeout, tls.acceptor().accept(tcp));
            let accepted = tokio::select! {
                accepted = accepting => accepted,
                () = told_to(&mut leave) => {
                    shared.metrics.refused(Refused::Handshakes);
                    return Ok(());
                }
            };
            match accepted {
                Ok(Ok(stream)) => Stream::Tls(Box::new(TlsStream::Server(stream))),
                failed => {
                    shared.metrics.refused(Refused::Tls);
                    return failed.map(|_| ()).map_err(|_| io::ErrorKind::TimedOut.into());
                }
            }
        }
    };
    let from_loopback = is_loopback(peer.ip());
    client::Session::new(shared, Arc::clone(seated.seat()), (entry, leave), addresses, from_loopback, stream)
        .run()
        .await;
    Ok(())
}
