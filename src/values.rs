//! Properties and headers of messages as JSON: plain, for programs, or each value with its AMQP type, for people.

use crate::amqp::properties::Property;
use crate::amqp::table;
use serde::Serialize;
use serde_json::{Map, Number, Value};
use std::time::{Duration, UNIX_EPOCH};
use utoipa::ToSchema;

/// Tables within tables that are shown; what lies deeper is null.
const DEPTH_MAX: usize = 32;

/// A field table: of entries with one name the first, as RabbitMQ takes it. What can't be read ends it.
pub(crate) fn object(table: &[u8]) -> Value {
    object_within(table, 0)
}

fn object_within(table: &[u8], depth: usize) -> Value {
    let mut object = Map::new();
    for entry in table::entries(table).map_while(Result::ok) {
        object.entry(text(entry.name)).or_insert_with(|| value(entry.kind, entry.value, depth));
    }
    Value::Object(object)
}

/// Bytes that are meant as text: what is not UTF-8 is shown as U+FFFD.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One value. A number keeps its value; a time is RFC 3339, a decimal and a number that JSON hasn't are texts, a byte
/// array is in hexadecimal digits.
fn value(kind: u8, bytes: &[u8], depth: usize) -> Value {
    let shown = match kind {
        b't' => bytes.first().map(|byte| Value::Bool(*byte != 0)),
        b'b' => whole(bytes).map(|[byte]| i8::from_be_bytes([byte]).into()),
        b'B' => whole(bytes).map(|[byte]| byte.into()),
        b's' => whole(bytes).map(|bytes| i16::from_be_bytes(bytes).into()),
        b'u' => whole(bytes).map(|bytes| u16::from_be_bytes(bytes).into()),
        b'I' => whole(bytes).map(|bytes| i32::from_be_bytes(bytes).into()),
        b'i' => whole(bytes).map(|bytes| u32::from_be_bytes(bytes).into()),
        b'l' | b'L' => whole(bytes).map(|bytes| i64::from_be_bytes(bytes).into()),
        b'f' => whole(bytes).map(|bytes| float(f32::from_be_bytes(bytes).into())),
        b'd' => whole(bytes).map(|bytes| float(f64::from_be_bytes(bytes))),
        b'T' => whole(bytes).map(|bytes| time(u64::from_be_bytes(bytes))),
        b'D' => whole(bytes).map(|[scale, a, b, c, d]| decimal(scale, i32::from_be_bytes([a, b, c, d])).into()),
        b'S' => Some(text(bytes).into()),
        b'x' => Some(hex(bytes).into()),
        b'F' if depth < DEPTH_MAX => Some(object_within(bytes, depth + 1)),
        b'A' if depth < DEPTH_MAX => {
            let items = table::array_values(bytes).map_while(Result::ok);
            Some(items.map(|(kind, bytes)| value(kind, bytes, depth + 1)).collect())
        }
        _ => None,
    };
    shown.unwrap_or(Value::Null)
}

fn whole<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

fn float(number: f64) -> Value {
    Number::from_f64(number).map_or_else(|| number.to_string().into(), Value::Number)
}

/// A value with its AMQP type, by the name that RabbitMQ gives it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = Value)]
pub(crate) struct Typed {
    /// Its name; none within an array.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `longstr`, `table`, `timestamp`, ...
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Numbers of 64 bits are strings of digits; tables and arrays hold values like this one; times and decimals are
    /// texts, byte arrays hexadecimal digits.
    pub value: Value,
}

/// The entries of a field table as they came, those included that have the same name. What can't be read ends it.
pub(crate) fn typed(table: &[u8]) -> Vec<Typed> {
    typed_within(table, 0)
}

fn typed_within(table: &[u8], depth: usize) -> Vec<Typed> {
    let entries = table::entries(table).map_while(Result::ok);
    entries.map(|entry| typed_value(Some(text(entry.name)), entry.kind, entry.value, depth)).collect()
}

fn typed_value(name: Option<String>, kind: u8, bytes: &[u8], depth: usize) -> Typed {
    let deeper = depth < DEPTH_MAX;
    let json = |typed: Vec<Typed>| serde_json::to_value(typed).unwrap_or(Value::Null);
    let value = match kind {
        b'l' | b'L' => whole(bytes).map_or(Value::Null, |bytes| i64::from_be_bytes(bytes).to_string().into()),
        b'F' if deeper => json(typed_within(bytes, depth + 1)),
        b'A' if deeper => {
            let items = table::array_values(bytes).map_while(Result::ok);
            json(items.map(|(kind, bytes)| typed_value(None, kind, bytes, depth + 1)).collect())
        }
        // A time that is no date is digits as well.
        _ => match value(kind, bytes, DEPTH_MAX) {
            Value::Number(number) if kind == b'T' => number.to_string().into(),
            value => value,
        },
    };
    Typed { name, kind: type_name(kind), value }
}

fn type_name(kind: u8) -> &'static str {
    match kind {
        b't' => "bool",
        b'b' => "byte",
        b'B' => "unsignedbyte",
        b's' => "short",
        b'u' => "unsignedshort",
        b'I' => "signedint",
        b'i' => "unsignedint",
        b'l' | b'L' => "long",
        b'f' => "float",
        b'd' => "double",
        b'D' => "decimal",
        b'S' => "longstr",
        b'x' => "binary",
        b'T' => "timestamp",
        b'F' => "table",
        b'A' => "array",
        _ => "void",
    }
}

/// A property that is not the headers table.
pub(crate) fn property(name: &str, property: Property<'_>) -> Typed {
    let (kind, value) = match property {
        Property::Text(bytes) => ("shortstr", text(bytes).into()),
        Property::Octet(octet) => ("octet", octet.into()),
        Property::Time(seconds) => ("timestamp", rfc3339(seconds).unwrap_or_else(|| seconds.to_string()).into()),
    };
    Typed { name: Some(name.to_owned()), kind, value }
}

/// Seconds since 1970; what lies behind the year 9999 can't be written as a date.
fn time(seconds: u64) -> Value {
    rfc3339(seconds).map_or_else(|| seconds.into(), Value::from)
}

fn decimal(scale: u8, unscaled: i32) -> String {
    let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = usize::from(scale) + 1);
    let (whole, part) = digits.split_at(digits.len() - usize::from(scale));
    let sign = if unscaled < 0 { "-" } else { "" };
    if part.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{part}") }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

const DIGITS: [u8; 16] = *b"0123456789abcdef";

/// So many seconds after the beginning of 1970, in RFC 3339; `None` behind the year 9999, where that ends.
fn rfc3339(seconds: u64) -> Option<String> {
    let since_epoch = Duration::from_secs(seconds);
    (since_epoch < BEHIND_9999).then(|| humantime::format_rfc3339_seconds(UNIX_EPOCH + since_epoch).to_string())
}

const BEHIND_9999: Duration = Duration::from_secs(253_402_300_800);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::wire::Write;
    use serde_json::json;

    fn entry(out: &mut Vec<u8>, name: &[u8], kind: u8, value: &[u8]) {
        out.put_short_string(name);
        out.put_u8(kind);
        out.extend_from_slice(value);
    }

    fn long(value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_long_string(value);
        out
    }

    #[test]
    fn every_type_is_shown() {
        let mut inner = Vec::new();
        entry(&mut inner, b"k", b't', &[1]);
        let array = [&b"t\0"[..], b"b\xff", b"S", &long(b"x"), b"V"].concat();
        let mut table = Vec::new();
        for (name, kind, value) in [
            ("t", b't', vec![1]),
            ("b", b'b', vec![0xfe]),
            ("B", b'B', vec![0xfe]),
            ("s", b's', vec![0xff, 0xfe]),
            ("u", b'u', vec![0xff, 0xfe]),
            ("I", b'I', (-7_i32).to_be_bytes().to_vec()),
            ("i", b'i', u32::MAX.to_be_bytes().to_vec()),
            ("l", b'l', i64::MIN.to_be_bytes().to_vec()),
            ("L", b'L', 5_i64.to_be_bytes().to_vec()),
            ("f", b'f', 1.5_f32.to_be_bytes().to_vec()),
            ("d", b'd', (-2.25_f64).to_be_bytes().to_vec()),
            ("nan", b'd', f64::NAN.to_be_bytes().to_vec()),
            ("T", b'T', 1_700_000_000_u64.to_be_bytes().to_vec()),
            ("late", b'T', u64::MAX.to_be_bytes().to_vec()),
            ("D", b'D', [&[2][..], &(-5_i32).to_be_bytes()].concat()),
            ("D0", b'D', [&[0][..], &12_i32.to_be_bytes()].concat()),
            ("S", b'S', long("ü".as_bytes())),
            ("bad", b'S', long(b"a\xff")),
            ("x", b'x', long(b"\0\xab")),
            ("V", b'V', vec![]),
            ("F", b'F', long(&inner)),
            ("A", b'A', long(&array)),
            ("t", b't', vec![0]),
        ] {
            entry(&mut table, name.as_bytes(), kind, &value);
        }
        let expected = json!({
            "t": true, "b": -2, "B": 254, "s": -2, "u": 65534, "I": -7, "i": u32::MAX, "l": i64::MIN, "L": 5,
            "f": 1.5, "d": -2.25, "nan": "NaN", "T": "2023-11-14T22:13:20Z", "late": u64::MAX, "D": "-0.05",
            "D0": "12", "S": "ü", "bad": "a\u{fffd}", "x": "00ab", "V": null, "F": {"k": true},
            "A": [false, -1, "x", null],
        });
        assert_eq!(object(&table), expected);
    }

    #[test]
    fn every_type_has_its_name_and_keeps_its_value() {
        let mut inner = Vec::new();
        entry(&mut inner, b"k", b't', &[1]);
        let array = [&b"t\0"[..], b"l", &i64::MAX.to_be_bytes()].concat();
        let mut table = Vec::new();
        for (name, kind, value) in [
            ("n", b'l', i64::MIN.to_be_bytes().to_vec()),
            ("n", b'I', (-7_i32).to_be_bytes().to_vec()),
            ("T", b'T', 1_700_000_000_u64.to_be_bytes().to_vec()),
            ("late", b'T', u64::MAX.to_be_bytes().to_vec()),
            ("S", b'S', long("<b>\u{202e}".as_bytes())),
            ("F", b'F', long(&inner)),
            ("A", b'A', long(&array)),
            ("V", b'V', vec![]),
        ] {
            entry(&mut table, name.as_bytes(), kind, &value);
        }
        let expected = json!([
            {"name": "n", "type": "long", "value": i64::MIN.to_string()},
            {"name": "n", "type": "signedint", "value": -7},
            {"name": "T", "type": "timestamp", "value": "2023-11-14T22:13:20Z"},
            {"name": "late", "type": "timestamp", "value": u64::MAX.to_string()},
            {"name": "S", "type": "longstr", "value": "<b>\u{202e}"},
            {"name": "F", "type": "table", "value": [{"name": "k", "type": "bool", "value": true}]},
            {"name": "A", "type": "array", "value": [
                {"type": "bool", "value": false}, {"type": "long", "value": i64::MAX.to_string()},
            ]},
            {"name": "V", "type": "void", "value": null},
        ]);
        assert_eq!(serde_json::to_value(typed(&table)).expect("JSON"), expected);
        let shown = property("priority", Property::Octet(9));
        assert_eq!((shown.kind, shown.value), ("octet", json!(9)));
    }

    #[test]
    fn a_nesting_bomb_is_cut() {
        let bomb = (0..5_000).fold(Vec::new(), |inner, _| {
            let mut table = Vec::new();
            entry(&mut table, b"t", b'F', &long(&inner));
            table
        });
        let shown = object(&bomb).to_string();
        assert_eq!(shown.matches('{').count(), DEPTH_MAX + 1);
        let shown = serde_json::to_string(&typed(&bomb)).expect("JSON");
        assert_eq!(shown.matches('{').count(), DEPTH_MAX + 1);
    }
}
