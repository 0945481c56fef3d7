//! Field tables, walked in place (AMQP 0-9-1, section 4.2.5.5, with RabbitMQ's type tags).

use super::wire::{Malformed, Reader, Write};

/// One entry of a field table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The name. Names may repeat; RabbitMQ takes the first.
    pub name: &'a [u8],
    /// The type tag, such as `b'S'`.
    pub kind: u8,
    /// The value's bytes, without a length before them for `S`, `x`, `F` and `A`.
    pub value: &'a [u8],
    /// The entry as it came.
    pub raw: &'a [u8],
}

/// The entries of a table, in the order they came. Ends after the first malformed one.
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    rest: &'a [u8],
}

/// Walks the entries of a table, `table` being what stands behind its length.
pub fn entries(table: &[u8]) -> Entries<'_> {
    Entries { rest: table }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let whole = self.rest;
        let mut reader = Reader::new(whole);
        let mut read = || {
            let name = reader.short_string()?;
            let (kind, value) = field(&mut reader)?;
            Ok(Entry { name, kind, value, raw: &whole[..whole.len() - reader.rest().len()] })
        };
        let entry = read();
        self.rest = if entry.is_ok() { reader.rest() } else { &[] };
        Some(entry)
    }
}

/// Reads a type tag and the bytes of its value.
fn field<'a>(reader: &mut Reader<'a>) -> Result<(u8, &'a [u8]), Malformed> {
    let kind = reader.u8()?;
    let value = match kind {
        b't' | b'b' | b'B' => reader.take(1)?,
        b's' | b'u' => reader.take(2)?,
        b'I' | b'i' | b'f' => reader.take(4)?,
        b'l' | b'L' | b'd' | b'T' => reader.take(8)?,
        b'D' => reader.take(5)?,
        b'S' | b'x' | b'F' | b'A' => reader.long_string()?,
        b'V' => &[],
        _ => return Err(Malformed),
    };
    Ok((kind, value))
}

/// The first entry called `name`.
pub fn find<'a>(table: &'a [u8], name: &[u8]) -> Option<Entry<'a>> {
    entries(table).map_while(Result::ok).find(|entry| entry.name == name)
}

/// Whether RabbitMQ can read the whole table, nested values included: every type tag is known, every value ends within what
/// holds it, and every float is a number. Its parser has no limit to nesting, so there is none here, and no recursion.
///
/// # Errors
/// RabbitMQ's parser has no clause for something in it: it would close the connection with 541. Source:
/// rabbit_binary_parser:parse_table, the same in 3.10 and 4.3.
pub fn check(table: &[u8]) -> Result<(), Malformed> {
    check_each(table, |_, _| {})
}

/// As [`check`]; shows `look` the name and the bytes of each entry of the table itself on the way.
///
/// # Errors
/// Those of [`check`].
pub fn check_each<'a>(table: &'a [u8], mut look: impl FnMut(&'a [u8], &'a [u8])) -> Result<(), Malformed> {
    let (mut here, mut is_array) = (Reader::new(table), false);
    let mut around = Vec::new();
    loop {
        if here.rest().is_empty() {
            match around.pop() {
                Some(outer) => (here, is_array) = outer,
                None => return Ok(()),
            }
            continue;
        }
        let whole = here.rest();
        let name = if is_array { None } else { Some(here.short_string()?) };
        let value = field(&mut here)?;
        if let Some(name) = name.filter(|_| around.is_empty()) {
            look(name, &whole[..whole.len() - here.rest().len()]);
        }
        match value {
            (kind @ (b'F' | b'A'), value) => {
                around.push((here, is_array));
                (here, is_array) = (Reader::new(value), kind == b'A');
            }
            (b'f', value) if !value.try_into().map(f32::from_be_bytes).is_ok_and(f32::is_finite) => {
                return Err(Malformed);
            }
            (b'd', value) if !value.try_into().map(f64::from_be_bytes).is_ok_and(f64::is_finite) => {
                return Err(Malformed);
            }
            _ => {}
        }
    }
}

/// The values of an array, each its type tag and its bytes. Ends after the first malformed one.
pub fn array_values(array: &[u8]) -> impl Iterator<Item = Result<(u8, &[u8]), Malformed>> {
    let mut reader = Some(Reader::new(array));
    std::iter::from_fn(move || {
        let mut rest = reader.take().filter(|reader| !reader.rest().is_empty())?;
        let value = field(&mut rest);
        if value.is_ok() {
            reader = Some(rest);
        }
        Some(value)
    })
}

/// The long strings in an array; other values in it are passed over, as RabbitMQ does with CC and BCC.
pub fn array_strings(array: &[u8]) -> impl Iterator<Item = &[u8]> {
    array_values(array).map_while(Result::ok).filter_map(|(kind, value)| (kind == b'S').then_some(value))
}

/// Appends an entry that holds a long string.
pub fn write_string(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.put_short_string(name);
    out.put_u8(b'S');
    out.put_long_string(value);
}

/// Appends an entry that holds a truth value.
pub fn write_bool(out: &mut Vec<u8>, name: &[u8], value: bool) {
    out.put_short_string(name);
    out.put_u8(b't');
    out.put_u8(value.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(depth: usize) -> Vec<u8> {
        (0..depth).fold(Vec::new(), |inner, _| {
            let mut table = Vec::new();
            table.put_short_string(b"t");
            table.put_u8(b'F');
            table.put_long_string(&inner);
            table
        })
    }

    #[test]
    fn duplicate_names_stay_apart_and_the_first_is_found() {
        let mut table = Vec::new();
        write_string(&mut table, b"k", b"one");
        write_string(&mut table, b"k", b"two");
        write_bool(&mut table, b"b", true);
        assert_eq!(entries(&table).count(), 3);
        assert_eq!(find(&table, b"k").unwrap().value, b"one");
        assert_eq!(find(&table, b"b").unwrap().value, [1]);
        assert_eq!(find(&table, b"none"), None);
    }

    #[test]
    fn a_cut_table_is_not_readable() {
        let mut table = Vec::new();
        write_string(&mut table, b"k", b"one");
        assert!(check(&table).is_ok());
        assert!(check(&table[..table.len() - 1]).is_err());
        assert!(check(b"\x01k?").is_err());
    }

    #[test]
    fn a_nesting_bomb_costs_no_stack() {
        assert!(check(&nested(5_000)).is_ok(), "RabbitMQ reads it");
    }

    #[test]
    fn a_value_that_rabbitmq_has_no_clause_for_is_found_at_any_depth() {
        let entry = |kind: u8, value: &[u8]| [b"\x01k", &[kind][..], value].concat();
        let within = |kind: u8, inner: &[u8]| entry(kind, &[&(inner.len() as u32).to_be_bytes(), inner].concat());
        for number in [0.0, -0.0, 1.5, f64::MIN_POSITIVE / 2.0, f64::MAX] {
            assert_eq!(check(&entry(b'd', &number.to_be_bytes())), Ok(()), "{number}");
        }
        let bad = [
            entry(b'd', &f64::NAN.to_be_bytes()),
            entry(b'd', &f64::INFINITY.to_be_bytes()),
            entry(b'f', &f32::NEG_INFINITY.to_be_bytes()),
            entry(b'f', &(-f32::NAN).to_be_bytes()),
            entry(b'?', b""),
        ];
        for bad in &bad {
            let fine = entry(b'V', b"");
            // In an array a value has no name.
            for table in
                [bad.clone(), within(b'F', bad), within(b'A', &bad[2..]), within(b'A', &within(b'F', bad)[2..])]
            {
                assert_eq!(check(&table), Err(Malformed), "{table:?}");
                assert_eq!(check(&[&fine[..], &table, &fine].concat()), Err(Malformed));
            }
        }
        let overrun = within(b'F', b"\x01kI\0\0");
        assert_eq!(
            check(&[&overrun[..], &entry(b'V', b"")].concat()),
            Err(Malformed),
            "a value ends where its table does"
        );
    }
}
