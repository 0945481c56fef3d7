//! The port's connections: so many at a time, and none that holds its place by being slow.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Sleep, sleep};

/// Connections at one time, the streams of dashboards included. One more waits to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// How long a peer may take to send the head of a request, and may be silent between two.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// How long a peer may take nothing of an answer.
const TAKE_WITHIN: Duration = Duration::from_secs(30);
/// Bytes of a head, and of what is kept for a peer that does not read.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// A pause after accept failed, for want of file descriptors say: trying again at once would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until the future is dropped, and its connections with it.
pub(super) async fn run(listener: TcpListener, router: Router) -> Infallible {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await.expect("nobody closes it");
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((tcp, peer)) => {
                let router = router.clone();
                connections.spawn(async move {
                    if let Err(error) = serve(tcp, peer, router).await {
                        tracing::debug!(%peer, %error, "a connection to the admin port failed");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed at the admin port");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(tcp: TcpStream, peer: SocketAddr, router: Router) -> hyper::Result<()> {
    let service = TowerToHyperService::new(router.layer(Extension(ConnectInfo(peer))));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(Impatient::new(tcp, TAKE_WITHIN)), service)
        .await
}

/// A stream that fails when its peer takes nothing for too long.
struct Impatient<S> {
    stream: S,
    within: Duration,
    /// Runs while something waits to be taken.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    fn new(stream: S, within: Duration) -> Self {
        Self { stream, within, waiting: None }
    }

    fn judge<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let within = self.within;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(within)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.judge(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.judge(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_given_up_and_who_takes_slowly_is_not() {
        let (near, mut far) = duplex(4);
        let mut stream = Impatient::new(near, TAKE_WITHIN);
        let slow = tokio::spawn(async move {
            let mut taken = [0; 4];
            for _ in 0..3 {
                sleep(TAKE_WITHIN - Duration::from_secs(1)).await;
                far.read_exact(&mut taken).await.expect("there is more");
            }
            far
        });
        stream.write_all(&[7; 16]).await.expect("it is taken in the end");
        let _far = slow.await.expect("it took all");
        let error = stream.write_all(&[7; 16]).await.expect_err("nobody takes it");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    async fn port() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let router = Router::new().route("/", axum::routing::get(async || "ok"));
        tokio::spawn(async move { match run(listener, router).await {} });
        address
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_come_ends_the_connection() {
        let address = port().await;
        for slow in ["", "GET / HTTP/1.1\r\nHost: x\r\nX-"] {
            let mut stream = TcpStream::connect(address).await.expect("connected");
            stream.write_all(slow.as_bytes()).await.expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("an end");
            assert!(!answer.contains(" 200 "), "{answer}");
        }
    }

    #[tokio::test]
    async fn so_many_are_served_at_a_time_and_the_next_one_when_one_has_gone() {
        let address = port().await;
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            held.push(TcpStream::connect(address).await.expect("connected"));
        }
        let ask = async |stream: &mut TcpStream| {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.map(|_| answer)
        };
        assert_eq!(&ask(&mut held[0]).await.expect("an answer"), b"HTTP/1.1 200");
        let mut last = TcpStream::connect(address).await.expect("it waits to be accepted");
        let (answer, ()) = tokio::join!(ask(&mut last), async { drop(held.pop()) });
        assert_eq!(&answer.expect("an answer"), b"HTTP/1.1 200");
    }
}
