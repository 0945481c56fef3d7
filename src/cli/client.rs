//! Asking the proxy that runs, over its admin port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, Uri, header};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::text::shown;
use crate::config::UpstreamTls;
use crate::http::send;
use crate::tls::{ClientTls, server_name};

/// For the TCP connection and TLS.
const CONNECT: Duration = Duration::from_secs(5);
/// For the answer. A decision is answered when it is durable.
const ANSWER: Duration = Duration::from_secs(30);
/// A page of transactions with the longest names there can be is smaller; so is one of dead letters.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Where a proxy's admin port is: `http://host[:port][/path]`, or `https://` where something before it does TLS.
#[derive(Clone, Debug, PartialEq)]
pub struct Url {
    https: bool,
    host: String,
    port: u16,
    /// What stands before `/api`, without a slash at its end.
    path: String,
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|error| format!("{error}; expected http://host:port"))?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err("does not begin with http:// or https://".into()),
        };
        let authority = uri.authority().ok_or("has no host")?;
        if authority.as_str().contains('@') {
            return Err("carries a user; give a token instead".into());
        }
        if uri.query().is_some() {
            return Err("has a query; expected http://host:port".into());
        }
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        let host = authority.host().to_owned();
        Ok(Self { https, host, port, path: uri.path().trim_end_matches('/').to_owned() })
    }
}

impl From<SocketAddr> for Url {
    /// The address to reach a port that listens here.
    fn from(address: SocketAddr) -> Self {
        let ip: IpAddr = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
        Self { https: false, host, port: address.port(), path: String::new() }
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}{}", self.host, self.port, self.path)
    }
}

/// Why the proxy did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error("no proxy answers at {url} ({key}): {text}; is `halfway serve` running?")]
    Unreachable {
        /// Where it was looked for.
        url: Url,
        /// What says so: a key or a flag.
        key: &'static str,
        /// The reason.
        text: String,
    },
    /// The connection was there, the answer was not.
    #[error("{url} was asked and gave no answer ({text}): whether it did what was asked is not known")]
    Unanswered {
        /// Who was asked.
        url: Url,
        /// The reason.
        text: String,
    },
    /// It is something else than a proxy.
    #[error("{url} ({key}) answers something else than Halfway does (HTTP {status})")]
    Stranger {
        /// Who was asked.
        url: Url,
        /// What says so: a key or a flag.
        key: &'static str,
        /// The answer's status.
        status: u16,
    },
    /// A token is missing, or not the right one.
    #[error("{0} wants a valid token: give --token-file, or set HALFWAY_TOKEN")]
    Unauthorized(Url),
    /// It says why not. The text is safe on a terminal.
    #[error("{text}")]
    Refused {
        /// What was wrong.
        text: String,
        /// The whole problem document.
        problem: Value,
    },
}

/// A proxy's admin port, and the token for it.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) url: Url,
    /// What the URL comes from.
    pub(super) key: &'static str,
    pub(super) token: Option<String>,
}

impl Client {
    pub(super) async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.send(Method::GET, path, String::new()).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.send(Method::POST, path, body.to_string()).await
    }

    async fn send(&self, method: Method, path: &str, body: String) -> Result<Value, ClientError> {
        let unreachable = |text: String| ClientError::Unreachable { url: self.url.clone(), key: self.key, text };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url.path))
            .header(header::HOST, format!("{}:{}", self.url.host, self.url.port))
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::from(body)).map_err(|error| unreachable(error.to_string()))?;

        let host = self.url.host.trim_start_matches('[').trim_end_matches(']');
        let tcp = match timeout(CONNECT, TcpStream::connect((host, self.url.port))).await {
            Ok(connected) => connected.map_err(|error| unreachable(error.to_string()))?,
            Err(_) => return Err(unreachable(format!("no connection within {CONNECT:?}"))),
        };
        let answer = if self.url.https {
            let tls = ClientTls::load(&UpstreamTls::default()).map_err(|error| unreachable(error.to_string()))?;
            let name = server_name(host).map_err(|error| unreachable(error.to_string()))?;
            let stream = match timeout(CONNECT, tls.connector().connect(name, tcp)).await {
                Ok(connected) => connected.map_err(|error| unreachable(error.to_string()))?,
                Err(_) => return Err(unreachable(format!("no TLS handshake within {CONNECT:?}"))),
            };
            timeout(ANSWER, exchange(stream, request)).await
        } else {
            timeout(ANSWER, exchange(tcp, request)).await
        };
        let unanswered = |text: String| ClientError::Unanswered { url: self.url.clone(), text };
        let (status, body) = match answer {
            Ok(answer) => answer.map_err(|error| unanswered(error.to_string()))?,
            Err(_) => return Err(unanswered(format!("within {ANSWER:?}"))),
        };
        self.judge(status, &body)
    }

    fn judge(&self, status: StatusCode, body: &[u8]) -> Result<Value, ClientError> {
        let stranger = || ClientError::Stranger { url: self.url.clone(), key: self.key, status: status.as_u16() };
        if status == StatusCode::UNAUTHORIZED {
            return Err(ClientError::Unauthorized(self.url.clone()));
        }
        let value: Value = serde_json::from_slice(body).map_err(|_| stranger())?;
        if status == StatusCode::OK && value.is_object() {
            return Ok(value);
        }
        let detail = value["detail"].as_str().ok_or_else(stranger)?;
        Err(ClientError::Refused { text: shown(detail), problem: value.clone() })
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), Failure> {
    let answer = send(stream, request).await?;
    Ok((answer.head.status, answer.body(ANSWER_BYTES_MAX).await?))
}

/// Text as one segment of a path, or one value of a query.
pub(super) fn encoded(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_~".contains(&byte);
    let encode = |byte: u8| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_shown() {
        for (text, expected) in [
            ("http://proxy:15673", "http://proxy:15673"),
            ("http://proxy/", "http://proxy:80"),
            ("https://example.org/halfway/", "https://example.org:443/halfway"),
            ("http://[::1]:1", "http://[::1]:1"),
        ] {
            assert_eq!(text.parse::<Url>().expect("a URL").to_string(), expected);
        }
        for wrong in ["proxy:15673", "ftp://proxy", "http://", "http://u:p@proxy", "http://proxy/?a=b", "http://a b"] {
            wrong.parse::<Url>().expect_err(wrong);
        }
        let from = |address: &str| Url::from(address.parse::<SocketAddr>().expect("an address")).to_string();
        assert_eq!((from("0.0.0.0:7"), from("[::]:7")), ("http://127.0.0.1:7".into(), "http://[::1]:7".into()));
    }

    #[test]
    fn every_text_is_one_segment() {
        assert_eq!(encoded("/"), "%2F");
        assert_eq!(encoded(".."), "%2E%2E");
        assert_eq!(encoded("a-b_c~1 ü?"), "a-b_c~1%20%C3%BC%3F");
    }
}
