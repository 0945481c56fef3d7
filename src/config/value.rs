//! The types of single values: how they are written in a file, and what they are inside.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// A password or token. It has no way into a log: `Debug` and serialisation show that it is set and no more.
#[derive(Clone, PartialEq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Secret(secret.into())
    }

    /// The secret itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The usual error would show the value, for instance a password of digits that lacks its quotes.
        String::deserialize(deserializer).map(Secret).map_err(|_| D::Error::custom("expected a string in quotes"))
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

const REDACTED: &str = "<redacted>";

/// One RabbitMQ node: `amqp://host[:port]` or `amqps://host[:port]`.
///
/// A user or a virtual host in it would be silently unused, for clients bring their own, so both are refused.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct UpstreamUrl {
    /// `amqps://`.
    pub tls: bool,
    /// A name or an address; an IPv6 address stands without its brackets.
    pub host: String,
    /// 5672 and 5671 (TLS) when the URL has none.
    pub port: u16,
}

impl TryFrom<String> for UpstreamUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (tls, rest) = match text.split_once("://") {
            Some(("amqp", rest)) => (false, rest),
            Some(("amqps", rest)) => (true, rest),
            _ => return Err(format!("`{text}` does not begin with amqp:// or amqps://")),
        };
        // The text may hold a password here, so the message leaves it out.
        if rest.contains('@') {
            return Err(
                "an upstream URL carries no user: clients bring their own, the relay's is relay.username".into()
            );
        }
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err(format!("`{text}` has more than a host and a port: clients choose their own virtual host"));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => {
                let (host, after) = v6.split_once(']').ok_or_else(|| format!("`{text}` lacks the closing `]`"))?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| format!("`{host}` is not an IPv6 address"))?;
                match after.strip_prefix(':') {
                    Some(port) => (host, Some(port)),
                    None if after.is_empty() => (host, None),
                    None => return Err(format!("`{text}` has `{after}` where a port is expected")),
                }
            }
            None => match authority.split_once(':') {
                Some((_, port)) if port.contains(':') => {
                    return Err(format!("`{text}`: an IPv6 address stands in brackets, as in amqp://[::1]:5672"));
                }
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        if host.is_empty() {
            return Err(format!("`{text}` has no host"));
        }
        let port = match port {
            None => 5672 - u16::from(tls),
            Some(port) => match port.parse() {
                Ok(0) | Err(_) => return Err(format!("`{port}` in `{text}` is not a port (1 to 65535)")),
                Ok(port) => port,
            },
        };
        Ok(UpstreamUrl { tls, host: host.to_owned(), port })
    }
}

impl fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

impl From<UpstreamUrl> for String {
    fn from(url: UpstreamUrl) -> String {
        url.to_string()
    }
}

/// Where an HTTP server answers, a checker or a collector: `http://` or `https://`, a host, and what follows.
///
/// A user in it is refused: requests to a checker are signed with its secret instead. A fragment never reaches a server.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct HttpUrl {
    /// `https://`.
    pub tls: bool,
    /// A name or an address; an IPv6 address stands without its brackets.
    pub host: String,
    /// 80 and 443 (TLS) when the URL has none.
    pub port: u16,
    /// Host and port as they were written, for the header `Host`.
    pub authority: String,
    /// Path and query; at least `/`.
    pub path: String,
}

impl TryFrom<String> for HttpUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return Err("does not begin with http:// or https://".into()),
        };
        let path_at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        // It may hold a password, so the message shows nothing of it.
        if rest[..path_at].contains('@') {
            return Err("a checker's URL carries no user: set `secret` and let the checker verify the signature".into());
        }
        if text.contains('#') {
            return Err(format!("`{text}` has a fragment, which no server would see"));
        }
        let uri: hyper::Uri = text.parse().map_err(|error| format!("`{text}` is not a URL: {error}"))?;
        let authority = uri.authority().ok_or_else(|| format!("`{text}` has no host"))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(format!("`{text}` has no host"));
        }
        let port = match authority.as_str().strip_prefix(authority.host()) {
            None | Some("") => 80 + 363 * u16::from(tls),
            Some(_) => authority
                .port_u16()
                .filter(|port| *port > 0)
                .ok_or_else(|| format!("`{text}` has no port (1 to 65535) where one is expected"))?,
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        // Of `http://host?query` the path is empty, and a request needs one.
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(HttpUrl { tls, host: host.to_owned(), port, authority: authority.to_string(), path })
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

impl From<HttpUrl> for String {
    fn from(url: HttpUrl) -> String {
        url.to_string()
    }
}

/// The largest body that is taken on a transactional channel.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum MessageSizeLimit {
    /// RabbitMQ's own default: 128 MiB before version 4.0, 16 MiB from 4.0 on.
    Auto,
    /// This many bytes.
    Bytes(u64),
}

impl TryFrom<String> for MessageSizeLimit {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "auto" => Ok(MessageSizeLimit::Auto),
            _ => match parse_size(&text) {
                Ok(bytes) => Ok(MessageSizeLimit::Bytes(bytes)),
                Err(_) => Err(format!("expected \"auto\" or a size such as \"16MiB\", found {text:?}")),
            },
        }
    }
}

impl From<MessageSizeLimit> for String {
    fn from(limit: MessageSizeLimit) -> String {
        match limit {
            MessageSizeLimit::Auto => "auto".into(),
            MessageSizeLimit::Bytes(bytes) => format_size(bytes),
        }
    }
}

/// A size, or the one that suits.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum PartSize {
    /// Half of what it is a part of.
    Auto,
    /// This many bytes.
    Bytes(u64),
}

impl TryFrom<String> for PartSize {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "auto" => Ok(PartSize::Auto),
            _ => match parse_size(&text) {
                Ok(bytes) => Ok(PartSize::Bytes(bytes)),
                Err(_) => Err(format!("expected \"auto\" or a size such as \"512MiB\", found {text:?}")),
            },
        }
    }
}

impl From<PartSize> for String {
    fn from(limit: PartSize) -> String {
        match limit {
            PartSize::Auto => "auto".into(),
            PartSize::Bytes(bytes) => format_size(bytes),
        }
    }
}

/// `bytes` in the largest binary unit that states it exactly: `10GiB`, `1536KiB`, `1000B`.
pub fn format_size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let expected = || format!("expected a size such as \"10MiB\", found {text:?}");
    text.parse::<bytesize::ByteSize>().map(|size| size.as_u64()).map_err(|_| expected())
}

fn parse_address(text: &str) -> Result<std::net::SocketAddr, String> {
    text.parse().map_err(|_| format!("expected an IP address and a port such as \"127.0.0.1:5673\", found {text:?}"))
}

/// `"30s"`, `"500ms"`, `"1h 30m"`.
pub(super) mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(in crate::config) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map_err(|_| D::Error::custom(format!("expected a duration such as \"30s\" or \"500ms\", found {text:?}")))
    }
}

/// A duration that may be left out.
pub(super) mod optional_duration {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    pub(in crate::config) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        super::duration::serialize(&value.unwrap_or_default(), serializer)
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        super::duration::deserialize(deserializer).map(Some)
    }
}

/// `"10MiB"`, inside a number of bytes.
pub(super) mod size {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(in crate::config) fn serialize<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::format_size(*bytes))
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        super::parse_size(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// `"127.0.0.1:5673"`, or a list of such; `""` is the empty list: so a key can stand in the file, and be emptied by a
/// variable.
pub(super) mod addresses {
    use std::net::SocketAddr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMore {
        One(String),
        More(Vec<String>),
    }

    pub(in crate::config) fn serialize<S: Serializer>(
        addresses: &[SocketAddr],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match addresses {
            [] => serializer.serialize_str(""),
            [one] => serializer.collect_str(one),
            more => serializer.collect_seq(more.iter().map(ToString::to_string)),
        }
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<SocketAddr>, D::Error> {
        let written = OneOrMore::deserialize(deserializer)
            .map_err(|_| D::Error::custom("expected an IP address and a port, or a list of such"))?;
        let texts = match written {
            OneOrMore::One(text) if text.is_empty() => Vec::new(),
            OneOrMore::One(text) => vec![text],
            OneOrMore::More(texts) => texts,
        };
        texts.iter().map(|text| super::parse_address(text)).collect::<Result<_, _>>().map_err(D::Error::custom)
    }
}

/// A URL, or `""` for none.
pub(super) mod optional_url {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::HttpUrl;

    pub(in crate::config) fn serialize<S: Serializer>(
        value: &Option<HttpUrl>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(url) => serializer.collect_str(url),
            None => serializer.serialize_str(""),
        }
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<HttpUrl>, D::Error> {
        match String::deserialize(deserializer)? {
            text if text.is_empty() => Ok(None),
            text => HttpUrl::try_from(text).map(Some).map_err(D::Error::custom),
        }
    }
}

/// A path, or `""` for none.
pub(super) mod optional_path {
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::config) fn serialize<S: Serializer>(
        value: &Option<PathBuf>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&value.as_deref().unwrap_or(Path::new("")).display())
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<PathBuf>, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(if text.is_empty() { None } else { Some(text.into()) })
    }
}
