//! Accepting clients: the connection limit, TLS, one task each.

use super::Shared;
use super::client;
use crate::metrics::Refused;
use crate::protocol::handshake::is_loopback;
use crate::roster::Seated;
use crate::store::system_clock;
use crate::tls::ServerTls;
use crate::upstream::{ClientAddresses, Stream};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsStream;

/// A pause after accept failed, for want of file descriptors say: trying again at once would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts clients on any number of ports, and knows how many there are.
#[derive(Debug, Clone)]
pub struct Listener {
    shared: Arc<Shared>,
    seats: Arc<Seats>,
    numbers: Arc<AtomicU64>,
}

/// Counts the clients that are there. The limit is not kept here, because it may change.
#[derive(Debug, Default)]
struct Seats(watch::Sender<usize>);

/// One of them, until it is dropped.
struct Seat(Arc<Seats>);

impl Seats {
    /// One more, if there are fewer than `max`.
    fn take(self: &Arc<Self>, max: usize) -> Option<Seat> {
        let is_free = self.0.send_if_modified(|taken| {
            let is_free = *taken < max;
            *taken += usize::from(is_free);
            is_free
        });
        is_free.then(|| Seat(Arc::clone(self)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.0.send_modify(|taken| *taken -= 1);
    }
}

impl Listener {
    /// Serves as `shared` says.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, seats: Arc::default(), numbers: Arc::default() }
    }

    /// Accepts until the shutdown is requested.
    pub async fn serve(self, listener: TcpListener, tls: Option<Arc<ServerTls>>) {
        let mut shutdown = self.shared.shutdown.clone();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.requested() => return,
            };
            match accepted {
                Ok((tcp, peer)) => self.admit(tcp, peer, tls.clone()),
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Returns when every session has ended.
    pub async fn ended(&self) {
        // Fails only without a sender, which is here.
        let _ = self.seats.0.subscribe().wait_for(|taken| *taken == 0).await;
    }

    /// Sessions that have not ended.
    pub fn sessions(&self) -> usize {
        *self.seats.0.borrow()
    }

    fn admit(&self, tcp: TcpStream, peer: SocketAddr, tls: Option<Arc<ServerTls>>) {
        self.shared.metrics.connections_accepted.inc();
        let terms = self.shared.terms();
        let Some(seat) = self.seats.take(terms.connections_max) else {
            self.shared.metrics.refused(Refused::Limit);
            tracing::warn!(%peer, limit = terms.connections_max, "refused: listen.max_connections are open");
            return;
        };
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        let shared = Arc::clone(&self.shared);
        let gauge = shared.metrics.connections.clone();
        gauge.inc();
        tokio::spawn(async move {
            let seated = shared.roster.seat(number, peer, tls.is_some(), system_clock());
            if let Err(error) = greet(shared, &seated, tcp, tls).await {
                tracing::debug!(connection = number, %peer, %error, "connection failed");
            }
            // In this order: who sees one fewer finds its seat free.
            drop(seat);
            gauge.dec();
        });
    }
}

/// Does TLS if the port has it, then runs the session.
async fn greet(shared: Arc<Shared>, seated: &Seated, tcp: TcpStream, tls: Option<Arc<ServerTls>>) -> io::Result<()> {
    let peer = seated.seat().peer;
    tcp.set_nodelay(true)?;
    let addresses = ClientAddresses { source: peer, destination: tcp.local_addr()? };
    let stream = match tls {
        None => Stream::Plain(tcp),
        Some(tls) => match tokio::time::timeout(shared.terms().handshake_timeout, tls.acceptor().accept(tcp)).await {
            Ok(Ok(stream)) => Stream::Tls(Box::new(TlsStream::Server(stream))),
            failed => {
                shared.metrics.refused(Refused::Tls);
                return failed.map(|_| ()).map_err(|_| io::ErrorKind::TimedOut.into());
            }
        },
    };
    let from_loopback = is_loopback(peer.ip());
    client::Session::new(shared, Arc::clone(seated.seat()), addresses, from_loopback, stream).run().await;
    Ok(())
}
