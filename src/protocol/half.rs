//! What a producer says in the headers of a message: which transaction it belongs to, who knows about it, and what was
//! decided elsewhere.

use super::command::{ConnectionSettings, Io};
use super::probe;
use crate::amqp::method::Publish;
use crate::amqp::properties::Properties;
use crate::amqp::reply_code::ReplyCode;
use crate::amqp::table::Entry;
use crate::tx::checker::{CheckPlan, Named, Subject};
use crate::tx::decision::{Decision, Verdict};
use crate::tx::name::TransactionName;
use crate::tx::outcome::StoreError;
use std::time::Duration;

/// Names the transaction.
const TRANSACTION: &[u8] = b"x-half-transaction";
/// Picks a configured checker.
const CHECKER: &[u8] = b"x-half-checker";
/// Overrides the checker's `first_after`, in seconds.
const CHECK_AFTER: &[u8] = b"x-half-check-after";
/// What forwarding adds to a content header at most: `x-half-id` with an index of ten digits (62), then
/// `x-half-possible-duplicate` (28), the length of the table (4), and the frame around it (8). Rounded up.
const HEADER_GROWTH_BYTES: usize = 104;

/// Why a message that lives and dies with its connection is not parked.
pub const NATIVE: &str = "a direct reply, or a request for one, can't be a half message";

/// Whether a message names a transaction, rightly or wrongly.
pub fn is_named(properties: &Properties<'_>) -> bool {
    properties.find(TRANSACTION).is_some()
}

/// Reads the transaction that a message belongs to; `None` if it names none.
///
/// # Errors
/// What is wrong with a header, for a channel error 406.
pub fn read(
    publish: &Publish<'_>,
    properties: &Properties<'_>,
    transactional: bool,
    io: &Io,
) -> Result<Option<Named>, String> {
    let Some(name) = name(properties)? else { return Ok(None) };
    let subject = Subject { vhost: io.vhost(), user: io.user(), transaction: &name, exchange: publish.exchange };
    let rules = &io.settings.rules;
    let rule = match properties.find(CHECKER) {
        None => rules.matching(&subject),
        Some(entry) => {
            let checker = String::from_utf8_lossy(string(&entry, CHECKER)?);
            let picked = rules.picked(&checker, &subject);
            Some(picked.map_err(|why| format!("header x-half-checker names '{checker}', {why}"))?)
        }
    };
    let after = properties.find(CHECK_AFTER).map(|entry| seconds(&entry)).transpose()?;
    let check =
        rule.map(|rule| CheckPlan { checker: rule.checker.clone(), first_after: after.unwrap_or(rule.first_after) });
    Ok(Some(Named { name, check, transactional }))
}

/// Reads a message to the control exchange: the decision, and whose.
///
/// # Errors
/// What is wrong with it, for a channel error 406.
pub fn read_control(
    publish: &Publish<'_>,
    properties: &Properties<'_>,
    body_bytes: u64,
) -> Result<(Decision, TransactionName), String> {
    let exchange = String::from_utf8_lossy(publish.exchange);
    let decision = match publish.routing_key {
        b"commit" => Decision::Commit,
        b"rollback" => Decision::RollBack,
        other => {
            let other = String::from_utf8_lossy(other);
            return Err(format!("routing key '{other}' to exchange '{exchange}' is neither 'commit' nor 'rollback'"));
        }
    };
    if body_bytes > 0 {
        return Err(format!("a message to exchange '{exchange}' has no body, this one has {body_bytes} bytes"));
    }
    match name(properties)? {
        Some(name) => Ok((decision, name)),
        None => Err(format!("a message to exchange '{exchange}' needs the header x-half-transaction")),
    }
}

/// What a channel that sent a decision is told where it was not made, as a channel error.
///
/// # Errors
/// 404 if there is no such transaction, 406 if the opposite was decided before, else what the store's failure means.
pub fn check_verdict(name: &TransactionName, result: Result<Verdict, StoreError>) -> Result<(), (ReplyCode, String)> {
    match result {
        Ok(Verdict::Decided(_) | Verdict::Before(_)) => Ok(()),
        Ok(Verdict::Unknown) => Err((ReplyCode::NOT_FOUND, format!("no transaction '{name}'"))),
        Ok(Verdict::Contradicted(fate)) => {
            let text =
                format!("transaction '{name}' is {} since {} by {}", fate.state, fate.decided_at, fate.decided_by);
            Err((ReplyCode::PRECONDITION_FAILED, text))
        }
        Err(error) => Err((error.reply_code(), error.to_string())),
    }
}

/// Why a message can't be parked for its size, or `None` if it can; for a channel error 406 when all of it has come.
pub fn too_large(header_bytes: usize, body_bytes: u64, settings: &ConnectionSettings, io: &Io) -> Option<String> {
    let max = settings.limits.message_bytes_max.unwrap_or(io.server_message_bytes_max);
    if body_bytes > max {
        return Some(format!("message size {body_bytes} is larger than configured max size {max}"));
    }
    // The relay's frames may be as large as RabbitMQ allows, the probe's as the client has agreed on.
    let roads = [
        (io.server_frame_max, HEADER_GROWTH_BYTES, "x-half-id"),
        (io.frame_max, probe::GROWTH_BYTES, "what RabbitMQ is asked before"),
    ];
    let too_small = |(max, growth, _): &(u32, usize, _)| *max != 0 && header_bytes + growth > *max as usize;
    roads.into_iter().find(too_small).map(|(max, _, what)| {
        format!("message properties of {header_bytes} bytes leave no room for {what} in a frame of {max}")
    })
}

fn name(properties: &Properties<'_>) -> Result<Option<TransactionName>, String> {
    let Some(entry) = properties.find(TRANSACTION) else { return Ok(None) };
    let bytes = string(&entry, TRANSACTION)?;
    TransactionName::new(bytes).map(Some).map_err(|bad| format!("header x-half-transaction {bad}"))
}

fn string<'a>(entry: &Entry<'a>, header: &[u8]) -> Result<&'a [u8], String> {
    match entry.kind {
        b'S' => Ok(entry.value),
        kind => Err(format!("header {} has type '{}', not longstr", String::from_utf8_lossy(header), char::from(kind))),
    }
}

/// Any of the integer types, for clients pick one by the size of the number.
fn seconds(entry: &Entry<'_>) -> Result<Duration, String> {
    let bytes = entry.value;
    let negative =
        matches!(entry.kind, b'b' | b's' | b'I' | b'l' | b'L') && bytes.first().is_some_and(|b| b & 0x80 != 0);
    match entry.kind {
        b'b' | b'B' | b's' | b'u' | b'I' | b'i' | b'l' | b'L' if negative => {
            Err("header x-half-check-after is negative".into())
        }
        b'b' | b'B' | b's' | b'u' | b'I' | b'i' | b'l' | b'L' => {
            Ok(Duration::from_secs(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))))
        }
        kind => Err(format!("header x-half-check-after has type '{}', not a number of seconds", char::from(kind))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::connection::tests::settings;
    use super::*;
    use crate::amqp::frame::{Split, split};
    use crate::amqp::properties::tests::full;
    use crate::amqp::wire::Write;
    use crate::tx::checker::{Rule, Rules};
    use std::sync::Arc;
    use std::time::Instant;

    const PUBLISH: Publish<'static> = Publish { exchange: b"orders", routing_key: b"commit", flags: 0 };

    type Entries<'a> = &'a [(&'a [u8], u8, &'a [u8])];

    fn table(entries: Entries<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, kind, value) in entries {
            out.put_short_string(name);
            out.put_u8(*kind);
            match kind {
                b'S' | b'x' => out.put_long_string(value),
                _ => out.extend_from_slice(value),
            }
        }
        out
    }

    fn io() -> Io {
        let rule = |checker: &str, exchange: Option<&str>| Rule {
            checker: checker.into(),
            vhost: None,
            user: None,
            transaction: None,
            exchange: exchange.map(Into::into),
            first_after: Duration::from_secs(6),
        };
        let rules = vec![rule("of-others", Some("none")), rule("by-rule", Some("orders")), rule("by-name", None)];
        let settings = ConnectionSettings { rules: Arc::new(Rules::new(rules)), ..settings() };
        Io::new(settings, Instant::now())
    }

    fn named(entries: Entries<'_>) -> Result<Option<Named>, String> {
        let header = full(0, &table(entries));
        read(&PUBLISH, &Properties::parse(&header).unwrap(), true, &io())
    }

    #[test]
    fn the_headers_say_which_transaction_and_whom_to_ask() {
        assert_eq!(named(&[(b"other", b'S', b"x")]), Ok(None));
        let one = named(&[(TRANSACTION, b'S', b"order-1")]).unwrap().unwrap();
        let plan =
            |checker: &str, secs| Some(CheckPlan { checker: checker.into(), first_after: Duration::from_secs(secs) });
        assert_eq!((one.name.as_str(), one.check), ("order-1", plan("by-rule", 6)));
        for (kind, value) in [(b'I', &[0, 0, 1, 0][..]), (b'l', &[0, 0, 0, 0, 0, 0, 1, 0]), (b's', &[1, 0])] {
            let other = named(&[(TRANSACTION, b'S', b"a"), (CHECKER, b'S', b"by-name"), (CHECK_AFTER, kind, value)]);
            assert_eq!(other.unwrap().unwrap().check, plan("by-name", 256));
        }
    }

    #[test]
    fn a_wrong_header_is_named() {
        let long = [b'n'; 256];
        let cases: [(Entries<'_>, &str); 8] = [
            (&[(TRANSACTION, b'S', b"")], "header x-half-transaction is empty"),
            (&[(TRANSACTION, b'S', &long)], "header x-half-transaction has 256 bytes, more than 255"),
            (&[(TRANSACTION, b'S', b"\xff")], "header x-half-transaction is not UTF-8"),
            (&[(TRANSACTION, b'x', b"a")], "header x-half-transaction has type 'x', not longstr"),
            (
                &[(TRANSACTION, b'S', b"a"), (CHECKER, b'S', b"nobody")],
                "header x-half-checker names 'nobody', which is not among the configured checkers",
            ),
            (
                &[(TRANSACTION, b'S', b"a"), (CHECKER, b'S', b"of-others")],
                "header x-half-checker names 'of-others', whose match does not fit this transaction",
            ),
            (
                &[(TRANSACTION, b'S', b"a"), (CHECK_AFTER, b'I', &[255, 255, 255, 255])],
                "header x-half-check-after is negative",
            ),
            (
                &[(TRANSACTION, b'S', b"a"), (CHECK_AFTER, b'S', b"6")],
                "header x-half-check-after has type 'S', not a number of seconds",
            ),
        ];
        for (entries, error) in cases {
            assert_eq!(named(entries), Err(error.to_owned()));
        }
    }

    #[test]
    fn a_control_message_has_a_decision_a_name_and_no_body() {
        let control = |routing_key: &'static [u8], entries: Entries<'_>, body_bytes| {
            let header = full(body_bytes, &table(entries));
            let publish = Publish { exchange: b"halfway", routing_key, flags: 0 };
            read_control(&publish, &Properties::parse(&header).unwrap(), body_bytes)
        };
        let name: Entries<'_> = &[(TRANSACTION, b'S', b"a")];
        let read = control(b"commit", name, 0).unwrap();
        assert_eq!((read.0, read.1.as_str()), (Decision::Commit, "a"));
        assert_eq!(control(b"rollback", name, 0).unwrap().0, Decision::RollBack);
        for (wrong, says) in [
            (control(b"abort", name, 0), "routing key 'abort'"),
            (control(b"commit", name, 3), "3 bytes"),
            (control(b"commit", &[], 0), "needs the header x-half-transaction"),
            (control(b"commit", &[(TRANSACTION, b'I', &[0; 4])], 0), "has type 'I'"),
        ] {
            assert!(wrong.unwrap_err().contains(says));
        }
    }

    #[test]
    fn what_is_not_too_large_can_be_asked_about() {
        let mut io = io();
        (io.frame_max, io.server_frame_max) = (4096, 131_072);
        let mut fitting = 0;
        for filler in 3_900..4_096 {
            let text = vec![b'x'; filler];
            let headers = table(&[(b"k", b'S', &text)]);
            let header = full(0, &headers);
            let mut probe = Vec::new();
            probe::write(&mut probe, 1, &PUBLISH, &Properties::parse(&header).unwrap());
            let Split::Frame(method) = split(&probe, usize::MAX - 8) else { panic!("a method") };
            let Split::Frame(asked) = split(&probe[method.raw.len()..], usize::MAX - 8) else { panic!("a header") };
            let fits = too_large(header.len(), 0, &io.settings, &io).is_none();
            assert!(!fits || asked.payload.len() <= 4096, "{filler}");
            fitting += usize::from(fits);
        }
        assert!(fitting > 10, "most have room");
        let text = too_large(4_080, 0, &io.settings, &io).unwrap();
        assert!(text.contains("4080 bytes leave no room") && text.ends_with("a frame of 4096"), "{text}");
    }
}
