//! The worker of `docs/examples/pipeline`, as it is: killed before every line of its work, until all inputs are done.

use crate::support::child::Process;
use crate::support::id;
use crate::support::table::{Properties, property};
use crate::support::{PATIENCE, Proxy, Raw, broker, deadline, unique, wait_until};
use halfway::amqp::wire::Write as _;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const INPUTS: usize = 1_000;
/// What a worker does before it is killed, at least: so that it goes on.
const DONE_EACH: usize = 40;

fn worker(proxy: &Proxy, folder: &Path, [source, target]: [&str; 2], until: &str) -> Process {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(".venv/bin/python");
    assert!(python.exists(), "there is no .venv: run tests/setup.sh");
    let mut command = Command::new(python);
    command.arg(root.join("tests/clients/pipeline_until.py")).arg(until).args([
        "--amqp",
        &format!("amqp://guest:guest@127.0.0.1:{}", proxy.port),
        "--from",
        source,
        "--to",
        target,
    ]);
    Process::start(command, folder, "worker.log")
}

/// How many wait in a queue.
fn messages(raw: &mut Raw, queue: &str) -> u32 {
    let arguments = raw.call(1, id::QUEUE_DECLARE, id::QUEUE_DECLARE_OK, |out| {
        out.put_u16(0);
        out.put_short_string(queue.as_bytes());
        out.put_u8(0b00010);
        out.put_long_string(b"");
    });
    let count = &arguments[1 + queue.len()..][..4];
    u32::from_be_bytes(count.try_into().expect("four bytes"))
}

#[test]
fn each_of_a_thousand_inputs_gives_one_output_whatever_line_the_worker_dies_at() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let proxy = Proxy::start(broker().port);
    let queues = [unique("raw"), unique("labelled")];
    let [source, target] = [queues[0].as_str(), queues[1].as_str()];
    let mut raw = Raw::login(proxy.port);
    raw.open(1);
    raw.declare(1, source);
    raw.declare(1, target);
    raw.open_tx(2);
    for number in 0..INPUTS {
        // Some have an identity of Halfway's, and some one of their producer's.
        let channel = 1 + (number % 2) as u16;
        let named = Properties::persistent().text(property::MESSAGE_ID, &format!("in-{number}"));
        let properties = if channel == 1 { named } else { Properties::persistent() };
        raw.publish_with(channel, ("", source.as_bytes()), 0, &properties, number.to_string().as_bytes());
    }
    raw.commit(2);

    let log = || std::fs::read_to_string(folder.path().join("worker.log")).unwrap_or_default();
    let ready = |raw: &mut Raw| messages(raw, source);
    // How many lines one input takes.
    let lines = {
        let mut listing = worker(&proxy, folder.path(), [source, target], "lines");
        wait_until(deadline(PATIENCE), "some work", || {
            log().lines().filter(|line| line.starts_with("line ")).count() > 50
        });
        listing.kill();
        let log = log();
        let lines: Vec<_> = log.lines().filter_map(|line| line.strip_prefix("line ")).collect();
        lines.iter().skip(1).position(|line| *line == lines[0]).expect("a second input") + 1
    };
    assert!((5..40).contains(&lines), "{lines}");
    let mut kills = 0;
    while ready(&mut raw) > 0 || kills < 2 * lines {
        assert!(kills < 40 * lines, "it goes on: {}", log());
        let until = if ready(&mut raw) > DONE_EACH as u32 { DONE_EACH } else { 2 } * lines + 1 + kills % lines;
        let mut dying = worker(&proxy, folder.path(), [source, target], &until.to_string());
        // With little left it may have nothing to come to that line with.
        let limit = deadline(Duration::from_secs(if ready(&mut raw) > 0 { 60 } else { 2 }));
        while dying.ended().is_none() && std::time::Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(20));
        }
        dying.kill();
        kills += 1;
    }
    let last = worker(&proxy, folder.path(), [source, target], "1000000");
    wait_until(deadline(PATIENCE), "an output for each input", || messages(&mut raw, target) as usize >= INPUTS);
    wait_until(deadline(PATIENCE), "nothing to be in doubt", || {
        proxy.metric("halfway_transactions_in_store{state=\"in_doubt\"}") == 0.0
            && proxy.metric("halfway_transactions_in_store{state=\"open\"}") == 0.0
            && proxy.metric("halfway_transactions_in_store{state=\"committed\"}") == 0.0
    });
    drop(last);
    let mut found = BTreeMap::new();
    for body in raw.drain(1, target) {
        *found.entry(body).or_insert(0) += 1;
    }
    let wrong: Vec<_> = (0..INPUTS)
        .map(|number| format!("labelled {number}"))
        .filter(|body| found.get(body) != Some(&1))
        .map(|body| (found.get(&body).copied().unwrap_or(0), body))
        .collect();
    assert!(wrong.is_empty() && found.len() == INPUTS, "{wrong:?}");
}
