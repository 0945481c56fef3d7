//! The command line: what can be asked for, and how answers are printed.

mod ask;
mod client;
pub mod dead;
mod output;
mod progress;
mod text;
pub mod tx;

pub use ask::AskError;
pub use output::stdout;
pub use progress::{HowFar, Progress};

use std::{
    error::Error,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use serde::Serialize;
use serde_json::{Value, json};

use self::ask::terminal_width;
use self::client::ClientError;
use self::text::{shown, shown_json};
use crate::{
    config::{ConfigError, Entry, Loaded, Problem},
    doctor::{Finding, Fitness},
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
    /// Write the manual's pages of all commands into a folder; for packages
    #[command(hide = true)]
    Man {
        /// The folder; made if it is not there
        #[arg(value_name = "DIR")]
        to: PathBuf,
    },
}

impl Command {
    /// Whether a program reads what it prints.
    pub fn is_for_a_program(&self) -> bool {
        match self {
            Command::Config(ConfigCommand::Check { query, .. } | ConfigCommand::Show(query))
            | Command::Doctor(Doctor { query, .. })
            | Command::Store(
                StoreCommand::Check(query) | StoreCommand::Backup { query, .. } | StoreCommand::Stats(query),
            ) => query.json,
            Command::Tx(command) => command.reach().query.json,
            Command::Dead(command) => command.reach().query.json,
            Command::Serve(_) | Command::Completions { .. } | Command::Man { .. } => false,
        }
    }
}

/// `halfway config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether the configuration is valid, and everything that is wrong with it
    Check {
        /// Where the configuration is.
        #[command(flatten)]
        query: Query,
        /// Look into the databases that are checkers, too: tables, columns, privileges, statements
        #[arg(long)]
        connect: bool,
    },
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
                writeln!(err, "warning: {}", shown_lines(&warning.to_string()))?;
            }
            match &loaded.file {
                Some(path) => writeln!(out, "{} is valid.", path.display()),
                None => writeln!(out, "There is no configuration file; defaults and environment are valid."),
            }
        }
        (Err(error), false) => writeln!(err, "{}", shown_lines(&error.to_string())),
        (Ok(loaded), true) => {
            let warnings: Vec<_> = loaded.warnings.iter().map(problem_json).collect();
            let answer = json!({"valid": true, "file": loaded.file, "problems": [], "warnings": warnings});
            writeln!(out, "{}", shown_json(&answer))
        }
        (Err(error), true) => {
            let problems: Vec<_> = match error {
                ConfigError::Problems(problems) => problems.iter().map(problem_json).collect(),
                other => vec![json!({"key": null, "source": null, "text": other.to_string()})],
            };
            writeln!(out, "{}", shown_json(&json!({"valid": false, "problems": problems})))
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

/// Writes a manual page for each command: `halfway.1`, `halfway-tx.1`, `halfway-tx-commit.1` and so on.
/// # Errors
/// When the folder can't be made or a page not be written.
pub fn write_manual(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Cli::command(), folder)
}

/// Prints why a command failed: in words, or for a program as `{"error": ...}` or the proxy's own problem document.
/// # Errors
/// When the output can't be written.
pub fn print_failure(error: &(dyn Error + 'static), json: bool, mut err: impl Write) -> io::Result<()> {
    if !json {
        return writeln!(err, "halfway: {}", shown_lines(&error.to_string()));
    }
    let problem = match error.downcast_ref::<AskError>() {
        Some(AskError::Client(ClientError::Refused { problem, .. })) => Some(problem),
        _ => None,
    };
    let told = problem.cloned().unwrap_or_else(|| json!({"error": error.to_string()}));
    writeln!(err, "{}", shown_json(&told))
}

/// Several lines of ours, which may have others' texts in them.
fn shown_lines(text: &str) -> String {
    text.split('\n').map(shown).collect::<Vec<_>>().join("\n")
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
        return writeln!(out, "{}", shown_json(&Value::from(items)));
    }
    let line =
        |entry: &Entry| (format!("{} = {}", entry.key, shown_json(&entry.value)), shown(&entry.origin.to_string()));
    let lines: Vec<_> = entries.iter().map(line).collect();
    write_aligned(&lines, terminal_width(), out)
}

/// Lines of two parts, the second ones one below the other as far as a terminal has room for that.
fn write_aligned(lines: &[(String, String)], terminal: Option<usize>, mut out: impl Write) -> io::Result<()> {
    const BETWEEN: &str = "  # ";
    let longest = |part: fn(&(String, String)) -> &String| {
        lines.iter().map(|line| part(line).chars().count()).max().unwrap_or_default()
    };
    let room = terminal.map_or(usize::MAX, |width| width.saturating_sub(longest(|line| &line.1) + BETWEEN.len()));
    let width = longest(|line| &line.0).min(room);
    lines.iter().try_for_each(|(first, second)| writeln!(out, "{first:width$}{BETWEEN}{second}"))
}

/// Prints what the doctor found.
/// # Errors
/// When the output can't be written.
pub fn print_findings(findings: &[Finding], json: bool, mut out: impl Write) -> io::Result<()> {
    let told = |fitness: &Fitness| match fitness {
        Fitness::Fine => ("ok", None),
        Fitness::Warning(advice) => ("warning", Some(advice.clone())),
        Fitness::Failed(advice) => ("failed", Some(advice.clone())),
    };
    if json {
        let items: Vec<_> = findings
            .iter()
            .map(|finding| {
                let (verdict, advice) = told(&finding.fitness);
                let (why, cure) = advice.map(|advice| (advice.why, advice.cure)).unzip();
                json!({"what": finding.what, "verdict": verdict, "text": finding.text, "why": why, "cure": cure})
            })
            .collect();
        return writeln!(out, "{}", shown_json(&Value::from(items)));
    }
    for finding in findings {
        let (verdict, advice) = told(&finding.fitness);
        writeln!(out, "{verdict:8} {}: {}", shown(&finding.what), shown(&finding.text))?;
        if let Some(advice) = advice {
            writeln!(out, "{:8} why:  {}", "", advice.why)?;
            writeln!(out, "{:8} cure: {}", "", shown(&advice.cure))?;
        }
    }
    Ok(())
}

/// Prints a report: its fields, one a line, and the items of lists below their field's name.
/// # Errors
/// When the output can't be written.
pub fn print_report(report: &impl Serialize, json: bool, mut out: impl Write) -> io::Result<()> {
    let report = serde_json::to_value(report).map_err(io::Error::other)?;
    if json {
        return writeln!(out, "{}", shown_json(&report));
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
        Value::String(text) => shown(text),
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
    use crate::doctor::Advice;

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
        assert!(parse("halfway dead discard --all --vhost / --reason r").is_ok(), "without --yes it only counts");
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
            "halfway dead discard --reason r",
            "halfway dead discard 7 --all --reason r",
            "halfway tx",
            "halfway tx show",
            "halfway tx show 7",
            "halfway tx show --name n",
            "halfway tx show --user u",
            "halfway tx list --state done",
            "halfway tx list --limit 0",
            "halfway tx list --name=",
            "halfway tx list --min-age soon",
            "halfway tx list --url proxy",
            "halfway serve --confg a",
            "halfway config",
        ] {
            assert_eq!(parse(wrong).expect_err("a usage error").exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn findings_are_printed_for_people_and_for_programs() {
        let advice = Advice { why: "it goes", cure: "mount\u{1b}[2J it".into() };
        let fitness = Fitness::Warning(advice);
        let finding = Finding { what: "store a.db".into(), fitness, text: "it is in \"tmp\"".into() };
        let print = |json| {
            let mut out = Vec::new();
            print_findings(std::slice::from_ref(&finding), json, &mut out).expect("writing to a Vec does not fail");
            String::from_utf8(out).expect("UTF-8")
        };
        let lines =
            ["warning  store a.db: it is in \"tmp\"", "         why:  it goes", "         cure: mount\\u{1b}[2J it"];
        assert_eq!(print(false).lines().collect::<Vec<_>>(), lines);
        assert!(!print(true).contains('\u{1b}'));
        let json: Value = serde_json::from_str(&print(true)).expect("JSON");
        let expected = json!([{
            "what": "store a.db", "verdict": "warning", "text": "it is in \"tmp\"", "why": "it goes",
            "cure": "mount\u{1b}[2J it",
        }]);
        assert_eq!(json, expected);
    }

    #[test]
    fn settings_are_aligned_as_far_as_there_is_room() {
        let lines = [("a = 1", "default"), ("a_long_key = \"a long value\"", "a.toml")];
        let lines = lines.map(|(first, second)| (first.to_owned(), second.to_owned()));
        let print = |terminal| {
            let mut out = Vec::new();
            write_aligned(&lines, terminal, &mut out).expect("writing to a Vec does not fail");
            String::from_utf8(out).expect("UTF-8")
        };
        let wide = "a = 1                        # default\na_long_key = \"a long value\"  # a.toml\n";
        assert_eq!(print(None), wide);
        assert_eq!(print(Some(80)), wide);
        assert_eq!(print(Some(24)), "a = 1          # default\na_long_key = \"a long value\"  # a.toml\n");
    }

    #[test]
    fn failures_are_told_to_people_and_to_programs() {
        let print = |error: &(dyn Error + 'static), json| {
            let mut err = Vec::new();
            print_failure(error, json, &mut err).expect("writing to a Vec does not fail");
            String::from_utf8(err).expect("UTF-8")
        };
        let error = io::Error::other("no \u{202e}such thing");
        assert_eq!(print(&error, false), "halfway: no \\u{202e}such thing\n");
        assert_eq!(print(&error, true), "{\"error\":\"no \\u202esuch thing\"}\n");
        let problem = json!({"status": 404, "detail": "gone"});
        let refused = AskError::Client(ClientError::Refused { text: "gone".into(), problem: problem.clone() });
        assert_eq!(print(&refused, false), "halfway: gone\n");
        assert_eq!(serde_json::from_str::<Value>(&print(&refused, true)).expect("JSON"), problem);
    }

    #[test]
    fn every_command_has_a_page_in_the_manual() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write_manual(&folder.path().join("man1")).expect("written");
        let page = |name: &str| fs::read_to_string(folder.path().join("man1").join(name)).expect("a page");
        assert!(page("halfway.1").contains("halfway\\-tx(1)") || page("halfway.1").contains("tx"));
        assert!(page("halfway-tx-commit.1").contains("Why, for its history"));
        for name in ["serve", "config-check", "doctor", "dead-retry", "store-backup", "completions"] {
            assert!(page(&format!("halfway-{name}.1")).contains(".TH"), "{name}");
        }
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
