//! Who the client is: which SASL mechanisms it is offered, what it says by them, and who may log in from where.

use crate::amqp::method::StartOk;
use crate::amqp::table;
use std::net::IpAddr;
use std::sync::Arc;

/// What the listener knows and wants of a client's login.
#[derive(Debug, Clone)]
pub struct LoginRules {
    /// Whether the client's address is a loopback address.
    pub from_loopback: bool,
    /// Users that may log in from loopback addresses only. RabbitMQ has the same rule, but judges the proxy's address.
    pub loopback_users: Vec<String>,
}

/// How a client says who it is: the SASL mechanisms that are read here exactly as RabbitMQ reads them. No other is
/// offered or let through, for who logs in by it would be unknown here: EXTERNAL would take the certificate of the proxy,
/// ANONYMOUS takes a user that RabbitMQ is configured with, and RABBIT-CR-DEMO tells the name where nobody looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// Name and password between NULs.
    Plain,
    /// Name and password in a field table.
    AmqPlain,
}

impl Mechanism {
    /// The mechanism of this name.
    pub fn of(name: &[u8]) -> Option<Self> {
        match name {
            b"PLAIN" => Some(Self::Plain),
            b"AMQPLAIN" => Some(Self::AmqPlain),
            _ => None,
        }
    }

    /// The user in a response, if RabbitMQ reads it as one.
    ///
    /// A name that is no UTF-8 is none: two of them could not be told apart in what is kept.
    fn user(self, response: &[u8]) -> Option<&str> {
        let name = match self {
            Self::Plain => match response.split(|byte| *byte == 0).collect::<Vec<_>>()[..] {
                [b"", user, _password] => user,
                _ => return None,
            },
            // RabbitMQ reads the whole table first, and takes the first entry of each name.
            Self::AmqPlain if table::check(response).is_ok() => {
                let text = |name| table::find(response, name).filter(|entry| entry.kind == b'S');
                text(b"PASSWORD")?;
                text(b"LOGIN")?.value
            }
            Self::AmqPlain => return None,
        };
        std::str::from_utf8(name).ok()
    }
}

/// Who the client is, as far as RabbitMQ's open-ok tells, from which on it exists. With OAuth 2 RabbitMQ looks at the token
/// alone and opens for any name, so before the name owns anything RabbitMQ is asked about it: see
/// [`super::probe::write_claim`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name that it logged in with.
    pub user: Arc<str>,
    /// The virtual host that RabbitMQ has opened for it.
    pub vhost: Arc<str>,
}

/// What a client says of itself in start-ok, and RabbitMQ has not confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The login name.
    pub user: Arc<str>,
}

/// Why a login goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LoginRefused {
    /// The mechanism is not one that the client was offered.
    #[error("the client chose a SASL mechanism that it was not offered")]
    Mechanism,
    /// A response that RabbitMQ would not read, or not as it is read here.
    #[error("the client's SASL response can't be read")]
    Response,
    /// A loopback user from elsewhere.
    #[error("this user may log in from loopback addresses only")]
    LoopbackUser,
}

impl LoginRules {
    /// The mechanisms to offer, out of those that RabbitMQ offers.
    pub fn offer(mechanisms: &[u8]) -> Vec<u8> {
        let names = mechanisms.split(|byte| *byte == b' ');
        names.filter(|name| Mechanism::of(name).is_some()).collect::<Vec<_>>().join(&b' ')
    }

    /// Whether RabbitMQ may be asked to log this client in, and as whom.
    ///
    /// # Errors
    /// [`LoginRefused`], to be told as RabbitMQ tells it.
    pub fn check(&self, start_ok: &StartOk<'_>) -> Result<Claim, LoginRefused> {
        let mechanism = Mechanism::of(start_ok.mechanism).ok_or(LoginRefused::Mechanism)?;
        let user = mechanism.user(start_ok.response).ok_or(LoginRefused::Response)?;
        if !self.from_loopback && self.loopback_users.iter().any(|guarded| guarded == user) {
            return Err(LoginRefused::LoopbackUser);
        }
        Ok(Claim { user: user.into() })
    }
}

/// Whether the client announced a capability, such as `connection.blocked`.
pub fn has_capability(client_properties: &[u8], name: &[u8]) -> bool {
    table::find(client_properties, b"capabilities")
        .filter(|entry| entry.kind == b'F')
        .and_then(|capabilities| table::find(capabilities.value, name))
        .is_some_and(|entry| entry.kind == b't' && entry.value != [0])
}

/// A text entry of a properties table, for the log and the connections page.
pub fn property(properties: &[u8], name: &[u8]) -> Option<String> {
    let entry = table::find(properties, name).filter(|entry| entry.kind == b'S')?;
    Some(String::from_utf8_lossy(entry.value).into_owned())
}

/// The largest message that RabbitMQ takes by default: 128 MiB before 4.0, 16 MiB from then on. It doesn't tell over
/// AMQP, so the version has to.
pub fn message_bytes_max(server_version: Option<&str>) -> u64 {
    let major = server_version.and_then(|version| version.split('.').next()).and_then(|major| major.parse().ok());
    if major.is_some_and(|major: u32| major < 4) { 128 << 20 } else { 16 << 20 }
}

/// The largest payload of a frame that RabbitMQ takes before a client has logged in: 4,096 bytes before 4.1, 8,192 from
/// then on.
pub fn login_frame_max(server_version: Option<&str>) -> usize {
    let mut parts = server_version.unwrap_or_default().split('.').map_while(|part| part.parse::<u32>().ok());
    match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) if (major, minor) < (4, 1) => 4_096,
        _ => 8_192,
    }
}

/// Whether an address is the machine's own, IPv4 in IPv6 included.
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::wire::Write;

    fn rules(from_loopback: bool) -> LoginRules {
        LoginRules { from_loopback, loopback_users: vec!["guest".into()] }
    }

    fn login<'a>(mechanism: &'a [u8], response: &'a [u8]) -> StartOk<'a> {
        StartOk { client_properties: b"", mechanism, response, locale: b"en_US" }
    }

    fn user(login: &StartOk<'_>) -> Result<String, LoginRefused> {
        rules(false).check(login).map(|claim| claim.user.to_string())
    }

    fn amqplain(entries: &[(&[u8], u8, &[u8])]) -> Vec<u8> {
        let mut table = Vec::new();
        for (name, kind, value) in entries {
            table.put_short_string(name);
            table.put_u8(*kind);
            table.put_long_string(value);
        }
        table
    }

    #[test]
    fn only_what_is_read_here_is_offered_or_let_through() {
        let offered = LoginRules::offer(b"ANONYMOUS PLAIN EXTERNAL RABBIT-CR-DEMO AMQPLAIN OAUTHBEARER");
        assert_eq!(offered, b"PLAIN AMQPLAIN");
        for other in [&b"EXTERNAL"[..], b"ANONYMOUS", b"RABBIT-CR-DEMO", b"plain", b"", b"PLAIN "] {
            assert_eq!(rules(true).check(&login(other, b"\0orders\0secret")), Err(LoginRefused::Mechanism));
        }
    }

    #[test]
    fn plain_is_read_as_rabbitmq_reads_it() {
        assert_eq!(user(&login(b"PLAIN", b"\0orders\0secret")), Ok("orders".into()));
        assert_eq!(user(&login(b"PLAIN", b"\0orders\0")), Ok("orders".into()));
        for other in
            [&b""[..], b"orders", b"\0orders", b"guest\0orders\0secret", b"\0orders\0secret\0", b"\0\xff\0secret"]
        {
            assert_eq!(user(&login(b"PLAIN", other)), Err(LoginRefused::Response), "{other:?}");
        }
    }

    #[test]
    fn amqplain_is_read_as_rabbitmq_reads_it() {
        let password: (&[u8], u8, &[u8]) = (b"PASSWORD", b'S', b"secret");
        let read = |entries: &[_]| user(&login(b"AMQPLAIN", &amqplain(entries)));
        assert_eq!(read(&[(b"LOGIN", b'S', b"orders"), password]), Ok("orders".into()));
        assert_eq!(read(&[password, (b"LOGIN", b'S', b"one"), (b"LOGIN", b'S', b"two")]), Ok("one".into()));
        // RabbitMQ takes the first one, whatever its type, and logs in with the bytes of an `x`.
        for guest in [b'x', b'F', b'A'] {
            assert_eq!(read(&[(b"LOGIN", guest, b""), password]), Err(LoginRefused::Response));
            assert_eq!(
                read(&[(b"LOGIN", guest, b""), (b"LOGIN", b'S', b"orders"), password]),
                Err(LoginRefused::Response)
            );
        }
        let orders: (&[u8], u8, &[u8]) = (b"LOGIN", b'S', b"orders");
        assert_eq!(read(&[orders]), Err(LoginRefused::Response));
        assert_eq!(read(&[orders, (b"PASSWORD", b'x', b"secret")]), Err(LoginRefused::Response));
        let whole = amqplain(&[orders, password, (b"t", b'F', b"")]);
        assert_eq!(user(&login(b"AMQPLAIN", &whole)), Ok("orders".into()));
        assert_eq!(user(&login(b"AMQPLAIN", &whole[..whole.len() - 1])), Err(LoginRefused::Response));
    }

    #[test]
    fn loopback_users_come_from_loopback_only() {
        let amqplain = amqplain(&[(b"LOGIN", b'S', b"guest"), (b"PASSWORD", b'S', b"guest")]);
        for guest in [login(b"PLAIN", b"\0guest\0guest"), login(b"AMQPLAIN", &amqplain)] {
            assert_eq!(rules(false).check(&guest), Err(LoginRefused::LoopbackUser));
            assert_eq!(rules(true).check(&guest).map(|claim| claim.user), Ok("guest".into()));
        }
        assert_eq!(user(&login(b"PLAIN", b"\0orders\0secret")), Ok("orders".into()));
    }

    #[test]
    fn an_ipv4_loopback_address_in_ipv6_is_loopback() {
        for address in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(is_loopback(address.parse().unwrap()), "{address}");
        }
        assert!(!is_loopback("::ffff:10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn capabilities_are_read_from_their_table() {
        let (mut capabilities, mut properties) = (Vec::new(), Vec::new());
        table::write_bool(&mut capabilities, b"connection.blocked", true);
        table::write_bool(&mut capabilities, b"basic.nack", false);
        properties.put_short_string(b"capabilities");
        properties.put_u8(b'F');
        properties.put_long_string(&capabilities);
        assert!(has_capability(&properties, b"connection.blocked"));
        assert!(!has_capability(&properties, b"basic.nack"));
        assert!(!has_capability(&properties, b"other"));
    }

    #[test]
    fn the_default_message_limit_follows_the_version() {
        assert_eq!(message_bytes_max(Some("3.10.8")), 128 << 20);
        assert_eq!(message_bytes_max(Some("4.0.5")), 16 << 20);
        assert_eq!(message_bytes_max(None), 16 << 20);
    }

    #[test]
    fn the_limit_of_a_login_frame_follows_the_version() {
        assert_eq!(
            ["3.10.8", "4.0.5", "4.1.0", "4.3.0-rc.1", "5.0.0"].map(|it| login_frame_max(Some(it))),
            [4_096, 4_096, 8_192, 8_192, 8_192]
        );
        assert_eq!(login_frame_max(None), 8_192);
    }
}
