//! lapin over a connection that [`Upstream`] has dialed: so the AMQP checker reaches RabbitMQ as everything else here
//! does, with the same nodes, TLS and PROXY protocol.

use crate::relay::Credentials;
use crate::upstream::{Stream, Upstream};
use async_compat::Compat;
use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use async_rs::{Runtime, Tokio};
use futures_util::Stream as Items;
use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::tcp::AsyncTcpStream;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Connection, ConnectionProperties};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Seconds between signs of life: a RabbitMQ that is gone without a word is missed after twice that.
const HEARTBEAT_SECONDS: u16 = 15;

/// Connects to the first node that can be reached, as `credentials`, in `vhost`.
pub(super) async fn connect(
    upstream: Arc<Upstream>,
    credentials: &Credentials,
    vhost: &str,
) -> lapin::Result<Connection> {
    // Host and port are what lapin would dial; here they are only shown.
    let node = upstream.urls().first().map_or((String::new(), 0), |url| (url.host.clone(), url.port));
    let uri = AMQPUri {
        scheme: AMQPScheme::AMQP,
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo { username: credentials.username.clone(), password: credentials.password.clone() },
            host: node.0,
            port: node.1,
        },
        vhost: vhost.to_owned(),
        query: AMQPQueryString { heartbeat: Some(HEARTBEAT_SECONDS), ..AMQPQueryString::default() },
    };
    let dial = async move |_: AMQPUri, _: Runtime<Kit>| {
        let stream = upstream.connect(None).await.map_err(io::Error::other)?;
        Ok(AsyncTcpStream::Plain(Compat::new(stream)))
    };
    let properties = ConnectionProperties::default().with_connection_name("halfway check-back".into());
    Connection::connector(uri, Runtime::new(Kit(Tokio::current())), dial, properties).await
}

/// tokio, but for the type of the stream.
#[derive(Debug, Clone)]
struct Kit(Tokio);

impl RuntimeKit for Kit {}

impl Executor for Kit {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(&self, future: F) -> Task<Self::Task<T>> {
        self.0.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(&self, work: F) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(work)
    }
}

impl Reactor for Kit {
    type TcpStream = Compat<Stream>;
    type Sleep = <Tokio as Reactor>::Sleep;

    // lapin has no socket to register, and dials only by the function it is given.
    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Self::TcpStream, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Items<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(&self, _: SocketAddr) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
