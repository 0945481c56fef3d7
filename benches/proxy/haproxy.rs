//! HAProxy in TCP mode: the plain proxy that we compare with.

use crate::support::child::Process;
use crate::support::{PATIENCE, deadline, free_port, wait_until};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use tempfile::TempDir;

/// A running HAProxy.
pub struct Haproxy {
    /// Where it listens.
    pub port: u16,
    process: Process,
    _folder: TempDir,
}

impl Haproxy {
    /// Starts it in front of `upstream_port`, as Debian's package has it but for the addresses.
    ///
    /// # Panics
    /// If it is not installed.
    pub fn start(upstream_port: u16) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let port = free_port();
        let configuration = format!(
            "global\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
             listen amqp\n  bind 127.0.0.1:{port}\n  server rabbitmq 127.0.0.1:{upstream_port}\n"
        );
        let file = folder.path().join("haproxy.cfg");
        std::fs::write(&file, configuration).expect("a file can be written");
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&file);
        let process = Process::start(command, folder.path(), "haproxy.log");
        wait_until(deadline(PATIENCE), "HAProxy to listen", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        Self { port, process, _folder: folder }
    }

    /// Its process.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }
}
