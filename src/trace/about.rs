//! What the messages of a transaction tell to spans: where they go, and which spans of their producers they belong to.

use crate::amqp::method::Publish;
use crate::amqp::properties::Properties;
use crate::amqp::table;
use crate::tx::batch::{self, HalfMessage};
use std::sync::Arc;

/// Links of one span. A transaction whose messages come from more traces has links to the first.
const LINKS_MAX: usize = 32;

/// A span of somebody else, as `traceparent` names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Context {
    pub(super) trace_id: [u8; 16],
    pub(super) span_id: [u8; 8],
    pub(super) flags: u8,
}

impl Context {
    /// Reads a `traceparent`. Source: W3C Trace Context, section 3.2; of a version above 00 the first four fields count.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let [version, trace_id, span_id, flags] =
            [text.get(..2)?, text.get(3..35)?, text.get(36..52)?, text.get(53..55)?];
        let dashes = [2, 35, 52].iter().all(|at| text[*at] == b'-');
        let ends = text.len() == 55 || (version != b"00" && text[55] == b'-');
        let [version] = hex::<1>(version)?;
        let context = Context { trace_id: hex(trace_id)?, span_id: hex(span_id)?, flags: hex::<1>(flags)?[0] };
        let is_valid = context.trace_id != [0; 16] && context.span_id != [0; 8] && version != 0xff;
        (dashes && ends && is_valid).then_some(context)
    }
}

/// Small letters only, as the standard wants.
fn hex<const BYTES: usize>(text: &[u8]) -> Option<[u8; BYTES]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; BYTES];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct About {
    pub(super) vhost: Arc<str>,
    /// Of the transaction, if it has one.
    pub(super) name: Option<Arc<str>>,
    /// Of the first message.
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) messages: u64,
    pub(super) links: Vec<Context>,
}

impl About {
    /// About a transaction of which no message was seen.
    pub fn new(vhost: &Arc<str>, name: Option<&str>) -> Self {
        About { vhost: Arc::clone(vhost), name: name.map(Arc::from), ..About::default() }
    }

    /// Adds what messages, as they are stored, tell. Nothing is decoded but the header that is looked for.
    pub fn read(&mut self, messages: &[u8]) {
        for message in batch::iter(messages).map_while(Result::ok) {
            if self.messages == 0
                && let Ok(publish) = Publish::parse(message.publish)
            {
                self.exchange = String::from_utf8_lossy(publish.exchange).into_owned();
                self.routing_key = String::from_utf8_lossy(publish.routing_key).into_owned();
            }
            self.messages += 1;
            if self.links.len() < LINKS_MAX
                && let Some(context) = context_of(message)
                && !self.links.contains(&context)
            {
                self.links.push(context);
            }
        }
    }
}

fn context_of(message: HalfMessage<'_>) -> Option<Context> {
    let properties = Properties::parse(message.header).ok()?;
    let entry = table::find(properties.headers()?, b"traceparent")?;
    // Some clients write a byte array for it.
    matches!(entry.kind, b'S' | b'x').then(|| Context::parse(entry.value))?
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_as_the_standard_has_it() {
        let context = Context::parse(GOOD.as_bytes()).expect("a good one");
        assert_eq!(
            (context.trace_id[0], context.trace_id[15], context.span_id[0], context.flags),
            (0x0a, 0x9c, 0xb7, 1)
        );
        let later = GOOD.replacen("00-", "cc-", 1);
        assert!(Context::parse(later.as_bytes()).is_some(), "a later version");
        assert!(Context::parse(format!("{later}-more").as_bytes()).is_some(), "with what it may add");
        for wrong in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}-more"),
            &format!("{later}more"),
            &GOOD.replace("b7ad", "B7AD"),
            &GOOD.replacen("00-", "ff-", 1),
            &GOOD.replace('-', "_"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319ü-b7ad6b7169203331-01",
        ] {
            assert_eq!(Context::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
