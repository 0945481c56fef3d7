//! The port's connections: so many at a time, and none that holds its place by being slow.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use futures_util::future::select_all;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};

use super::metrics::AdminMetrics;
use super::problem::Problem;
use crate::places::{Capacity, Leave, Place, Places, told_to};

/// Connections that have asked for nothing yet, or for no more than [`HEALTH`].
const AT_THE_DOOR: Capacity = Capacity { all: 256, each: 128 };
/// Connections that have asked for more, the streams of dashboards included.
const INSIDE: Capacity = Capacity { all: 256, each: 128 };
/// What is answered at the door: so nobody's requests keep it from being answered, and it is never in anybody's way.
const HEALTH: [&str; 3] = ["/healthz", "/readyz", "/metrics"];
/// How long a peer may take to send the head of a request, and may be silent between two.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// How long a peer may take nothing of an answer.
const TAKE_WITHIN: Duration = Duration::from_secs(30);
/// Bytes of a head, and of what is kept for a peer that does not read.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// A pause after accept failed, for want of file descriptors say: trying again at once would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// When there may be a place for a request that found none.
const COME_BACK_AFTER: Duration = Duration::from_secs(1);

/// Serves until the future is dropped, and its connections with it.
pub(super) async fn run(listeners: Vec<TcpListener>, router: Router, metrics: AdminMetrics) -> Infallible {
    let (door, inside) = (Places::default(), Places::default());
    let ports = listeners.into_iter().map(|listener| Box::pin(accept(listener, &door, &inside, &router, &metrics)));
    select_all(ports).await.0
}

async fn accept(
    listener: TcpListener,
    door: &Places,
    inside: &Places,
    router: &Router,
    metrics: &AdminMetrics,
) -> Infallible {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((tcp, peer)) => {
                let (place, leave) = door.enter(peer.ip(), AT_THE_DOOR);
                let place = Arc::new(Mutex::new(Some(place)));
                let visit = Visit { peer, place, inside: inside.clone(), metrics: metrics.clone() };
                let router = router.clone();
                connections.spawn(async move {
                    if let Err(error) = visit.serve(tcp, leave, router).await {
                        tracing::debug!(%peer, %error, "a connection to the admin port failed");
                    }
                });
                // It has a turn, and can say something, before another wants its place.
                tokio::task::yield_now().await;
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed at the admin port");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection.
struct Visit {
    peer: SocketAddr,
    /// At the door; none once it is inside.
    place: Arc<Mutex<Option<Place>>>,
    inside: Places,
    metrics: AdminMetrics,
}

impl Visit {
    async fn serve(self, tcp: TcpStream, mut leave: Leave, router: Router) -> hyper::Result<()> {
        let stream = Impatient::new(tcp, TAKE_WITHIN, Arc::clone(&self.place));
        let answer = TowerToHyperService::new(router.layer(Extension(ConnectInfo(self.peer))));
        let seat = Mutex::new(None);
        let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
            let comes_in = HEALTH.contains(&request.uri().path()) || self.comes_in(&seat);
            // Before the answer begins: who is inside need not leave the door any more.
            let answered = comes_in.then(|| answer.call(request));
            let metrics = &self.metrics;
            async move {
                match answered {
                    Some(answered) => answered.await,
                    None => Ok(full(metrics)),
                }
            }
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WITHIN)
            .max_buf_size(BUFFER_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            served = serving => served,
            () = told_to(&mut leave) => {
                self.metrics.turned_away.inc();
                Ok(())
            }
        }
    }

    /// Takes a place inside for the rest of the connection, if there is one.
    fn comes_in(&self, seat: &Mutex<Option<Place>>) -> bool {
        let mut seat = seat.lock().unwrap_or_else(PoisonError::into_inner);
        if seat.is_none() {
            *seat = self.inside.take_free(self.peer.ip(), INSIDE);
        }
        if seat.is_some() {
            self.place.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        seat.is_some()
    }
}

/// The answer to who found no place.
fn full(metrics: &AdminMetrics) -> Response<Body> {
    metrics.turned_away.inc();
    metrics.answered(StatusCode::SERVICE_UNAVAILABLE.as_u16());
    let text = "too many connections are busy at this port, or from this address; health and metrics are answered";
    let mut answer = Problem::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(COME_BACK_AFTER).into_response();
    // It may come again over another connection; this one gives its place away.
    answer.headers_mut().insert(hyper::header::CONNECTION, hyper::header::HeaderValue::from_static("close"));
    answer
}

/// A stream that fails when its peer takes nothing for too long, and counts what it says at the door.
struct Impatient<S> {
    stream: S,
    within: Duration,
    place: Arc<Mutex<Option<Place>>>,
    /// Runs while something waits to be taken.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    fn new(stream: S, within: Duration, place: Arc<Mutex<Option<Place>>>) -> Self {
        Self { stream, within, place, waiting: None }
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
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(place) = &*self.place.lock().unwrap_or_else(PoisonError::into_inner) {
            place.heard(buf.filled().len() - before);
        }
        read
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
        let mut stream = Impatient::new(near, TAKE_WITHIN, Arc::default());
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

    async fn port() -> (SocketAddr, AdminMetrics) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let router = Router::new()
            .route("/", axum::routing::get(async || "ok"))
            .route("/metrics", axum::routing::get(async || "ok"))
            .route("/healthz", axum::routing::get(async || "ok"));
        let metrics = AdminMetrics::new(&mut crate::metrics::Registry::default());
        let counted = metrics.clone();
        tokio::spawn(async move { match run(vec![listener], router, counted).await {} });
        (address, metrics)
    }

    async fn ask(stream: &mut TcpStream, path: &str) -> String {
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.expect("sent");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.expect("an answer");
        String::from_utf8(answer.into()).expect("a status line")
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_come_ends_the_connection() {
        let (address, _) = port().await;
        for slow in ["", "GET / HTTP/1.1\r\nHost: x\r\nX-"] {
            let mut stream = TcpStream::connect(address).await.expect("connected");
            stream.write_all(slow.as_bytes()).await.expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("an end");
            assert!(!answer.contains(" 200 "), "{answer}");
        }
    }

    // A hundred and more heads that never end once kept everybody else from being accepted.
    #[tokio::test]
    async fn heads_that_never_end_leave_for_who_asks() {
        let (address, metrics) = port().await;
        let mut half_open = Vec::new();
        for _ in 0..2 * AT_THE_DOOR.all {
            let mut stream = TcpStream::connect(address).await.expect("connected");
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-").await.expect("sent");
            half_open.push(stream);
            if half_open.len() % 100 == 0 {
                let mut stream = TcpStream::connect(address).await.expect("connected");
                assert_eq!(ask(&mut stream, "/healthz").await, "HTTP/1.1 200");
                assert_eq!(ask(&mut TcpStream::connect(address).await.expect("connected"), "/").await, "HTTP/1.1 200");
            }
        }
        assert_eq!(half_open[0].read(&mut [0]).await.unwrap_or(0), 0, "the first has left");
        let until_turned_away = async {
            while metrics.turned_away.get() < (2 * AT_THE_DOOR.all - AT_THE_DOOR.each) as u64 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), until_turned_away).await.expect("all but a share");
    }

    #[tokio::test]
    async fn so_many_are_served_at_a_time_health_always_and_the_next_one_when_one_has_gone() {
        let (address, metrics) = port().await;
        let mut inside = Vec::new();
        for _ in 0..INSIDE.each {
            let mut stream = TcpStream::connect(address).await.expect("connected");
            assert_eq!(ask(&mut stream, "/").await, "HTTP/1.1 200");
            inside.push(stream);
        }
        let mut other = TcpStream::connect(address).await.expect("connected");
        assert_eq!(ask(&mut other, "/").await, "HTTP/1.1 503");
        assert_eq!(metrics.turned_away.get(), 1);
        for path in ["/healthz", "/metrics"] {
            assert_eq!(ask(&mut TcpStream::connect(address).await.expect("connected"), path).await, "HTTP/1.1 200");
        }
        inside.pop();
        let until_free = async {
            while ask(&mut TcpStream::connect(address).await.expect("connected"), "/").await != "HTTP/1.1 200" {}
        };
        tokio::time::timeout(Duration::from_secs(30), until_free).await.expect("the place that was given back");
    }
}
