//! Flags, configuration, logs, the app, an exit code: 0 done, 1 failed, 2 usage (by clap).

use std::{
    error::Error,
    io::{self, stderr},
    num::NonZero,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
};

use clap::Parser;
use halfway::{
    app,
    cli::{self, Cli, Command, ConfigCommand, Doctor, HowFar, Progress, StoreCommand, stdout},
    config::{self, ConfigError, Loaded},
    doctor::{self, Fitness},
    store::Checked,
    telemetry,
};
use serde_json::json;
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let for_a_program = command.is_for_a_program();
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            // Who can't be told can't be told that either.
            let _ = cli::print_failure(&*error, for_a_program, stderr());
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        Command::Serve(file) => {
            let loaded = config::load(file.config.as_deref())?;
            let level = telemetry::init(&loaded.config.log);
            for warning in &loaded.warnings {
                tracing::warn!("{warning}");
            }
            for variable in &loaded.service_links {
                tracing::debug!(variable, "passed over: Kubernetes sets it for a service");
            }
            let load = Box::new(move || config::load(file.config.as_deref()));
            runtime()?.block_on(app::run(loaded, load, level))?;
        }
        Command::Config(ConfigCommand::Check { query, connect }) => {
            let mut loaded = config::load(query.file.config.as_deref()).and_then(with_usable_files);
            if connect {
                loaded = runtime()?.block_on(async { with_usable_databases(loaded?).await });
            }
            cli::print_check(&loaded, query.json, stdout(), stderr())?;
            return Ok(if loaded.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Config(ConfigCommand::Show(query)) => {
            let loaded = config::load(query.file.config.as_deref())?;
            cli::print_config(&loaded, query.json, stdout())?;
        }
        Command::Doctor(args) => return doctor(&args),
        Command::Tx(command) => runtime()?.block_on(cli::tx::run(&command, stdout()))?,
        Command::Dead(command) => {
            let all_done = runtime()?.block_on(cli::dead::run(&command, stdout()))?;
            return Ok(if all_done { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Completions { shell } => cli::print_completions(shell, stdout())?,
        Command::Man { to } => cli::write_manual(&to)?,
        Command::Store(command) => return store(&command),
    }
    Ok(ExitCode::SUCCESS)
}

/// The configuration, if what it names can be used too: what `serve` would stumble over.
fn with_usable_files(loaded: Loaded) -> Result<Loaded, ConfigError> {
    let found = doctor::unusable_files(&loaded.config);
    let problems: Vec<_> = found.into_iter().map(|(key, text)| loaded.problem(&key, text)).collect();
    if problems.is_empty() { Ok(loaded) } else { Err(ConfigError::Problems(problems)) }
}

/// The configuration, if the databases that it names are what it takes them for.
async fn with_usable_databases(mut loaded: Loaded) -> Result<Loaded, ConfigError> {
    let mut problems = Vec::new();
    for (key, finding) in doctor::examine_databases(&loaded.config).await {
        let problem = loaded.problem(&key, finding.text);
        match finding.fitness {
            Fitness::Fine => {}
            Fitness::Warning(_) => loaded.warnings.push(problem),
            Fitness::Failed(_) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(loaded) } else { Err(ConfigError::Problems(problems)) }
}

fn doctor(args: &Doctor) -> Result<ExitCode, Box<dyn Error>> {
    let config = config::load(args.query.file.config.as_deref())?.config;
    if args.health {
        doctor::ask_health(&config)?;
        return Ok(ExitCode::SUCCESS);
    }
    let findings = runtime()?.block_on(doctor::examine(&config, &args.vhost));
    cli::print_findings(&findings, args.query.json, stdout())?;
    let failed = findings.iter().any(|finding| matches!(finding.fitness, Fitness::Failed(_)));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn store(command: &StoreCommand) -> Result<ExitCode, Box<dyn Error>> {
    let (StoreCommand::Check(query) | StoreCommand::Backup { query, .. } | StoreCommand::Stats(query)) = command;
    let url = config::load(query.file.config.as_deref())?.config.store.url;
    match command {
        StoreCommand::Check(_) => {
            let checked = Arc::new(Checked::default());
            let look = {
                let checked = Arc::clone(&checked);
                move || HowFar {
                    doing: "checking transactions",
                    done: checked.done.load(Ordering::Relaxed),
                    total: checked.total.load(Ordering::Relaxed),
                }
            };
            let progress = Progress::start(look);
            let report = url.check(&checked)?;
            drop(progress);
            cli::print_report(&report, query.json, stdout())?;
            return Ok(if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        StoreCommand::Backup { to, .. } => {
            let total = url.stats()?.file_bytes;
            let (copied, target) = (url.clone(), to.clone());
            let look = move || HowFar { doing: "copying bytes", done: copied.backed_up(&target), total };
            let progress = Progress::start(look);
            url.back_up(to)?;
            drop(progress);
            cli::print_report(&json!({"from": url.file(), "to": to}), query.json, stdout())?;
        }
        StoreCommand::Stats(_) => cli::print_report(&url.stats()?, query.json, stdout())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> io::Result<Runtime> {
    // Half of the cores: sessions spend their time in the kernel, and the store's writer, and often RabbitMQ, want the
    // others. Fewer threads also wake each other less.
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    tokio::runtime::Builder::new_multi_thread().worker_threads(cores.div_ceil(2)).enable_all().build()
}
