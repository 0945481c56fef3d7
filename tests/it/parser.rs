//! What is read here, RabbitMQ's own parser reads, and the other way round: a difference is a way past its judgement.

use fastrand::Rng;
use halfway::amqp::method::Publish;
use halfway::amqp::properties::Properties;
use halfway::amqp::table;
use halfway::amqp::wire::Write;
use std::path::Path;
use std::process::Command;

/// Inputs of each kind.
const INPUTS: usize = 30_000;
/// Where Debian's package has RabbitMQ's modules.
const PLUGINS: &str = "/usr/lib/rabbitmq/lib/rabbitmq_server-*/plugins";
/// What stands in a content header before its flags: class, weight and body size.
const CONTENT_FRONT: [u8; 12] = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A way to read bytes.
type Kind = (u8, fn(&mut Rng) -> Vec<u8>, fn(&[u8]) -> bool);

#[test]
fn tables_properties_and_publishes_are_read_as_rabbitmq_reads_them() {
    let kinds: [Kind; 3] = [
        (b't', |rng| entries(rng, 0), |bytes| table::check(bytes).is_ok()),
        (b'p', properties, |bytes| Properties::parse(&[&CONTENT_FRONT, bytes].concat()).is_ok()),
        (b'm', publish, |bytes| Publish::parse(bytes).is_ok()),
    ];
    let mut rng = Rng::with_seed(1);
    let (mut inputs, mut file) = (Vec::new(), Vec::new());
    for number in 0..kinds.len() * INPUTS {
        let (kind, make, reads) = kinds[number % kinds.len()];
        let mut bytes = make(&mut rng);
        if rng.bool() {
            damage(&mut bytes, &mut rng);
        }
        file.put_u32(u32::try_from(bytes.len()).expect("inputs are short"));
        file.put_u8(kind);
        file.extend_from_slice(&bytes);
        inputs.push((kind, reads(&bytes), bytes));
    }
    let verdicts = rabbitmq(&file);
    assert_eq!(verdicts.len(), inputs.len());
    for ((kind, here, bytes), there) in inputs.iter().zip(&verdicts) {
        let there = *there == b'1';
        assert_eq!(*here, there, "left: here, right: RabbitMQ; {} {bytes:?}", char::from(*kind));
    }
    for (kind, ..) in kinds {
        let read = inputs.iter().filter(|(of, here, _)| *of == kind && *here).count();
        assert!(read > INPUTS / 10 && read < INPUTS - INPUTS / 10, "{read} of {INPUTS} are read");
    }
}

/// What RabbitMQ's parser says of each input.
fn rabbitmq(inputs: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let [input, output] = ["inputs", "verdicts"].map(|name| folder.path().join(name));
    std::fs::write(&input, inputs).expect("written");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/parser.escript");
    let ran = Command::new("escript").arg(script).arg(PLUGINS).args([&input, &output]).output();
    let ran = ran.expect("Erlang is there, as RabbitMQ is");
    assert!(ran.status.success(), "{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    std::fs::read(&output).expect("read")
}

fn some(rng: &mut Rng, length: usize) -> Vec<u8> {
    (0..length).map(|_| rng.u8(..)).collect()
}

fn short(rng: &mut Rng) -> Vec<u8> {
    let mut out = Vec::new();
    let length = rng.usize(..4);
    out.put_short_string(&some(rng, length));
    out
}

/// The entries of a table.
fn entries(rng: &mut Rng, depth: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..rng.usize(..4) {
        out.extend(short(rng));
        value(&mut out, rng, depth);
    }
    out
}

/// A type tag and a value; every kind that RabbitMQ knows, and floats of all sorts.
fn value(out: &mut Vec<u8>, rng: &mut Rng, depth: usize) {
    let kind = b"tbBsuIiflLdTDSxFAV"[rng.usize(..18)];
    out.put_u8(kind);
    let length = match kind {
        b't' | b'b' | b'B' => 1,
        b's' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'l' | b'L' | b'd' | b'T' => 8,
        b'D' => 5,
        b'V' => 0,
        _ => {
            let inner = match kind {
                b'F' if depth < 5 => entries(rng, depth + 1),
                b'A' if depth < 5 => {
                    let mut array = Vec::new();
                    (0..rng.usize(..4)).for_each(|_| value(&mut array, rng, depth + 1));
                    array
                }
                b'F' | b'A' => Vec::new(),
                _ => {
                    let length = rng.usize(..5);
                    some(rng, length)
                }
            };
            return out.put_long_string(&inner);
        }
    };
    let mut bytes = some(rng, length);
    if matches!(kind, b'f' | b'd') && rng.u8(..4) == 0 {
        // Infinite, or none: all bits of the exponent.
        bytes[0] |= 0x7f;
        bytes[1] |= 0xf0 | if kind == b'f' { 0x80 } else { 0 };
    }
    out.extend(bytes);
}

/// Flags and properties of class basic.
fn properties(rng: &mut Rng) -> Vec<u8> {
    let flags = rng.u16(..);
    let mut out = flags.to_be_bytes().to_vec();
    for bit in (2..16).rev().filter(|bit| flags & (1 << bit) != 0) {
        match bit {
            13 => out.put_long_string(&entries(rng, 0)),
            12 | 11 => out.put_u8(rng.u8(..)),
            6 => out.put_u64(rng.u64(..)),
            _ => out.extend(short(rng)),
        }
    }
    out
}

/// Arguments of basic.publish.
fn publish(rng: &mut Rng) -> Vec<u8> {
    let mut out = rng.u16(..).to_be_bytes().to_vec();
    out.extend(short(rng));
    out.extend(short(rng));
    out.put_u8(rng.u8(..));
    out
}

/// Changes, cuts or adds a byte or a few.
fn damage(bytes: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..=rng.usize(..2) {
        let at = rng.usize(..=bytes.len());
        match rng.u8(..3) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, rng.u8(..)),
            _ if at < bytes.len() => bytes[at] = rng.u8(..),
            _ => {}
        }
    }
}
