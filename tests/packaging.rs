//! What Halfway is installed with: unit, packages, image, manifests. Here they are held to the code and to the tools that
//! read them; tests/package.sh and tests/compose.sh try them for real.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use halfway::config::Config;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What stands behind `key` on the only line that begins with it.
fn value<'a>(text: &'a str, key: &str) -> &'a str {
    let mut found = text.lines().filter_map(|line| line.trim_start().strip_prefix(key));
    let value = found.next().unwrap_or_else(|| panic!("there is no {key}"));
    assert_eq!(found.next(), None, "{key} stands there twice");
    value.trim()
}

/// Runs a tool; none if it is not there.
fn run(tool: &str, arguments: &[&str]) -> Option<Output> {
    Command::new(tool).args(arguments).current_dir(root()).output().ok()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn whoever_ends_the_proxy_waits_longer_than_its_grace() {
    let grace = Config::default().shutdown.grace;
    let seconds = |text: &str| Duration::from_secs(text.trim_end_matches('s').parse().expect("seconds"));
    let unit = read("docs/packaging/halfway.service");
    let kubernetes = read("docs/kubernetes/halfway.yaml");
    let compose = read("docker-compose.yml");
    for limit in [
        seconds(value(&unit, "TimeoutStopSec=")),
        seconds(value(&kubernetes, "terminationGracePeriodSeconds:")),
        seconds(value(&compose, "stop_grace_period:")),
    ] {
        assert!(limit > grace, "{limit:?}");
    }
}

#[test]
fn every_package_has_the_version_of_the_program() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(value(&read("Dockerfile"), "ARG VERSION="), version);
    let changelog = read("docs/packaging/debian/changelog");
    assert!(changelog.starts_with(&format!("halfway ({version}-")), "{changelog}");
    assert_eq!(value(&read("docs/kubernetes/halfway.yaml"), "image: "), format!("halfway:{version}"));
}

#[test]
fn configurations_that_are_shipped_are_valid() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.toml");
    let check = |text: &str| {
        fs::write(&path, text).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_halfway"));
        command.args(["config", "check", "--config"]).arg(&path).env_clear();
        let output = command.output().expect("the binary can be started");
        assert!(output.status.success(), "{}", said(&output));
    };
    check(&read("docs/packaging/config.toml"));
    // With secrets where the pod has them.
    let manifests = read("docs/kubernetes/halfway.yaml");
    let (_, config) = manifests.split_once("config.toml: |\n").expect("the configuration");
    let lines = config.lines().take_while(|line| *line != "---");
    let config: String = lines.map(|line| format!("{}\n", line.trim_start())).collect();
    for secret in ["relay-password", "operator"] {
        assert!(config.contains(&format!("/etc/halfway-secrets/{secret}")), "{config}");
        fs::write(folder.path().join(secret), "secret").expect("written");
    }
    check(&config.replace("/etc/halfway-secrets", &folder.path().display().to_string()));
}

#[test]
fn the_manifests_follow_the_schema_of_kubernetes() {
    let python = root().join(".venv/bin/kubernetes-validate");
    let check = |path: &Path| {
        let output = Command::new(&python).arg("--strict").arg(path).output();
        output.expect("kubernetes-validate is in .venv: run tests/setup.sh")
    };
    let good = check(&root().join("docs/kubernetes/halfway.yaml"));
    assert!(good.status.success(), "{}", said(&good));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("bad.yaml");
    fs::write(&path, read("docs/kubernetes/halfway.yaml").replace("replicas:", "replica:")).expect("written");
    let bad = check(&path);
    assert!(!bad.status.success() && said(&bad).contains("'replica' was unexpected"), "{}", said(&bad));
}

#[test]
fn systemd_understands_the_unit_and_finds_it_confined() {
    let Some(version) = run("systemd-analyze", &["--version"]) else {
        eprintln!("skipped: there is no systemd-analyze");
        return;
    };
    let version: u32 = said(&version).split_whitespace().nth(1).and_then(|v| v.parse().ok()).expect("a version");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("halfway.service");
    // The program is not installed here, nor is its manual.
    let unit = read("docs/packaging/halfway.service").replace("/usr/bin/halfway", env!("CARGO_BIN_EXE_halfway"));
    let unit: String =
        unit.lines().filter(|line| !line.starts_with("Documentation=")).map(|l| format!("{l}\n")).collect();
    fs::write(&path, unit).expect("written");
    let path = path.display().to_string();
    let output = run("systemd-analyze", &["verify", "--recursive-errors=no", &path]).expect("it is there");
    let complaints: Vec<_> = String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter(|line| line.contains("halfway.service"))
        // Known from version 253 on; the unit says what happens before.
        .filter(|line| version >= 253 || !line.contains("ignoring: notify-reload"))
        .map(String::from)
        .collect();
    assert!(complaints.is_empty(), "{complaints:?}");
    // In tenths; 10.0 is a process that may do everything.
    let output = run("systemd-analyze", &["security", "--offline=true", "--threshold=20", &path]).expect("it is there");
    assert!(output.status.success(), "{}", said(&output));
}
