//! The proxy under test, started as a child process with a folder and ports of its own.

use super::child::Process;
use super::{PATIENCE, deadline, free_port, wait_until};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;
use tempfile::TempDir;

/// A running `halfway serve`.
pub struct Proxy {
    /// Where it speaks AMQP.
    pub port: u16,
    /// Where it answers HTTP.
    pub admin_port: u16,
    settings: BTreeMap<String, String>,
    process: Option<Process>,
    folder: TempDir,
}

impl Proxy {
    /// Starts a proxy in front of the broker on `upstream_port`, and waits until it is ready.
    pub fn start(upstream_port: u16) -> Self {
        Self::start_with(upstream_port, &[])
    }

    /// As [`Proxy::start`], with `settings` on top: configuration keys with dots, and their values as TOML.
    pub fn start_with(upstream_port: u16, settings: &[(&str, &str)]) -> Self {
        let mut proxy = Self::prepare(upstream_port, settings);
        proxy.resume();
        proxy
    }

    /// All but the process, for tests that start it themselves.
    pub fn prepare(upstream_port: u16, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("halfway-proxy-").tempdir().expect("a folder can be made");
        let (port, admin_port) = (free_port(), free_port());
        let mut all = BTreeMap::from([
            ("listen.address".to_owned(), format!("'127.0.0.1:{port}'")),
            ("admin.address".to_owned(), format!("'127.0.0.1:{admin_port}'")),
            ("upstream.urls".to_owned(), format!("['amqp://127.0.0.1:{upstream_port}']")),
            ("relay.username".to_owned(), "'relay'".to_owned()),
            ("relay.password".to_owned(), "'relay'".to_owned()),
            ("store.url".to_owned(), format!("'sqlite:{}'", folder.path().join("halfway.db").display())),
        ]);
        all.extend(settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let mut proxy = Self { port, admin_port, settings: all, process: None, folder };
        proxy.write_configuration();
        proxy
    }

    fn write_configuration(&mut self) {
        let lines: String = self.settings.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        std::fs::write(self.configuration(), lines).expect("a file can be written");
    }

    /// Changes a setting; it counts from the next start on.
    pub fn set(&mut self, key: &str, value: &str) {
        self.settings.insert(key.to_owned(), value.to_owned());
        self.write_configuration();
    }

    /// Its folder, where the store lies.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its configuration file.
    pub fn configuration(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    /// Starts the process without waiting for it, through `wrapper` if that is not empty: a program and its
    /// arguments, before the proxy's own.
    pub fn spawn(&mut self, wrapper: &[&str]) {
        assert!(self.process.is_none(), "it runs already");
        let mut words: Vec<&str> = wrapper.to_vec();
        words.push(env!("CARGO_BIN_EXE_halfway"));
        let mut command = Command::new(words[0]);
        // The configuration file alone counts: the proxy would take variables of the tests for settings of its own.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"HALFWAY_")) {
            command.env_remove(name);
        }
        command.args(&words[1..]).args(["serve", "--config"]).arg(self.configuration());
        self.process = Some(Process::start(command, self.folder.path(), "proxy.log"));
    }

    /// Starts the process, again or for the first time, and waits until it is ready.
    #[track_caller]
    pub fn resume(&mut self) {
        self.spawn(&[]);
        self.wait_for_port();
        wait_until(deadline(PATIENCE), "the proxy to be ready", || {
            self.http("/readyz").is_ok_and(|(status, _)| status == 200)
        });
    }

    /// Waits until it listens for clients: sooner than ready, if RabbitMQ is not there.
    #[track_caller]
    pub fn wait_for_port(&mut self) {
        wait_until(deadline(PATIENCE), "the proxy to listen", || {
            if let Some(status) = self.process.as_mut().and_then(Process::ended) {
                panic!("the proxy ended with {status}; its last words: {}", self.log());
            }
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
        });
    }

    /// Waits until the process ends by itself.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        self.process.take().expect("it runs").wait(PATIENCE)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    /// SIGTERM, and the wait for its end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_for_end()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("it runs").signal(signal);
    }

    /// The process id.
    pub fn process_id(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// Whether the process runs.
    pub fn runs(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.ended().is_none())
    }

    /// Runs another subcommand with this proxy's configuration.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halfway"));
        command.args(arguments).arg("--config").arg(self.configuration());
        command.output().expect("the binary can be started")
    }

    /// What it has logged, over all its starts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("proxy.log")).unwrap_or_default()
    }

    /// Resident memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let status = self.proc("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a process has a size");
        let kib: u64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number of KiB");
        kib * 1024
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.process_id())).expect("a running process is in /proc")
    }

    /// The value of a metric, summed over its labels; 0 if it is not there.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.http("/metrics").expect("the admin port answers");
        let lines =
            text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// `GET path` on the admin port: status and body.
    pub fn http(&self, path: &str) -> std::io::Result<(u16, String)> {
        self.request("GET", path, "")
    }

    /// A request with a body of JSON on the admin port: status and body.
    pub fn request(&self, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.admin_port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let head = format!(
            "Host: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}",
            body.len()
        );
        write!(stream, "{method} {path} HTTP/1.1\r\n{head}\r\n\r\n{body}")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::InvalidData)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.ok_or(std::io::ErrorKind::InvalidData)?, body.to_owned()))
    }
}
