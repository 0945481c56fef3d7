//! Connections to HTTP servers that the configuration names: checkers, and the collector of spans.

use crate::config::HttpUrl;
use crate::tls::{self, ClientTls};
use crate::upstream::Stream;
use std::io;
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// Connects, and does TLS for `https://`, for which `tls` is needed.
/// # Errors
/// Why there is no connection.
pub async fn dial(url: &HttpUrl, tls: Option<&ClientTls>) -> io::Result<Stream> {
    let tcp = TcpStream::connect((url.host.as_str(), url.port)).await?;
    tcp.set_nodelay(true)?;
    if !url.tls {
        return Ok(Stream::Plain(tcp));
    }
    let tls = tls.ok_or_else(|| io::Error::other("no certificate authorities are loaded"))?;
    let name = tls::server_name(&url.host).map_err(io::Error::other)?;
    Ok(Stream::Tls(Box::new(TlsStream::Client(tls.connector().connect(name, tcp).await?))))
}
