//! Flags, configuration, logs, the app, an exit code: 0 done, 1 failed, 2 usage (by clap).

use std::{
    error::Error,
    io::{self, stderr, stdout},
    process::ExitCode,
};

use clap::Parser;
use halfway::{
    app,
    cli::{self, Cli, Command, ConfigCommand, Doctor},
    config,
    doctor::{self, Verdict},
    telemetry,
};
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
            telemetry::init(&loaded.config.log);
            runtime()?.block_on(app::run(loaded.config))?;
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

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
