//! The command line: what can be asked for, and how answers are printed.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand};
use serde_json::json;

use crate::config::{ConfigError, Loaded, Problem};

/// Durable, atomic transactions for RabbitMQ: a proxy that existing AMQP 0-9-1 clients connect to instead.
#[derive(Debug, Parser)]
#[command(name = "halfway", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy until SIGTERM or SIGINT
    Serve(ConfigFile),
    /// Check or show the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// `halfway config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether the configuration is valid, and everything that is wrong with it
    Check(Query),
    /// Show every key with its effective value and where it comes from; secrets are left out
    Show(Query),
}

/// Where the configuration is.
#[derive(Args, Debug)]
pub struct ConfigFile {
    /// Read this file; without it, config.toml in the working directory, or else /etc/halfway/config.toml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// A question, for a person or for a program.
#[derive(Args, Debug)]
pub struct Query {
    /// Where the configuration is.
    #[command(flatten)]
    pub file: ConfigFile,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Prints the answer of `config check`; an invalid configuration goes to `err` unless JSON was asked for.
/// # Errors
/// When the output can't be written.
pub fn print_check(
    loaded: &Result<Loaded, ConfigError>,
    json: bool,
    mut out: impl Write,
    mut err: impl Write,
) -> io::Result<()> {
    match (loaded, json) {
        (Ok(loaded), false) => match &loaded.file {
            Some(path) => writeln!(out, "{} is valid.", path.display()),
            None => writeln!(out, "There is no configuration file; defaults and environment are valid."),
        },
        (Err(error), false) => writeln!(err, "{error}"),
        (Ok(loaded), true) => writeln!(out, "{}", json!({"valid": true, "file": loaded.file, "problems": []})),
        (Err(error), true) => {
            let problems: Vec<_> = match error {
                ConfigError::Problems(problems) => problems.iter().map(problem_json).collect(),
                other => vec![json!({"key": null, "source": null, "text": other.to_string()})],
            };
            writeln!(out, "{}", json!({"valid": false, "problems": problems}))
        }
    }
}

/// Prints the answer of `config show`.
/// # Errors
/// When the output can't be written.
pub fn print_config(loaded: &Loaded, json: bool, mut out: impl Write) -> io::Result<()> {
    let entries = loaded.entries();
    if json {
        let items: Vec<_> = entries
            .iter()
            .map(|entry| json!({"key": entry.key, "value": entry.value, "source": entry.origin.to_string()}))
            .collect();
        return writeln!(out, "{}", serde_json::Value::from(items));
    }
    let lines: Vec<_> = entries.iter().map(|entry| format!("{} = {}", entry.key, entry.value)).collect();
    let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or_default();
    for (line, entry) in lines.iter().zip(&entries) {
        writeln!(out, "{line:width$}  # {}", entry.origin)?;
    }
    Ok(())
}

fn problem_json(problem: &Problem) -> serde_json::Value {
    json!({"key": problem.key, "source": problem.origin.to_string(), "text": problem.text})
}
