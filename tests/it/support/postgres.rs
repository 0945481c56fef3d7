//! A real PostgreSQL, started as a child process with a folder and a port of its own.

use super::child::Process;
use super::{PATIENCE, deadline, free_port, wait_until};
use rustix::process::Signal;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A PostgreSQL server on loopback, with one database that anybody on this machine may use.
pub struct Postgres {
    port: u16,
    process: Process,
    folder: TempDir,
    data: Data,
    settings: Vec<String>,
}

impl Postgres {
    /// Starts a server and waits until it serves.
    ///
    /// # Panics
    /// If PostgreSQL is not installed, or does not start.
    pub fn start() -> Self {
        Self::start_with(&[], |_| {})
    }

    /// Starts a server that never takes writes: a standby whose primary is gone.
    pub fn start_standby() -> Self {
        Self::start_with(&[], |data| data.give("standby.signal", ""))
    }

    /// Starts a server with more settings (`-c` + name=value), and with what `prepare` puts into its folder.
    pub fn start_with(settings: &[&str], prepare: impl FnOnce(&Data)) -> Self {
        let folder = tempfile::Builder::new().prefix("halfway-postgres-").tempdir().expect("a folder can be made");
        let data = folder.path().join("data");
        if as_root() {
            // It refuses to run as root, so it gets a folder that is its user's, on a path that it may walk.
            std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("a mode can be set");
            run(Command::new("install").args(["-d", "-m", "700", "-o", "postgres"]).arg(&data));
        }
        let options = ["--auth=trust", "--username=shop", "--encoding=UTF8", "--locale=C", "--no-sync", "--pgdata"];
        run(unprivileged("initdb", folder.path()).args(options).arg(&data));
        let data = Data(data);
        prepare(&data);
        let port = free_port();
        let settings: Vec<_> = settings.iter().map(|setting| setting.to_string()).collect();
        let process = serve(folder.path(), &data, port, &settings);
        let mut postgres = Self { port, process, folder, data, settings };
        postgres.wait();
        postgres
    }

    /// Puts a standby into its place, which knows what it knew and takes no writes.
    pub fn swap_for_standby(&mut self) {
        self.stop();
        self.data.give("standby.signal", "");
        self.start_again();
    }

    /// Starts it again after [`Self::stop`], on the same port and with what it knew.
    pub fn start_again(&mut self) {
        self.process = serve(self.folder.path(), &self.data, self.port, &self.settings);
        self.wait();
    }

    fn wait(&mut self) {
        wait_until(deadline(PATIENCE), "PostgreSQL to serve", || {
            if let Some(status) = self.process.ended() {
                panic!("PostgreSQL ended with {status}; its last words: {}", self.log());
            }
            self.psql("SELECT 1").status.success()
        });
    }

    /// Stops it. Its clients lose their connections.
    pub fn stop(&mut self) {
        // A fast shutdown: a server that is killed leaves shared memory behind. What is left of it then is killed.
        self.process.signal(Signal::INT);
        let limit = deadline(PATIENCE);
        while self.process.ended().is_none() && std::time::Instant::now() < limit {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Its port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where clients connect to.
    pub fn url(&self) -> String {
        format!("postgresql://shop@127.0.0.1:{}/postgres", self.port)
    }

    /// What a query returns: one line a row.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn query(&self, sql: &str) -> String {
        let output = self.psql(sql);
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn psql(&self, sql: &str) -> Output {
        let mut command = Command::new(binaries().join("psql"));
        command.args(["--no-psqlrc", "--tuples-only", "--no-align", "--command", sql, &self.url()]);
        command.output().expect("psql can be started")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("postgres.log")).unwrap_or_default()
    }
}

/// A server's folder, before it is started.
pub struct Data(PathBuf);

impl Data {
    /// Puts a file into it that is the server's alone.
    pub fn give(&self, name: &str, text: &str) {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("a file can be written");
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("a mode can be set");
        if as_root() {
            run(Command::new("chown").arg("postgres").arg(&path));
        }
    }

    /// Lets in who knows a password, except `shop`, who owns all.
    pub fn ask_for_passwords(&self) {
        self.give("pg_hba.conf", "host all shop 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n");
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(folder: &Path, data: &Data, port: u16, settings: &[String]) -> Process {
    let mut command = unprivileged("postgres", folder);
    // No socket in a folder that others share.
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-c", "unix_socket_directories=", "-D"]).arg(&data.0);
    command.args(settings.iter().flat_map(|setting| ["-c", setting]));
    Process::start(command, folder, "postgres.log")
}

fn as_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A program of the server, as the user that Debian's package made if this is root.
fn unprivileged(program: &str, folder: &Path) -> Command {
    let program = binaries().join(program);
    let mut command = if as_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir(folder);
    command
}

/// Where Debian keeps the newest version's programs.
fn binaries() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = versions.filter(|path| path.join("bin/initdb").exists()).max_by_key(number);
    newest.expect("these tests run against a real PostgreSQL, and there is none here: run tests/setup.sh").join("bin")
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} can't be started: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
