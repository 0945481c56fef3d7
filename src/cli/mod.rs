//! The command line: what can be asked for, and how answers are printed.

mod ask;
mod client;
pub mod dead;
mod text;
pub mod tx;

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    config::{ConfigError, Loaded, Problem},
    doctor::{Finding, Verdict},
};

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
    /// Look at everything the proxy needs: RabbitMQ, the relay's account, the store
    Doctor(Doctor),
    /// List transactions of the running proxy, and decide those in doubt
    #[command(subcommand)]
    Tx(tx::TxCommand),
    /// List the committed messages that RabbitMQ could not take, and retry or discard them
    #[command(subcommand)]
    Dead(dead::DeadCommand),
    /// Look into the store, or copy it, while a proxy has it or none
    #[command(subcommand)]
    Store(StoreCommand),
    /// Print a script that completes these commands in a shell
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
}

/// `halfway config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether the configuration is valid, and everything that is wrong with it
    Check(Query),
    /// Show every key with its effective value and where it comes from; secrets are left out
    Show(Query),
}

/// `halfway doctor`.
#[derive(Args, Debug)]
pub struct Doctor {
    /// The configuration to look with.
    #[command(flatten)]
    pub query: Query,
    /// A virtual host in which committed messages will be published; may be given several times
    #[arg(long, value_name = "NAME", default_value = "/")]
    pub vhost: Vec<String>,
    /// Look at nothing; only ask the proxy that runs with this configuration whether it lives
    #[arg(long)]
    pub health: bool,
}

/// `halfway store`.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Read everything and say what is wrong with it
    Check(Query),
    /// Copy the store as it is at one moment; the copy can be used in its place
    Backup {
        /// The file to write, which must not be there yet
        #[arg(value_name = "TO")]
        to: PathBuf,
        /// Where the configuration is.
        #[command(flatten)]
        query: Query,
    },
    /// Count what is in it
    Stats(Query),
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
        (Ok(loaded), false) => {
            for warning in &loaded.warnings {
                writeln!(err, "warning: {warning}")?;
            }
            match &loaded.file {
                Some(path) => writeln!(out, "{} is valid.", path.display()),
                None => writeln!(out, "There is no configuration file; defaults and environment are valid."),
            }
        }
        (Err(error), false) => writeln!(err, "{error}"),
        (Ok(loaded), true) => {
            let warnings: Vec<_> = loaded.warnings.iter().map(problem_json).collect();
            let answer = json!({"valid": true, "file": loaded.file, "problems": [], "warnings": warnings});
            writeln!(out, "{answer}")
        }
        (Err(error), true) => {
            let problems: Vec<_> = match error {
                ConfigError::Problems(problems) => problems.iter().map(problem_json).collect(),
                other => vec![json!({"key": null, "source": null, "text": other.to_string()})],
            };
            writeln!(out, "{}", json!({"valid": false, "problems": problems}))
        }
    }
}

/// Prints a script that completes commands in a shell.
/// # Errors
/// When the output can't be written.
pub fn print_completions(shell: Shell, mut out: impl Write) -> io::Result<()> {
    // Made in memory first: what writes it panics where a pipe is closed.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "halfway", &mut script);
    out.write_all(&script)
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
        return writeln!(out, "{}", Value::from(items));
    }
    let lines: Vec<_> = entries.iter().map(|entry| format!("{} = {}", entry.key, entry.value)).collect();
    let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or_default();
    for (line, entry) in lines.iter().zip(&entries) {
        writeln!(out, "{line:width$}  # {}", entry.origin)?;
    }
    Ok(())
}

/// Prints what the doctor found.
/// # Errors
/// When the output can't be written.
pub fn print_findings(findings: &[Finding], json: bool, mut out: impl Write) -> io::Result<()> {
    let word = |verdict| match verdict {
        Verdict::Fine => "ok",
        Verdict::Warning => "warning",
        Verdict::Failed => "failed",
    };
    if json {
        let items: Vec<_> = findings
            .iter()
            .map(|finding| json!({"what": finding.what, "verdict": word(finding.verdict), "text": finding.text}))
            .collect();
        return writeln!(out, "{}", Value::from(items));
    }
    for finding in findings {
        writeln!(out, "{:8} {}: {}", word(finding.verdict), finding.what, finding.text)?;
    }
    Ok(())
}

/// Prints a report: its fields, one a line, and the items of lists below their field's name.
/// # Errors
/// When the output can't be written.
pub fn print_report(report: &impl Serialize, json: bool, mut out: impl Write) -> io::Result<()> {
    let report = serde_json::to_value(report).map_err(io::Error::other)?;
    if json {
        return writeln!(out, "{report}");
    }
    for (name, value) in report.as_object().into_iter().flatten() {
        match value {
            Value::Array(items) if items.is_empty() => writeln!(out, "{name:20} none")?,
            Value::Array(items) => {
                writeln!(out, "{name}")?;
                for item in items {
                    writeln!(out, "  {}", in_words(item))?;
                }
            }
            value => writeln!(out, "{name:20} {}", in_words(value))?,
        }
    }
    Ok(())
}

fn in_words(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::String(text) => text.clone(),
        Value::Object(fields) => {
            let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name} {}", in_words(value))).collect();
            fields.join(", ")
        }
        other => other.to_string(),
    }
}

fn problem_json(problem: &Problem) -> Value {
    json!({"key": problem.key, "source": problem.origin.to_string(), "text": problem.text})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_mean_what_they_say() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(|cli| cli.command);
        let Ok(Command::Serve(file)) = parse("halfway serve --config a.toml") else { panic!("serve") };
        assert_eq!(file.config, Some("a.toml".into()));
        let Ok(Command::Config(ConfigCommand::Show(query))) = parse("halfway config show --json") else {
            panic!("show")
        };
        assert!(query.json && query.file.config.is_none());
        let Ok(Command::Doctor(doctor)) = parse("halfway doctor --vhost a --vhost b") else { panic!("doctor") };
        assert_eq!((doctor.vhost, doctor.health), (vec!["a".to_owned(), "b".to_owned()], false));
        const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
        let Ok(Command::Tx(tx::TxCommand::Commit(decide))) =
            parse("halfway tx commit --name n --user u --reason r --url http://h:1 --json")
        else {
            panic!("commit")
        };
        assert_eq!((decide.which.name.as_deref(), decide.which.vhost, decide.reason), (Some("n"), None, "r".into()));
        assert!(parse(&format!("halfway tx show {ID}")).is_ok() && parse("halfway tx list --state in_doubt").is_ok());
        let no_reason = format!("halfway tx commit {ID}");
        let empty_reason = format!("halfway tx commit {ID} --reason=");
        let both = format!("halfway tx show {ID} --name n --user u");
        for wrong in [&no_reason, &empty_reason, &both] {
            assert_eq!(parse(wrong).expect_err("a usage error").exit_code(), 2, "{wrong}");
        }
        let Ok(Command::Dead(dead::DeadCommand::Retry(retry))) =
            parse("halfway dead retry --all --exchange x --yes --reason r --json")
        else {
            panic!("retry")
        };
        assert_eq!((retry.all, retry.only.exchange.as_deref(), retry.yes, retry.id), (true, Some("x"), true, None));
        assert!(parse("halfway dead list --vhost / --limit 7").is_ok() && parse("halfway dead show 7").is_ok());
        for shell in ["bash", "fish", "zsh"] {
            let Ok(Command::Completions { shell }) = parse(&format!("halfway completions {shell}")) else {
                panic!("completions")
            };
            let mut script = Vec::new();
            print_completions(shell, &mut script).expect("writing to a Vec does not fail");
            assert!(String::from_utf8(script).expect("UTF-8").contains("discard"), "{shell}");
        }
        for wrong in [
            "halfway",
            "halfway completions cobol",
            "halfway dead",
            "halfway dead show",
            "halfway dead show 0",
            "halfway dead retry --reason r",
            "halfway dead retry 7",
            "halfway dead retry 7 --all --reason r",
            "halfway dead retry 7 --yes --reason r",
            "halfway dead discard 7 --reason=",
            "halfway dead discard --all --reason r",
            "halfway tx",
            "halfway tx show",
            "halfway tx show 7",
            "halfway tx show --name n",
            "halfway tx show --user u",
            "halfway tx list --state done",
            "halfway tx list --limit 0",
            "halfway tx list --name=",
            "halfway tx list --url proxy",
            "halfway serve --confg a",
            "halfway config",
        ] {
            assert_eq!(parse(wrong).expect_err("a usage error").exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn findings_are_printed_for_people_and_for_programs() {
        let finding = Finding { what: "store a.db".into(), verdict: Verdict::Warning, text: "it is in \"tmp\"".into() };
        let print = |json| {
            let mut out = Vec::new();
            print_findings(std::slice::from_ref(&finding), json, &mut out).expect("writing to a Vec does not fail");
            String::from_utf8(out).expect("UTF-8")
        };
        assert_eq!(print(false), "warning  store a.db: it is in \"tmp\"\n");
        let json: Value = serde_json::from_str(&print(true)).expect("JSON");
        assert_eq!(json, json!([{"what": "store a.db", "verdict": "warning", "text": "it is in \"tmp\""}]));
    }

    #[test]
    fn reports_are_printed_field_by_field() {
        let report = json!({"bytes": 5, "lanes": [{"lane": 1, "vhost": "/"}], "none_wrong": [], "oldest": null});
        let mut out = Vec::new();
        print_report(&report, false, &mut out).expect("writing to a Vec does not fail");
        let lines = [
            "bytes                5",
            "lanes",
            "  lane 1, vhost /",
            "none_wrong           none",
            "oldest               none",
        ];
        assert_eq!(String::from_utf8(out).expect("UTF-8").lines().collect::<Vec<_>>(), lines);
    }
}
