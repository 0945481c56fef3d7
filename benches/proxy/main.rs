//! How fast and how small the proxy is, beside RabbitMQ itself and a plain TCP proxy, in one run and in turns.
//!
//! `cargo bench --bench proxy -- [SCENARIO] [--rounds N] [--seconds S] [--queue classic|quorum] [--connections N]
//! [--messages N] [--neighbour NAME] [--apart]`, where a scenario is `commits`, `named`, `watched`, `passing`, `idle`, `fairness` or `backlog`;
//! without one, all run. It prints Markdown tables, medians over the rounds. It starts a RabbitMQ of its own (and HAProxy, for comparison).

#![allow(unreachable_pub)] // the whole is one binary: nothing is reachable from outside

mod backlog;
mod commits;
mod fairness;
mod haproxy;
mod idle;
mod load;
mod passing;
mod report;
#[allow(dead_code)] // made for the tests; the benchmarks use a part
#[path = "../../tests/it/support/mod.rs"]
mod support;
mod watched;

use clap::Parser;
use load::QueueType;
use std::time::Duration;
use support::Broker;

/// Measures the proxy.
#[derive(Parser)]
pub struct Options {
    /// `commits`, `named`, `watched`, `passing`, `idle`, `fairness` or `backlog`; all, if not given.
    scenario: Option<String>,
    /// How often each measurement is taken; the tables have the medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long each measurement takes.
    #[arg(long = "seconds", default_value = "2", value_parser = seconds)]
    time: Duration,
    /// Only this type of queue.
    #[arg(long)]
    queue: Option<String>,
    /// Only this many connections.
    #[arg(long)]
    connections: Option<usize>,
    /// Only this many messages a commit.
    #[arg(long)]
    messages: Option<usize>,
    /// RabbitMQ on one core, the proxy and its clients on the others; for `commits`, `named` and `passing`.
    #[arg(long)]
    apart: bool,
    /// Only beside this neighbour of `fairness`, by the beginning of its name.
    #[arg(long)]
    neighbour: Option<String>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs_f64).map_err(|error: std::num::ParseFloatError| error.to_string())
}

impl Options {
    fn queues(&self) -> Vec<QueueType> {
        let all = [QueueType::Classic, QueueType::Quorum];
        all.into_iter().filter(|kind| self.queue.as_ref().is_none_or(|name| name == kind.name())).collect()
    }

    fn connections(&self) -> Vec<usize> {
        self.connections.map_or_else(|| vec![1, 10, 100], |one| vec![one])
    }

    fn messages(&self) -> Vec<usize> {
        self.messages.map_or_else(|| vec![1, 100], |one| vec![one])
    }
}

/// Has this process, and those that it starts from now on, run on these cores only.
fn keep_to(cores: &str) {
    let arguments = ["-a", "-c", "-p", cores, &std::process::id().to_string()];
    let output = std::process::Command::new("taskset").args(arguments).output().expect("taskset is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The CPU time that a process has used, in user and kernel mode. Resolution: 10 ms.
fn cpu_time(process: u32) -> Duration {
    stat(&process.to_string()).expect("a running process is in /proc").cpu_time
}

/// The CPU time that all processes of a group have used: RabbitMQ is a script and what it started.
fn cpu_time_of_group(group: u32) -> Duration {
    let processes = std::fs::read_dir("/proc").expect("/proc is there");
    let names = processes.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let stats = names.filter_map(|process| stat(&process));
    stats.filter(|stat| stat.group == group).map(|stat| stat.cpu_time).sum()
}

struct Stat {
    group: u32,
    cpu_time: Duration,
}

/// What Linux tells of a process; `None`: it is no process, or not any more.
fn stat(process: &str) -> Option<Stat> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // From the third field on, counted from behind the name, which may have spaces.
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks: u64 = fields.get(11..13)?.iter().flat_map(|ticks| ticks.parse::<u64>()).sum();
    Some(Stat { group: fields[2].parse().ok()?, cpu_time: Duration::from_millis(ticks * 10) })
}

/// Resident memory of a process.
fn memory_bytes(process: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{process}/statm")).expect("a running process is in /proc");
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number of pages");
    pages * 4096
}

fn main() {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
    runtime.block_on(async {
        let cores = std::thread::available_parallelism().expect("it is known").get();
        if options.apart {
            assert!(cores > 1, "there is one core");
            keep_to("0");
        }
        let broker = Broker::start();
        if options.apart {
            keep_to(&format!("1-{}", cores - 1));
        }
        let wanted = |name: &str| options.scenario.as_ref().is_none_or(|scenario| scenario == name);
        if wanted("commits") {
            commits::run(&broker, &options).await;
        }
        if wanted("named") {
            commits::named(&broker, &options).await;
        }
        if wanted("watched") {
            watched::run(&broker, &options).await;
        }
        if wanted("passing") {
            passing::run(&broker, &options).await;
        }
        if wanted("idle") {
            idle::run(&broker).await;
        }
        if wanted("fairness") {
            fairness::run(&options);
        }
        if wanted("backlog") {
            backlog::run(&broker, &options).await;
        }
    });
}
