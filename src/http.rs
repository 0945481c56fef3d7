//! HTTP servers that are asked: checkers, the collector of spans, and by the command line the proxy that runs. Each request
//! has a connection of its own.

use crate::config::HttpUrl;
use crate::tls::{self, ClientTls};
use crate::upstream::Stream;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::http::response::Parts;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::error::Error;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsStream;

/// Bytes of an answer's status line and headers.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Connects, and does TLS for `https://`, for which `tls` is needed.
/// # Errors
/// Why there is no connection.
pub(crate) async fn dial(url: &HttpUrl, tls: Option<&ClientTls>) -> io::Result<Stream> {
    let tcp = TcpStream::connect((url.host.as_str(), url.port)).await?;
    tcp.set_nodelay(true)?;
    if !url.tls {
        return Ok(Stream::Plain(tcp));
    }
    let tls = tls.ok_or_else(|| io::Error::other("no certificate authorities are loaded"))?;
    let name = tls::server_name(&url.host).map_err(io::Error::other)?;
    Ok(Stream::Tls(Box::new(TlsStream::Client(tls.connector().connect(name, tcp).await?))))
}

/// An answer of which the head is there. The connection ends with it, however much the other side still has to say.
#[derive(Debug)]
pub(crate) struct HttpAnswer {
    /// Status and headers.
    pub head: Parts,
    body: Incoming,
    _connection: JoinSet<hyper::Result<()>>,
}

/// Sends a request, the only one on its connection.
/// # Errors
/// The connection failed, or what came is no HTTP.
pub(crate) async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> hyper::Result<HttpAnswer> {
    let handshake = http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake?;
    let mut background = JoinSet::new();
    background.spawn(connection);
    let (head, body) = sender.send_request(request).await.map(Response::into_parts)?;
    Ok(HttpAnswer { head, body, _connection: background })
}

impl HttpAnswer {
    /// The rest of it.
    /// # Errors
    /// The connection failed, or the body has more than `bytes_max`.
    pub(crate) async fn body(self, bytes_max: usize) -> Result<Bytes, Box<dyn Error + Send + Sync>> {
        Ok(Limited::new(self.body, bytes_max).collect().await?.to_bytes())
    }
}
