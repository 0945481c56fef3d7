//! The client programs in other languages, in `tests/clients`.

use std::path::{Path, PathBuf};
use std::process::Command;

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// Runs `script` with pika's Python and `arguments`; returns what it printed.
///
/// # Panics
/// If it fails, or Python with pika is not there.
#[track_caller]
pub fn python(script: &str, arguments: &[&str]) -> String {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    assert!(python.exists(), "there is no .venv with pika: run tests/setup.sh");
    let mut command = Command::new(python);
    command.arg(clients().join(script)).args(arguments);
    ran(command, script, arguments)
}

/// Runs `script` with Node and `arguments`; returns what it printed.
///
/// # Panics
/// If it fails, or Node's packages are not there.
#[track_caller]
pub fn node(script: &str, arguments: &[&str]) -> String {
    ran(node_command(script, arguments), script, arguments)
}

/// The same, to be started by the caller.
///
/// # Panics
/// If Node's packages are not there.
#[track_caller]
pub fn node_command(script: &str, arguments: &[&str]) -> Command {
    assert!(clients().join("node_modules").exists(), "there are no node_modules in tests/clients: run tests/setup.sh");
    let mut command = Command::new("node");
    command.arg(clients().join(script)).args(arguments);
    command
}

#[track_caller]
fn ran(mut command: Command, script: &str, arguments: &[&str]) -> String {
    let output = command.output().expect("the client can be started");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script} {arguments:?} failed\n{out}\n{err}");
    out.into_owned()
}
