//! Everything an operator can set: one struct per table of `config.toml`, parsed and checked once, at the edge.
//!
//! Values come from three places, the later one wins: the defaults in this file, a TOML file, and environment
//! variables named `HALFWAY_` + path with `__` between levels (`HALFWAY_STORE__URL`). `config.toml` at the top of the
//! repository documents every key; a test holds it and this file together.

mod change;
mod checker;
mod database;
mod load;
mod store;
mod validate;
mod value;

#[cfg(test)]
mod tests;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::tx::limits::TransactionLimits;

pub use change::{Change, Effect};
pub use checker::{Absent, AbsentMeans, Asked, Checker, CheckerMatch, Look, WhenExhausted};
pub use database::{Place, PostgresUrl, SslMode, Target};
pub use load::{ConfigError, Entry, Loaded, Origin, Problem, TOKEN_VARIABLE, load};
pub(crate) use store::Kind;
pub use store::StoreUrl;
pub use value::{HttpUrl, MessageSizeLimit, PartSize, Secret, UpstreamUrl, format_size};

/// The whole configuration. [`Config::default`] is what an empty file gives.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Config {
    /// Where clients connect.
    pub listen: Listen,
    /// The RabbitMQ nodes behind the proxy.
    pub upstream: Upstream,
    /// The account and the pace with which committed messages are published.
    pub relay: Relay,
    /// Where half messages are kept.
    pub store: Store,
    /// What clients may hold in memory.
    pub memory: Memory,
    /// Limits and waits of transactions.
    pub transaction: Transaction,
    /// Who is asked about transactions in doubt, in this order; without any, they wait for a person.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checker: Vec<Checker>,
    /// The HTTP port: health, metrics, and decisions by hand.
    pub admin: Admin,
    /// How the process ends.
    pub shutdown: Shutdown,
    /// Where spans of transactions go.
    pub telemetry: Telemetry,
    /// What is logged, and how.
    pub log: Log,
}

/// `[listen]`: the AMQP ports and what is allowed on them.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Listen {
    /// Plain AMQP; never empty.
    #[serde(with = "value::addresses")]
    pub address: Vec<SocketAddr>,
    /// AMQP over TLS; none: no TLS port. See [`Listen::tls`].
    #[serde(with = "value::addresses")]
    pub tls_address: Vec<SocketAddr>,
    /// The files of the TLS port.
    pub tls: ListenTlsFiles,
    /// Client connections that are open at one time, both ports together; one more is closed as soon as it is accepted.
    pub max_connections: u32,
    /// Client connections that have not logged in, at one time and on each address; half as many from one address.
    pub max_handshakes: u32,
    /// Users that may log in from a loopback address only, because RabbitMQ sees the proxy's address, not theirs.
    pub loopback_users: Vec<String>,
    /// From accept to `connection.open-ok`; then the connection is closed, as RabbitMQ does.
    #[serde(with = "value::duration")]
    pub handshake_timeout: Duration,
}

/// `[listen.tls]`, as written; [`Listen::tls`] is what inner code uses.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct ListenTlsFiles {
    /// PEM, the server's certificate first, then its intermediates.
    #[serde(with = "value::optional_path")]
    pub certificate: Option<PathBuf>,
    /// PEM, the private key of that certificate.
    #[serde(with = "value::optional_path")]
    pub key: Option<PathBuf>,
    /// PEM, the authorities that sign client certificates; none: clients show no certificate.
    #[serde(with = "value::optional_path")]
    pub client_ca: Option<PathBuf>,
}

/// What a TLS port needs.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenTls {
    /// See [`ListenTlsFiles::certificate`].
    pub certificate: PathBuf,
    /// See [`ListenTlsFiles::key`].
    pub key: PathBuf,
    /// See [`ListenTlsFiles::client_ca`].
    pub client_ca: Option<PathBuf>,
}

impl Listen {
    /// The TLS port, when `tls_address` is set; validation has seen to it that certificate and key are set with it.
    pub fn tls(&self) -> Option<ListenTls> {
        self.tls_address.first()?;
        Some(ListenTls {
            certificate: self.tls.certificate.clone()?,
            key: self.tls.key.clone()?,
            client_ca: self.tls.client_ca.clone(),
        })
    }
}

/// `[upstream]`: the RabbitMQ nodes.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Upstream {
    /// Tried in order for every new connection; never empty.
    pub urls: Vec<UpstreamUrl>,
    /// Trust for `amqps://`.
    pub tls: UpstreamTls,
    /// Whether RabbitMQ is told the client's address.
    pub proxy_protocol: ProxyProtocol,
    /// TCP connect and TLS handshake, per URL.
    #[serde(with = "value::duration")]
    pub connect_timeout: Duration,
    /// How long a client that connects waits while no node answers.
    #[serde(with = "value::duration")]
    pub wait: Duration,
}

/// `[upstream.tls]`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct UpstreamTls {
    /// PEM, the authorities that RabbitMQ's certificate must come from; none: those of the system.
    #[serde(with = "value::optional_path")]
    pub ca: Option<PathBuf>,
}

/// The PROXY protocol header sent ahead of each upstream connection.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyProtocol {
    /// None.
    #[default]
    Off,
    /// Version 2, the binary one; RabbitMQ must have `proxy_protocol = true`.
    V2,
}

/// `[relay]`: publishing committed messages to RabbitMQ.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Relay {
    /// The RabbitMQ account.
    pub username: String,
    /// Its password, from here or from `password_file`.
    pub password: Secret,
    /// The file that the password was read from; when set, it wins over `password`.
    #[serde(with = "value::optional_path")]
    pub password_file: Option<PathBuf>,
    /// Channels per connection (one connection a virtual host); order holds within a lane.
    pub lanes: u16,
    /// Messages published and not yet confirmed, per lane.
    pub window: u32,
    /// Pauses after a failure.
    pub retry: Retry,
    /// Without a confirm for this long while messages are in flight, the lane counts as stalled and starts anew.
    #[serde(with = "value::duration")]
    pub confirm_timeout: Duration,
}

/// `[relay.retry]`: exponential back-off with jitter between two bounds.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Retry {
    /// The first pause.
    #[serde(with = "value::duration")]
    pub initial: Duration,
    /// The longest pause.
    #[serde(with = "value::duration")]
    pub max: Duration,
}

/// `[store]`: where half messages are kept.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Store {
    /// What kind of store, and where.
    pub url: StoreUrl,
    /// The file that the password of a database was read from.
    #[serde(with = "value::optional_path")]
    pub password_file: Option<PathBuf>,
    /// Bytes in use past which half messages wait, and their clients get `connection.blocked`.
    #[serde(with = "value::size")]
    pub max_size: u64,
    /// Bytes of one user's past which the same goes for this user alone.
    pub max_size_per_user: PartSize,
}

impl Store {
    /// Bytes of one user's past which it has no room.
    pub fn user_bytes_max(&self) -> u64 {
        match self.max_size_per_user {
            PartSize::Auto => self.max_size / 2,
            PartSize::Bytes(bytes) => bytes,
        }
    }
}

/// `[memory]`: what clients may hold in memory.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Memory {
    /// Bytes that all clients share, past which those who hold most are read no more until there is room.
    pub max: PartSize,
}

/// `[transaction]`: limits and waits.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Transaction {
    /// How long `tx.commit-ok` waits for the relay's confirms once the decision is durable; zero: not at all.
    #[serde(with = "value::duration")]
    pub forward_wait: Duration,
    /// The same for a transaction with a mandatory message, whose return must come before `tx.commit-ok`.
    #[serde(with = "value::duration")]
    pub mandatory_wait: Duration,
    /// How long RabbitMQ's yes to a publish counts for the next ones of its kind on the channel; zero: each transaction
    /// is judged anew.
    #[serde(with = "value::duration")]
    pub judgement: Duration,
    /// How long a transaction may be open before it is rolled back and its channel closed; zero: as long as its channel.
    #[serde(with = "value::duration")]
    pub max_age: Duration,
    /// Messages in one transaction.
    pub max_messages: u64,
    /// Bytes (bodies and headers) in one transaction.
    #[serde(with = "value::size")]
    pub max_size: u64,
    /// Bytes of one body.
    pub max_message_size: MessageSizeLimit,
    /// Bytes of one plain transaction kept in memory; what comes beyond goes to the store before the commit.
    #[serde(with = "value::size")]
    pub memory: u64,
    /// What becomes of a committed message that is not mandatory and reaches no queue.
    pub unroutable: Unroutable,
    /// Messages to this exchange are decisions about named transactions; none reaches RabbitMQ.
    pub control_exchange: String,
    /// How long finished transactions are remembered.
    #[serde(with = "value::duration")]
    pub retention: Duration,
}

impl Transaction {
    /// What its keys say about how much a transaction may be.
    pub fn limits(&self) -> TransactionLimits {
        TransactionLimits {
            messages_max: self.max_messages,
            bytes_max: self.max_size,
            message_bytes_max: match self.max_message_size {
                MessageSizeLimit::Bytes(bytes) => Some(bytes),
                MessageSizeLimit::Auto => None,
            },
            memory_bytes_max: usize::try_from(self.memory).unwrap_or(usize::MAX),
        }
    }
}

/// What becomes of a committed message that no queue takes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unroutable {
    /// It is counted and dropped, as RabbitMQ drops it.
    #[default]
    Drop,
    /// It is kept as a dead letter.
    DeadLetter,
}

/// `[admin]`: the HTTP port.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Admin {
    /// `/healthz`, `/readyz`, `/metrics` and `/api`; none: no HTTP port.
    #[serde(with = "value::addresses")]
    pub address: Vec<SocketAddr>,
    /// Who may use `/api`; none: see [`Admin::is_open`].
    pub tokens: Vec<AdminToken>,
    /// Whether `/api` needs no token while none is configured and the port listens on loopback.
    pub open_on_loopback: bool,
    /// Whether `/api` shows what messages hold. Their properties and headers it always shows.
    pub show_bodies: bool,
}

impl Admin {
    /// Whether `/api` answers without a token.
    pub fn is_open(&self) -> bool {
        let on_loopback = self.address.iter().all(|address| address.ip().is_loopback());
        self.open_on_loopback && !self.address.is_empty() && on_loopback && self.tokens.is_empty()
    }
}

/// One of `admin.tokens`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AdminToken {
    /// The file that holds the token; its name without the ending is the name under which its decisions are kept.
    pub token_file: PathBuf,
    /// What its bearer may do.
    pub role: Role,
}

/// What the bearer of a token may do.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Read.
    Viewer,
    /// Read and decide.
    Operator,
}

/// `[shutdown]`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Shutdown {
    /// How long running commits may take after SIGTERM before their connections are closed.
    #[serde(with = "value::duration")]
    pub grace: Duration,
}

/// `[telemetry]`: spans for OpenTelemetry.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Telemetry {
    /// The collector; none: there are no spans.
    #[serde(with = "value::optional_url")]
    pub otlp_url: Option<HttpUrl>,
    /// What spans are said to come from.
    pub service_name: String,
    /// Which part of all transactions has spans.
    pub sample: f64,
}

/// `[log]`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Log {
    /// For people or for machines.
    pub format: LogFormat,
    /// A level, or levels per module: `info,halfway::relay=debug`.
    pub level: String,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One readable line an event.
    #[default]
    Text,
    /// One JSON object an event.
    Json,
}

impl Default for Listen {
    fn default() -> Self {
        Listen {
            address: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 5673))],
            tls_address: Vec::new(),
            tls: ListenTlsFiles::default(),
            max_connections: 10_000,
            max_handshakes: 2_000,
            loopback_users: vec!["guest".into()],
            handshake_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Upstream {
            urls: vec![UpstreamUrl { tls: false, host: Ipv4Addr::LOCALHOST.to_string(), port: 5672 }],
            tls: UpstreamTls::default(),
            proxy_protocol: ProxyProtocol::Off,
            connect_timeout: Duration::from_secs(5),
            wait: Duration::ZERO,
        }
    }
}

impl Default for Relay {
    fn default() -> Self {
        Relay {
            username: "guest".into(),
            password: Secret::new("guest"),
            password_file: None,
            lanes: 8,
            window: 1000,
            retry: Retry::default(),
            confirm_timeout: Duration::from_secs(30),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Retry { initial: Duration::from_millis(100), max: Duration::from_secs(30) }
    }
}

impl Default for Store {
    fn default() -> Self {
        Store { url: StoreUrl::default(), password_file: None, max_size: 10 * GIB, max_size_per_user: PartSize::Auto }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Memory { max: PartSize::Auto }
    }
}

impl Default for Transaction {
    fn default() -> Self {
        Transaction {
            forward_wait: Duration::from_secs(1),
            mandatory_wait: Duration::from_secs(30),
            judgement: Duration::from_secs(1),
            max_age: Duration::ZERO,
            max_messages: 1_000_000,
            max_size: GIB,
            max_message_size: MessageSizeLimit::Auto,
            memory: MIB,
            unroutable: Unroutable::Drop,
            control_exchange: "halfway".into(),
            retention: Duration::from_secs(24 * 60 * 60),
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Admin {
            address: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 15673))],
            tokens: Vec::new(),
            open_on_loopback: true,
            show_bodies: false,
        }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown { grace: Duration::from_secs(30) }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Telemetry { otlp_url: None, service_name: "halfway".into(), sample: 1.0 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Log { format: LogFormat::Text, level: "info".into() }
    }
}

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;
