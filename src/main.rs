//! Flags, configuration, logs, the app, an exit code: 0 done, 1 failed, 2 usage (by clap).

use std::{
    error::Error,
    io::{self, stderr, stdout},
    num::NonZero,
    process::ExitCode,
};

use clap::Parser;
use halfway::{
    app,
    cli::{self, Cli, Command, ConfigCommand, Doctor, StoreCommand},
    config::{self, StoreUrl},
    doctor::{self, Verdict},
    store::sqlite,
    telemetry,
};
use serde_json::json;
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("halfway: {error}");
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
            let load = Box::new(move || config::load(file.config.as_deref()));
            runtime()?.block_on(app::run(loaded, load, level))?;
        }
        Command::Config(ConfigCommand::Check(query)) => {
            let loaded = config::load(query.file.config.as_deref());
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
        Command::Store(command) => return store(&command),
    }
    Ok(ExitCode::SUCCESS)
}

fn doctor(args: &Doctor) -> Result<ExitCode, Box<dyn Error>> {
    let config = config::load(args.query.file.config.as_deref())?.config;
    if args.health {
        doctor::ask_health(&config)?;
        return Ok(ExitCode::SUCCESS);
    }
    let findings = runtime()?.block_on(doctor::examine(&config, &args.vhost));
    cli::print_findings(&findings, args.query.json, stdout())?;
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Failed);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn store(command: &StoreCommand) -> Result<ExitCode, Box<dyn Error>> {
    let (StoreCommand::Check(query) | StoreCommand::Backup { query, .. } | StoreCommand::Stats(query)) = command;
    let StoreUrl::Sqlite(path) = config::load(query.file.config.as_deref())?.config.store.url;
    match command {
        StoreCommand::Check(_) => {
            let report = sqlite::check(&path)?;
            cli::print_report(&report, query.json, stdout())?;
            return Ok(if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        StoreCommand::Backup { to, .. } => {
            sqlite::backup(&path, to)?;
            cli::print_report(&json!({"from": path, "to": to}), query.json, stdout())?;
        }
        StoreCommand::Stats(_) => cli::print_report(&sqlite::stats(&path)?, query.json, stdout())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> io::Result<Runtime> {
    // Half of the cores: sessions spend their time in the kernel, and the store's writer, and often RabbitMQ, want the
    // others. Fewer threads also wake each other less.
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    tokio::runtime::Builder::new_multi_thread().worker_threads(cores.div_ceil(2)).enable_all().build()
}
