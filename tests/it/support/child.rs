//! Child processes that cannot outlive the test process.

use super::{deadline, wait_until};
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// A child in a process group of its own, and a guard that kills the group and removes its folder when the test
/// process is gone: a static is never dropped, and a test run can be killed.
pub struct Process {
    child: Child,
    guard: Child,
}

impl Process {
    /// Starts `command`; what it prints is appended to the file `log` in `folder`, which is the child's own.
    ///
    /// # Panics
    /// If the program cannot be started.
    pub fn start(mut command: Command, folder: &Path, log: &str) -> Self {
        let log = File::options().create(true).append(true).open(folder.join(log)).expect("a log file can be opened");
        let child = command
            // A dying RabbitMQ leaves a dump where it stands.
            .current_dir(folder)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file handle can be copied"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{:?} cannot be started: {error}", command.get_program()));
        // The guard's standard input is a pipe from this process: a line means that all is well, its end that this
        // process is gone.
        let guard = Command::new("sh")
            .args(["-c", r#"read line || { kill -s KILL -- "-$0"; sleep 0.2; rm -rf "$1"; }"#, &child.id().to_string()])
            .arg(folder)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh can be started");
        Self { child, guard }
    }

    /// The id of the child, and of its process group.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Stops the child and all its children where they stand, and waits until each of their threads does: the signal
    /// returns before.
    #[track_caller]
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        wait_until(deadline(Duration::from_secs(10)), "every thread to stand still", || {
            let states = thread_states(self.id());
            !states.is_empty() && states.iter().all(|state| state == "T")
        });
    }

    /// Sends a signal to the child and all its children.
    pub fn signal(&self, signal: Signal) {
        let group = Pid::from_raw(self.child.id().cast_signed()).expect("a process id is not 0");
        // The group may be gone already; then there is nothing to signal.
        let _ = kill_process_group(group, signal);
    }

    /// The exit status, if the child has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for the child to end by itself.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let mut status = None;
        wait_until(deadline(limit), "the process to end", || {
            status = self.ended();
            status.is_some()
        });
        status.expect("the condition above")
    }

    /// Kills the whole group, and waits until the child is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("a child can be waited for");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let _ = self.guard.stdin.take().map(|mut pipe| writeln!(pipe, "ended"));
        let _ = self.guard.wait();
    }
}

/// The states of all threads of a process group, as /proc has them.
fn thread_states(group: u32) -> Vec<String> {
    let folders = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    // State, parent and process group stand behind the name, which may have spaces. What has just ended is left out.
    let fields = |path: &Path| -> Option<Vec<String>> {
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        Some(stat.rsplit_once(')')?.1.split_whitespace().take(3).map(str::to_owned).collect())
    };
    let processes =
        folders(Path::new("/proc")).filter(|path| fields(path).is_some_and(|fields| fields[2] == group.to_string()));
    processes
        .flat_map(|path| folders(&path.join("task")))
        .filter_map(|path| Some(fields(&path)?.swap_remove(0)))
        .collect()
}
