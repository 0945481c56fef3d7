//! A real RabbitMQ, started as a child process with everything of its own.

use super::child::Process;
use super::{Raw, deadline, free_port, wait_until};
use rustix::process::Signal;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tempfile::TempDir;

const BIN: &str = "/usr/lib/rabbitmq/bin";
/// Names the folder of another Debian, whose RabbitMQ is the one to test with.
const ROOT: &str = "RABBITMQ_ROOT";
const START_LIMIT: Duration = Duration::from_secs(90);

/// The account that the proxies of the tests forward with: it may write everywhere and keep `user-id`.
pub const RELAY: &str = "relay";

/// A RabbitMQ node with its own name, cookie, folder, epmd and ports, on loopback only.
pub struct Broker {
    /// Where it speaks AMQP.
    pub port: u16,
    node: String,
    epmd_port: u16,
    distribution_port: u16,
    process: Mutex<Option<Process>>,
    _epmd: Option<Process>,
    folder: TempDir,
}

impl Broker {
    /// Starts a node with the default configuration and waits until it serves.
    ///
    /// # Panics
    /// If RabbitMQ is not installed, or does not start.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Starts a node with further lines of `rabbitmq.conf`.
    pub fn start_with(configuration: &str) -> Self {
        let broker = Self::prepare(configuration, None);
        broker.resume();
        // It takes logins a moment before its commands count it as started.
        broker.ctl(&["await_startup"]);
        broker.add_relay_account(RELAY);
        broker
    }

    /// Starts a node that nobody can log into directly, because it wants a PROXY protocol header.
    pub fn start_behind_proxy_protocol() -> Self {
        let broker = Self::prepare("proxy_protocol = true", None);
        broker.resume_in_background();
        broker.wait_for(|port| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        // It listens before it takes commands.
        broker.ctl(&["await_startup"]);
        broker.add_relay_account(RELAY);
        broker
    }

    /// Starts `size` nodes and joins them to one cluster.
    pub fn cluster(size: usize) -> Vec<Self> {
        let mut nodes: Vec<Self> = Vec::new();
        for _ in 0..size {
            let node = Self::prepare("", nodes.first());
            node.resume();
            match nodes.first() {
                None => node.add_relay_account(RELAY),
                Some(first) => {
                    node.ctl(&["stop_app"]);
                    node.ctl(&["join_cluster", &first.node]);
                    node.ctl(&["start_app"]);
                }
            }
            nodes.push(node);
        }
        nodes
    }

    fn prepare(configuration: &str, first: Option<&Self>) -> Self {
        let server = root().join(BIN.trim_start_matches('/')).join("rabbitmq-server");
        assert!(
            server.exists(),
            "these tests run against a real RabbitMQ, and there is no {}: apt-get install rabbitmq-server",
            server.display()
        );
        let folder = folder();
        let (port, distribution_port) = (free_port(), free_port());
        let epmd_port = first.map_or_else(free_port, |first| first.epmd_port);
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("a file can be written");
        write("enabled_plugins", "[].\n");
        let base = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\nlog.file.level = warning\nlog.console = false\n\
             disk_free_limit.absolute = 20MB\nvm_memory_high_watermark.relative = 0.8\n"
        );
        // There is no /proc, where it finds what the machine has and what it uses itself.
        let memory = "vm_memory_calculation_strategy = allocated\ntotal_memory_available_override_value = 8GB\n";
        let memory = if is_elsewhere() { memory } else { "" };
        write("rabbitmq.conf", &(base + memory + configuration + "\n"));
        write(".erlang.cookie", "halfway-tests");
        let cookie = Permissions::from_mode(0o400);
        std::fs::set_permissions(folder.path().join(".erlang.cookie"), cookie).expect("a mode can be set");
        // The first node of a cluster has the epmd; left alone, a node would start one that nobody ends.
        let epmd = first.is_none().then(|| {
            let mut command = rooted("epmd");
            command.args(["-port", &epmd_port.to_string(), "-address", "127.0.0.1"]);
            Process::start(command, folder.path(), "epmd.log")
        });
        let node = format!("halfway-{port}@localhost");
        Self { port, node, epmd_port, distribution_port, process: Mutex::new(None), _epmd: epmd, folder }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = rooted(&format!("{BIN}/{program}"));
        let folder = &as_seen_by_rabbitmq(self.folder.path());
        command
            .env("HOME", folder)
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("RABBITMQ_NODENAME", &self.node)
            .env("RABBITMQ_MNESIA_BASE", folder.join("data"))
            .env("RABBITMQ_LOG_BASE", folder.join("log"))
            .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("enabled_plugins"))
            .env("RABBITMQ_DIST_PORT", self.distribution_port.to_string())
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}");
        command
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Starts the node, again or for the first time, and waits until a client can log in.
    pub fn resume(&self) {
        self.resume_in_background();
        self.wait_for(|port| Raw::try_login(port).is_ok());
    }

    fn wait_for(&self, serves: impl Fn(u16) -> bool) {
        wait_until(deadline(START_LIMIT), "RabbitMQ to serve", || {
            if let Some(status) = self.process().as_mut().and_then(Process::ended) {
                panic!("RabbitMQ ended with {status}; its last words: {}", self.log());
            }
            serves(self.port)
        });
    }

    /// Starts the node without waiting for it.
    pub fn resume_in_background(&self) {
        let mut process = self.process();
        assert!(process.is_none(), "it runs already");
        *process = Some(Process::start(self.command("rabbitmq-server"), self.folder.path(), "console.log"));
    }

    /// The process that was started, which leads the group of RabbitMQ's processes.
    #[allow(dead_code)] // for the benchmarks
    pub fn process_id(&self) -> u32 {
        self.process().as_ref().expect("it runs").id()
    }

    /// Ends the node in good order.
    pub fn stop(&self) {
        let mut process = self.process().take().expect("it runs");
        process.signal(Signal::TERM);
        process.wait(START_LIMIT);
    }

    /// Ends the node as a power cut of the process would: SIGKILL.
    pub fn kill(&self) {
        self.process().take().expect("it runs").kill();
    }

    /// Freezes the node: its sockets stay open and nothing answers.
    pub fn freeze(&self) {
        self.process().as_ref().expect("it runs").freeze();
    }

    /// Ends [`Broker::freeze`].
    pub fn thaw(&self) {
        self.process().as_ref().expect("it runs").signal(Signal::CONT);
    }

    /// Runs `rabbitmqctl` and returns what it printed.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = self.command("rabbitmqctl");
        let output =
            command.args(["-q", "-n", &self.node]).args(arguments).output().expect("rabbitmqctl can be started");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "rabbitmqctl {arguments:?}: {out}{err}");
        out.into_owned()
    }

    /// Evaluates an Erlang expression in the node and returns what it printed.
    pub fn eval(&self, expression: &str) -> String {
        self.ctl(&["eval", expression])
    }

    /// Its version up to the minor number, such as `(4, 3)`, for what is not the same in all of them.
    pub fn version(&self) -> (u32, u32) {
        let text = self.eval("io:format(rabbit_misc:version()).");
        let mut numbers = text.split('.').map(|number| number.parse().expect("a number"));
        (numbers.next().expect("a major version"), numbers.next().expect("a minor version"))
    }

    /// Enables a plugin.
    pub fn enable(&self, plugin: &str) {
        let mut command = self.command("rabbitmq-plugins");
        let output = command.args(["-q", "-n", &self.node, "enable", plugin]).output();
        let output = output.expect("rabbitmq-plugins can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Makes a virtual host where guest and the relay's account may do their work.
    pub fn add_vhost(&self, name: &str) {
        self.ctl(&["add_vhost", name]);
        self.ctl(&["set_permissions", "-p", name, "guest", ".*", ".*", ".*"]);
        self.ctl(&["set_permissions", "-p", name, RELAY, "^$", ".*", "^$"]);
    }

    /// Makes a user whose password is its name; `permissions` are the patterns for configure, write and read in `/`.
    pub fn add_user(&self, name: &str, permissions: [&str; 3]) {
        self.ctl(&["add_user", name, name]);
        let [configure, write, read] = permissions;
        self.ctl(&["set_permissions", name, configure, write, read]);
    }

    /// Makes another account for a relay, whose password is its name: a test that locks it out disturbs no other.
    pub fn add_relay_account(&self, name: &str) {
        self.ctl(&["add_user", name, name]);
        self.ctl(&["set_user_tags", name, "impersonator"]);
        self.ctl(&["set_permissions", name, "^$", ".*", "^$"]);
    }

    /// Keeps an account out: a new password, and its connections closed.
    pub fn lock_out(&self, name: &str) {
        self.ctl(&["change_password", name, "another"]);
        self.close_connections_of(name);
    }

    /// Ends [`Broker::lock_out`].
    pub fn let_in(&self, name: &str) {
        self.ctl(&["change_password", name, name]);
    }

    /// Closes all connections of an account, as an operator can.
    pub fn close_connections_of(&self, name: &str) {
        self.ctl(&["close_all_user_connections", name, "closed by a test"]);
    }

    /// Sets or clears the memory alarm.
    pub fn memory_alarm(&self, on: bool) {
        self.ctl(&["set_vm_memory_high_watermark", if on { "0.00001" } else { "0.8" }]);
    }

    /// What the node has written to its logs.
    pub fn log(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        read("console.log") + &read(&format!("log/{}.log", self.node))
    }
}

/// Where the Debian is whose RabbitMQ is used.
fn root() -> PathBuf {
    std::env::var_os(ROOT).map_or_else(|| PathBuf::from("/"), PathBuf::from)
}

/// A folder for a node, or for files that its configuration names.
pub fn folder() -> TempDir {
    let mut folder = tempfile::Builder::new();
    folder.prefix("halfway-rabbitmq-");
    let folder = if is_elsewhere() { folder.tempdir_in(root().join("tmp")) } else { folder.tempdir() };
    folder.expect("a folder can be made")
}

/// What is in [`folder`], under the name that it has for RabbitMQ.
pub fn as_seen_by_rabbitmq(path: &Path) -> PathBuf {
    Path::new("/").join(path.strip_prefix(root()).unwrap_or(path))
}

fn is_elsewhere() -> bool {
    root() != Path::new("/")
}

/// A program of that Debian.
fn rooted(program: &str) -> Command {
    if !is_elsewhere() {
        return Command::new(program);
    }
    let mut command = Command::new("chroot");
    command.arg(root()).arg(program);
    command
}
