//! The holes that a proxy would open in RabbitMQ's authentication, closed: which SASL mechanisms are offered to a
//! client, and who may log in from where.

use crate::amqp::method::StartOk;
use crate::amqp::table;
use std::net::IpAddr;

/// What the listener knows and wants of a client's login.
#[derive(Debug, Clone)]
pub struct LoginRules {
    /// Whether the client's address is a loopback address.
    pub from_loopback: bool,
    /// Users that may log in from loopback addresses only. RabbitMQ has the same rule, but judges the proxy's address.
    pub loopback_users: Vec<String>,
}

/// Why a login goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LoginRefused {
    /// The mechanism is not one that the client was offered.
    #[error("the client chose a SASL mechanism that it was not offered")]
    Mechanism,
    /// A loopback user from elsewhere.
    #[error("this user may log in from loopback addresses only")]
    LoopbackUser,
}

impl LoginRules {
    /// The mechanisms to offer, out of those that RabbitMQ offers.
    ///
    /// EXTERNAL would log the client in with the certificate of the proxy; ANONYMOUS logs in as a user that RabbitMQ
    /// guards by address.
    pub fn offer(&self, mechanisms: &[u8]) -> Vec<u8> {
        let kept: Vec<&[u8]> = mechanisms.split(|byte| *byte == b' ').filter(|name| self.offers(name)).collect();
        kept.join(&b' ')
    }

    fn offers(&self, mechanism: &[u8]) -> bool {
        match mechanism {
            b"EXTERNAL" => false,
            b"ANONYMOUS" => self.from_loopback,
            _ => true,
        }
    }

    /// Whether RabbitMQ may be asked to log this client in, and as whom.
    ///
    /// # Errors
    /// [`LoginRefused`], to be told as RabbitMQ tells it.
    pub fn check(&self, start_ok: &StartOk<'_>) -> Result<String, LoginRefused> {
        if !self.offers(start_ok.mechanism) {
            return Err(LoginRefused::Mechanism);
        }
        let user = user(start_ok).unwrap_or_default();
        if !self.from_loopback && self.loopback_users.contains(&user) {
            return Err(LoginRefused::LoopbackUser);
        }
        Ok(user)
    }
}

/// The user name in a login, where the mechanism carries one that can be read.
fn user(start_ok: &StartOk<'_>) -> Option<String> {
    let name = match start_ok.mechanism {
        b"PLAIN" => start_ok.response.split(|byte| *byte == 0).nth(1)?,
        b"AMQPLAIN" => table::find(start_ok.response, b"LOGIN").filter(|entry| entry.kind == b'S')?.value,
        _ => return None,
    };
    Some(String::from_utf8_lossy(name).into_owned())
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

    #[test]
    fn external_is_never_offered_and_anonymous_only_nearby() {
        assert_eq!(rules(false).offer(b"PLAIN EXTERNAL AMQPLAIN ANONYMOUS"), b"PLAIN AMQPLAIN");
        assert_eq!(rules(true).offer(b"ANONYMOUS EXTERNAL PLAIN"), b"ANONYMOUS PLAIN");
        assert_eq!(rules(true).check(&login(b"EXTERNAL", b"")), Err(LoginRefused::Mechanism));
        assert_eq!(rules(false).check(&login(b"ANONYMOUS", b"")), Err(LoginRefused::Mechanism));
    }

    #[test]
    fn loopback_users_come_from_loopback_only() {
        let mut amqplain = Vec::new();
        table::write_string(&mut amqplain, b"LOGIN", b"guest");
        for guest in [login(b"PLAIN", b"\0guest\0guest"), login(b"AMQPLAIN", &amqplain)] {
            assert_eq!(rules(false).check(&guest), Err(LoginRefused::LoopbackUser));
            assert_eq!(rules(true).check(&guest).as_deref(), Ok("guest"));
        }
        assert_eq!(rules(false).check(&login(b"PLAIN", b"\0orders\0secret")).as_deref(), Ok("orders"));
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
}
