//! Dialing RabbitMQ: TCP, the PROXY protocol header, TLS. What is spoken then is the caller's affair.

mod wait;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::TlsStream;

pub use crate::config::UpstreamUrl;
use crate::tls::{self, ClientTls};
use wait::Waiting;

/// The two ends of a client's connection to the proxy, which the PROXY protocol passes on to RabbitMQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddresses {
    /// The client's own address.
    pub source: SocketAddr,
    /// The address that the client dialed: the proxy's.
    pub destination: SocketAddr,
}

/// The RabbitMQ nodes behind the proxy, and how to reach them.
#[derive(Debug)]
pub struct Upstream {
    urls: Vec<UpstreamUrl>,
    tls: Option<Arc<ClientTls>>,
    proxy_protocol: bool,
    connect_timeout: Duration,
    reached: Notify,
    waiting: Waiting,
}

/// No node could be reached.
#[derive(Debug, thiserror::Error)]
pub struct ConnectError {
    /// Each node that was tried, in that order, and why it failed.
    pub tried: Vec<(UpstreamUrl, io::Error)>,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (url, error)) in self.tried.iter().enumerate() {
            write!(f, "{}{url}: {error}", if number == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl Upstream {
    /// Keeps what is needed to dial; dials nobody yet. `tls` is needed for `amqps://` only. `connect_timeout` bounds TCP and TLS together, for each node.
    pub fn new(
        urls: Vec<UpstreamUrl>,
        tls: Option<Arc<ClientTls>>,
        proxy_protocol: bool,
        connect_timeout: Duration,
    ) -> Self {
        Self { urls, tls, proxy_protocol, connect_timeout, reached: Notify::new(), waiting: Waiting::default() }
    }

    /// RabbitMQ has let somebody in: who pauses before the next attempt need not.
    pub fn is_reached(&self) {
        self.reached.notify_waiters();
    }

    /// Until [`Upstream::is_reached`].
    pub async fn reached(&self) {
        self.reached.notified().await;
    }

    /// The nodes, in the order of the configuration.
    pub fn urls(&self) -> &[UpstreamUrl] {
        &self.urls
    }

    /// Connects to the first node, in the order of the configuration, that can be reached. The order is the rule each
    /// time: a node that was down is used again as soon as it is back.
    ///
    /// `client` is whom the PROXY protocol names; without one it names this connection's own two ends, because RabbitMQ
    /// 3.10 refuses the header's "local" form.
    ///
    /// # Errors
    /// [`ConnectError`] with the reason of each node.
    pub async fn connect(&self, client: Option<ClientAddresses>) -> Result<Stream, ConnectError> {
        self.connect_from(0, client).await.map(|(stream, _)| stream)
    }

    /// As [`Upstream::connect`], but starts with the node at `first` (modulo their number) and goes round; tells which
    /// node it was. For a caller that has found out that a node accepts connections and can't be worked with.
    ///
    /// # Errors
    /// [`ConnectError`] with the reason of each node.
    pub async fn connect_from(
        &self,
        first: usize,
        client: Option<ClientAddresses>,
    ) -> Result<(Stream, usize), ConnectError> {
        let mut tried = Vec::new();
        for step in 0..self.urls.len() {
            let number = (first + step) % self.urls.len();
            let url = &self.urls[number];
            let error = match timeout(self.connect_timeout, self.dial(url, client)).await {
                Ok(Ok(stream)) => return Ok((stream, number)),
                Ok(Err(error)) => error,
                Err(_) => io::Error::new(io::ErrorKind::TimedOut, "no answer in time"),
            };
            tried.push((url.clone(), error));
        }
        Err(ConnectError { tried })
    }

    async fn dial(&self, url: &UpstreamUrl, client: Option<ClientAddresses>) -> io::Result<Stream> {
        let mut tcp = TcpStream::connect((url.host.as_str(), url.port)).await?;
        tcp.set_nodelay(true)?;
        if self.proxy_protocol {
            let own =
                || Ok::<_, io::Error>(ClientAddresses { source: tcp.local_addr()?, destination: tcp.peer_addr()? });
            let addresses = client.map_or_else(own, Ok)?;
            // Before TLS: RabbitMQ reads it ahead of the handshake.
            tcp.write_all(&proxy_header(addresses)).await?;
        }
        if !url.tls {
            return Ok(Stream::Plain(tcp));
        }
        let connector = self.tls.as_ref().ok_or_else(|| io::Error::other("no certificate authorities are loaded"))?;
        let name = tls::server_name(&url.host).map_err(io::Error::other)?;
        let tls = connector.connector().connect(name, tcp).await?;
        Ok(Stream::Tls(Box::new(TlsStream::Client(tls))))
    }
}

/// The header of the PROXY protocol, version 2, for a proxied TCP connection (haproxy.org, proxy-protocol.txt, 2.2).
fn proxy_header(addresses: ClientAddresses) -> Vec<u8> {
    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    const VERSION_2_PROXY: u8 = 0x21;
    const TCP_OVER_IPV4: u8 = 0x11;
    const TCP_OVER_IPV6: u8 = 0x21;

    let ClientAddresses { source, destination } = addresses;
    let mut header = SIGNATURE.to_vec();
    header.push(VERSION_2_PROXY);
    let mut ends = Vec::new();
    match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            header.push(TCP_OVER_IPV4);
            ends.extend_from_slice(&source.octets());
            ends.extend_from_slice(&destination.octets());
        }
        (source, destination) => {
            // One family for both: an IPv4 address among them is written in its IPv6 form.
            let v6 = |ip| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            header.push(TCP_OVER_IPV6);
            ends.extend_from_slice(&v6(source).octets());
            ends.extend_from_slice(&v6(destination).octets());
        }
    }
    ends.extend_from_slice(&source.port().to_be_bytes());
    ends.extend_from_slice(&destination.port().to_be_bytes());
    header.extend_from_slice(&(ends.len() as u16).to_be_bytes());
    header.extend_from_slice(&ends);
    header
}

/// A connection with or without TLS, to RabbitMQ or from a client.
#[derive(Debug)]
pub enum Stream {
    /// TCP alone.
    Plain(TcpStream),
    /// TLS over TCP, as its client or its server.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// The TCP connection beneath.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    fn upstream(ports: &[u16], proxy_protocol: bool) -> Upstream {
        let urls = ports.iter().map(|port| UpstreamUrl { tls: false, host: "127.0.0.1".into(), port: *port }).collect();
        Upstream::new(urls, None, proxy_protocol, Duration::from_secs(5))
    }

    async fn listener() -> (TcpListener, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    #[tokio::test]
    async fn nodes_are_tried_in_order_each_time() {
        let (gone, first) = listener().await;
        drop(gone);
        let (_second, second) = listener().await;
        let (_third, third) = listener().await;
        let upstream = upstream(&[first, second, third], false);
        for _ in 0..2 {
            let stream = upstream.connect(None).await.unwrap();
            assert_eq!(stream.tcp().peer_addr().unwrap().port(), second);
        }
        let (_, number) = upstream.connect_from(2, None).await.unwrap();
        assert_eq!(number, 2);
        let (_, number) = upstream.connect_from(3, None).await.unwrap();
        assert_eq!(number, 1);
    }

    #[tokio::test]
    async fn the_error_names_every_node() {
        let (gone, port) = listener().await;
        drop(gone);
        let error = upstream(&[port, port], false).connect(None).await.unwrap_err();
        assert_eq!(error.tried.len(), 2);
        assert!(error.to_string().contains(&format!("amqp://127.0.0.1:{port}: ")), "{error}");
    }

    #[tokio::test]
    async fn the_proxy_header_names_the_client_or_this_connection() {
        let (listener, port) = listener().await;
        let upstream = upstream(&[port], true);
        let client = ClientAddresses {
            source: "192.0.2.1:4000".parse().unwrap(),
            destination: "[::ffff:192.0.2.2]:5673".parse().unwrap(),
        };
        let _stream = upstream.connect(Some(client)).await.unwrap();
        let mut header = [0; 28];
        listener.accept().await.unwrap().0.read_exact(&mut header).await.unwrap();
        assert_eq!(&header[..16], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
        assert_eq!(&header[16..], [192, 0, 2, 1, 192, 0, 2, 2, 0x0f, 0xa0, 0x16, 0x29]);

        let stream = upstream.connect(None).await.unwrap();
        listener.accept().await.unwrap().0.read_exact(&mut header).await.unwrap();
        let own = stream.tcp().local_addr().unwrap().port();
        assert_eq!(header[24..26], own.to_be_bytes());
        assert_eq!(header[26..], port.to_be_bytes());
    }

    #[test]
    fn a_mixed_pair_of_addresses_is_written_as_ipv6() {
        let header = proxy_header(ClientAddresses {
            source: "[2001:db8::1]:1".parse().unwrap(),
            destination: "192.0.2.2:2".parse().unwrap(),
        });
        assert_eq!(header.len(), 16 + 36);
        assert_eq!(header[13], 0x21);
        assert_eq!(header[14..16], [0, 36]);
        assert_eq!(header[42..48], [0xff, 0xff, 192, 0, 2, 2]);
    }
}
