//! Dialing PostgreSQL: the hosts of a URL in turn, TLS, the login, and whether the server is one that will do. What is
//! asked then is the caller's affair.

use crate::config::{Place, PostgresUrl, SslMode, Target, UpstreamTls};
use crate::tls::{self, ClientTls, TlsError};
use bytes::BytesMut;
use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_postgres::config::{ChannelBinding as Binding, SslMode as Mode};
use tokio_postgres::tls::{ChannelBinding, TlsConnect};
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Config, Connection, NoTls, SimpleQueryMessage};
use tokio_rustls::client::TlsStream;

/// What a connection that is no longer wanted may take to say so.
const FAREWELL: Duration = Duration::from_secs(1);

/// A database, and how to reach it.
#[derive(Debug)]
pub struct Postgres {
    url: PostgresUrl,
    tls: Option<ClientTls>,
    connect_timeout: Duration,
}

/// Nobody could be worked with.
#[derive(Debug, thiserror::Error)]
#[error("{}", .tried.iter().map(|(host, reason)| format!("{host}: {reason}")).collect::<Vec<_>>().join("; "))]
pub struct ConnectError {
    /// Each host that was tried, in that order, and why it will not do.
    pub tried: Vec<(String, String)>,
}

/// A connection. It ends when this is dropped, whatever the server is still busy with.
#[derive(Debug)]
pub struct Link {
    client: Client,
    _wanted: oneshot::Sender<Infallible>,
}

impl Postgres {
    /// Reads the authorities; dials nobody yet. `connect_timeout` bounds all steps together, for each host.
    /// # Errors
    /// [`TlsError`], naming the file.
    pub fn new(url: PostgresUrl, connect_timeout: Duration) -> Result<Self, TlsError> {
        Ok(Self { tls: trust(&url.place)?, url, connect_timeout })
    }

    /// Connects to the first host, in the order of the URL, that can be reached and is what `target_session_attrs` asks
    /// for.
    /// # Errors
    /// [`ConnectError`] with the reason of each host.
    pub async fn connect(&self) -> Result<Link, ConnectError> {
        let mut tried = Vec::new();
        for (host, port) in &self.url.place.hosts {
            let reason = match timeout(self.connect_timeout, self.dial(host, *port)).await {
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(reason)) => reason,
                Err(_) => "no answer in time".into(),
            };
            tried.push((format!("{host}:{port}"), reason));
        }
        Err(ConnectError { tried })
    }

    async fn dial(&self, host: &str, port: u16) -> Result<Link, String> {
        let tcp = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let config = self.login();
        let link = match &self.tls {
            None => config.connect_raw(tcp, NoTls).await.map(|(client, connection)| Link::new(client, connection)),
            Some(tls) => {
                let tls = Tls { connector: tls.connector(), host };
                config.connect_raw(tcp, tls).await.map(|(client, connection)| Link::new(client, connection))
            }
        };
        let link = link.map_err(|error| in_words(&error))?;
        let wrong = match self.url.target {
            Target::Any => None,
            Target::Primary => link.says("SELECT pg_is_in_recovery()", "t").await?.then_some("is a standby"),
            Target::ReadWrite => link.says("SHOW transaction_read_only", "on").await?.then_some("takes no writes"),
        };
        wrong.map_or(Ok(link), |wrong| Err(wrong.into()))
    }

    fn login(&self) -> Config {
        let PostgresUrl { place, options, application_name, .. } = &self.url;
        let mut config = Config::new();
        config
            .user(&place.user)
            .dbname(&place.database)
            .application_name(application_name.as_deref().unwrap_or("halfway"))
            .ssl_mode(if self.tls.is_some() { Mode::Require } else { Mode::Disable })
            .channel_binding(Binding::Disable);
        if let Some(password) = &place.password {
            config.password(password.expose());
        }
        if let Some(options) = options {
            config.options(options);
        }
        config
    }
}

/// What TLS to this place trusts; none: there is no TLS.
fn trust(place: &Place) -> Result<Option<ClientTls>, TlsError> {
    match place.ssl {
        SslMode::Disable => Ok(None),
        SslMode::Require => Ok(Some(ClientTls::trusting_anybody())),
        SslMode::VerifyFull => ClientTls::load(&UpstreamTls { ca: place.ca.clone() }).map(Some),
    }
}

impl Link {
    fn new<T>(client: Client, mut connection: Connection<TcpStream, T>) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (wanted, unwanted) = oneshot::channel::<Infallible>();
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = &mut connection => ended,
                // It says goodbye, unless the server is still busy: then it is cut off.
                _ = unwanted => timeout(FAREWELL, connection).await.unwrap_or(Ok(())),
            };
            if let Err(error) = ended {
                tracing::debug!(error = in_words(&error), "a connection to PostgreSQL was lost");
            }
        });
        Self { client, _wanted: wanted }
    }

    /// Whether the only value that `statement` gives is `value`.
    async fn says(&self, statement: &str, value: &str) -> Result<bool, String> {
        let messages = self.client.simple_query(statement).await.map_err(|error| in_words(&error))?;
        let row = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        Ok(row == Some(value))
    }
}

impl Deref for Link {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// An error with what caused it, which the client's own words leave out.
pub fn in_words(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", error.message(), error.code().code());
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// A value of whatever type the database takes the parameter for, in the form that a person would write; none: NULL.
#[derive(Debug)]
pub struct Text<'a>(pub Option<&'a str>);

impl ToSql for Text<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let Some(text) = self.0 else { return Ok(IsNull::Yes) };
        out.extend_from_slice(text.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

/// TLS as the rest of the proxy has it.
struct Tls<'a> {
    connector: tokio_rustls::TlsConnector,
    host: &'a str,
}

impl<'a> TlsConnect<TcpStream> for Tls<'a> {
    type Stream = Secured;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Secured>> + Send + 'a>>;

    fn connect(self, stream: TcpStream) -> Self::Future {
        Box::pin(async move {
            let name = tls::server_name(self.host).map_err(io::Error::other)?;
            self.connector.connect(name, stream).await.map(Secured)
        })
    }
}

struct Secured(TlsStream<TcpStream>);

impl tokio_postgres::tls::TlsStream for Secured {
    /// None: the certificate says who the server is.
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Secured {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}
