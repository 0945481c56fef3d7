//! Flags, configuration, logs, the app, an exit code: 0 done, 1 failed, 2 usage (by clap).

use std::{
    error::Error,
    io::{stderr, stdout},
    process::ExitCode,
};

use clap::Parser;
use halfway::{
    app,
    cli::{self, Cli, Command, ConfigCommand},
    config, telemetry,
};

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
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(app::run(loaded.config))?;
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
    }
    Ok(ExitCode::SUCCESS)
}
