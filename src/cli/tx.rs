//! `halfway tx`: transactions looked at and decided by hand, through the proxy that runs.

use std::io::{self, Write};
use std::time::SystemTime;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};
use serde_json::{Value, json};
use uuid::Uuid;

use super::ask::{self, AskError, Reach, age, client, print, reason, terminal_width, text};
use super::client::{Client, encoded};
use crate::tx::name::TransactionName;
use crate::tx::state::State;

/// `halfway tx`.
#[derive(Debug, Subcommand)]
pub enum TxCommand {
    /// List transactions, in the order in which they were parked or committed
    List(List),
    /// Show one transaction with its history
    Show(Show),
    /// Decide that every message of a transaction goes to RabbitMQ
    Commit(Decide),
    /// Decide that no message of a transaction goes to RabbitMQ
    Rollback(Decide),
    /// Have a checker asked now what became of a transaction in doubt
    Check(Show),
}

impl TxCommand {
    pub(super) fn reach(&self) -> &Reach {
        match self {
            Self::List(List { reach, .. })
            | Self::Show(Show { reach, .. })
            | Self::Check(Show { reach, .. })
            | Self::Commit(Decide { reach, .. })
            | Self::Rollback(Decide { reach, .. }) => reach,
        }
    }
}

/// `halfway tx list`.
#[derive(Args, Debug)]
pub struct List {
    /// The proxy.
    #[command(flatten)]
    pub reach: Reach,
    /// Only those in this state
    #[arg(long, value_parser = PossibleValuesParser::new(State::ALL.map(State::as_str)))]
    pub state: Option<String>,
    /// Only those in this virtual host
    #[arg(long)]
    pub vhost: Option<String>,
    /// Only those of this user
    #[arg(long)]
    pub user: Option<String>,
    /// Only those with this name; * in it stands for any characters, ? for one
    #[arg(long, value_parser = name)]
    pub name: Option<String>,
    /// Only those whose first message, if they have it still, was published to this exchange; empty is the default exchange
    #[arg(long)]
    pub exchange: Option<String>,
    /// Only those at least so old, such as 30s or "1h 30m"
    #[arg(long, value_name = "AGE")]
    pub min_age: Option<humantime::Duration>,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
}

/// Which transaction: its id, or its name with those to whom it belongs.
#[derive(Args, Debug)]
pub struct Which {
    /// Its id
    #[arg(value_name = "ID", required_unless_present = "name", conflicts_with_all = ["name", "user", "vhost"])]
    pub id: Option<Uuid>,
    /// Its name, instead of its id; needs --user
    #[arg(long, requires = "user", value_parser = name)]
    pub name: Option<String>,
    /// The user who published it
    #[arg(long, requires = "name", value_parser = NonEmptyStringValueParser::new())]
    pub user: Option<String>,
    /// The virtual host of the name [default: /]
    #[arg(long, requires = "name", value_parser = NonEmptyStringValueParser::new())]
    pub vhost: Option<String>,
}

/// `halfway tx show` and `halfway tx check`.
#[derive(Args, Debug)]
pub struct Show {
    /// The proxy.
    #[command(flatten)]
    pub reach: Reach,
    /// The transaction.
    #[command(flatten)]
    pub which: Which,
}

/// `halfway tx commit` and `halfway tx rollback`.
#[derive(Args, Debug)]
pub struct Decide {
    /// The proxy.
    #[command(flatten)]
    pub reach: Reach,
    /// The transaction.
    #[command(flatten)]
    pub which: Which,
    /// Why, for its history
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: String,
}

fn name(text: &str) -> Result<String, String> {
    TransactionName::new(text.as_bytes()).map(|name| name.to_string()).map_err(|error| error.to_string())
}

/// Runs the command against the proxy and prints its answer.
/// # Errors
/// [`AskError`]; then nothing was printed, or not all of it.
pub async fn run(command: &TxCommand, out: impl Write) -> Result<(), AskError> {
    match command {
        TxCommand::List(list) => run_list(list, out).await,
        TxCommand::Show(Show { reach, which }) => {
            let client = client(reach)?;
            let id = id_of(&client, which).await?;
            let answer = client.get(&format!("/api/transactions/{id}")).await?;
            print(reach, &answer, out, print_transaction)
        }
        TxCommand::Check(Show { reach, which }) => {
            let client = client(reach)?;
            let id = id_of(&client, which).await?;
            let answer = client.post(&format!("/api/transactions/{id}/check"), &json!({})).await?;
            print(reach, &answer, out, |answer, out| {
                writeln!(out, "{}: checker {} is asked now", text(answer, "id"), text(answer, "checker"))
            })
        }
        TxCommand::Commit(decide) => run_decide(decide, "commit", out).await,
        TxCommand::Rollback(decide) => run_decide(decide, "rollback", out).await,
    }
}

async fn run_decide(decide: &Decide, what: &str, out: impl Write) -> Result<(), AskError> {
    let client = client(&decide.reach)?;
    let path = match &decide.which {
        Which { id: Some(id), .. } => format!("/api/transactions/{id}/{what}"),
        which => {
            let (vhost, user, name) = which.parts();
            let [vhost, user, name] = [vhost, user, name].map(encoded);
            format!("/api/vhosts/{vhost}/users/{user}/transactions/{name}/{what}")
        }
    };
    let answer = client.post(&path, &json!({"reason": decide.reason})).await?;
    print(&decide.reach, &answer, out, |answer, out| {
        let [id, state, by, at] = ["id", "state", "decided_by", "decided_at"].map(|field| text(answer, field));
        match answer["changed"] == true {
            true => writeln!(out, "{id}: {state}"),
            false => writeln!(out, "{id}: {state} already, decided by {by} at {at}; nothing changed"),
        }
    })
}

async fn run_list(list: &List, out: impl Write) -> Result<(), AskError> {
    let client = client(&list.reach)?;
    let List { state, vhost, user, name, exchange, min_age, .. } = list;
    let min_age = &min_age.map(|age| age.to_string());
    let filters = [
        ("state", state),
        ("vhost", vhost),
        ("user", user),
        ("name", name),
        ("exchange", exchange),
        ("min_age", min_age),
    ];
    let filters = filters.map(|(key, value)| (key, value.as_deref()));
    let answer = ask::list(&client, "/api/transactions", &filters, list.limit as usize).await?;
    print(&list.reach, &answer, out, |answer, out| print_list(answer, SystemTime::now(), terminal_width(), out))
}

impl Which {
    /// Virtual host, user and name. Without an id, clap has seen to it that they are there.
    fn parts(&self) -> (&str, &str, &str) {
        (
            self.vhost.as_deref().unwrap_or("/"),
            self.user.as_deref().unwrap_or_default(),
            self.name.as_deref().unwrap_or_default(),
        )
    }
}

/// The id of the transaction that is meant. Under a name: the undecided one; else the one that was committed; else the
/// one rolled back last.
async fn id_of(client: &Client, which: &Which) -> Result<String, AskError> {
    if let Some(id) = which.id {
        return Ok(id.to_string());
    }
    let (vhost, user, name) = which.parts();
    let filters = [("vhost", Some(vhost)), ("user", Some(user)), ("name", Some(name))];
    let found = ask::list(client, "/api/transactions", &filters, usize::MAX).await?;
    let rank = |item: &&Value| match item["state"].as_str() {
        Some("open" | "in_doubt") => 2,
        Some("rolled_back") => 0,
        _ => 1,
    };
    // The last of equal ones: a page is in the order in which they came.
    // A list takes a name with * or ? in it for a pattern; here it is a name.
    let items = found["items"].as_array().into_iter().flatten().filter(|item| item["name"] == name);
    let found = items.max_by_key(rank);
    found.and_then(|item| item["id"].as_str()).map(str::to_owned).ok_or(AskError::Unknown)
}

fn print_list(answer: &Value, now: SystemTime, width: Option<usize>, out: &mut impl Write) -> io::Result<()> {
    let columns = [
        ("ID", false),
        ("STATE", false),
        ("AGE", false),
        ("MSGS", false),
        ("NAME", true),
        ("USER", true),
        ("VHOST", true),
    ];
    let row = |item: &Value| {
        let [id, state, messages, name, user, vhost] =
            ["id", "state", "messages", "name", "user", "vhost"].map(|field| text(item, field));
        [id, state, age(&item["created_at"], now), messages, name, user, vhost]
    };
    ask::print_list(answer, columns, row, width, out)
}

fn print_transaction<W: Write>(transaction: &Value, out: &mut W) -> io::Result<()> {
    const FIELDS: [&str; 14] = [
        "id",
        "name",
        "vhost",
        "user",
        "state",
        "created_at",
        "parked_at",
        "decided_at",
        "decided_by",
        "messages",
        "bytes",
        "checker",
        "checks_answered",
        "next_check_at",
    ];
    ask::print_fields(transaction, &FIELDS, out)?;
    writeln!(out, "history")?;
    for event in transaction["history"].as_array().into_iter().flatten() {
        let [at, what, actor, reason] = ["at", "event", "actor", "reason"].map(|field| text(event, field));
        let reason = if event["reason"].is_null() { String::new() } else { format!(": {reason}") };
        writeln!(out, "  {at}  {what} by {actor}{reason}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_list_fits_a_terminal_and_shows_hostile_names_as_text() {
        let item = json!({
            "id": "01890a5d-ac96-774b-bcce-b302099a8057", "state": "in_doubt", "created_at": "1970-01-01T00:00:01.000Z",
            "messages": "3", "name": "order\u{1b}[2J-with-a-name-that-is-much-too-long", "user": "alice", "vhost": "/",
        });
        let print = |width| {
            let mut out = Vec::new();
            let now = UNIX_EPOCH + Duration::from_secs(7201);
            print_list(&json!({"items": [item]}), now, width, &mut out).expect("writing to a Vec does not fail");
            String::from_utf8(out).expect("UTF-8")
        };
        let narrow = print(Some(80));
        assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
        assert!(narrow.contains("01890a5d-ac96-774b-bcce-b302099a8057  in_doubt  2h"), "{narrow}");
        let whole = print(None);
        assert!(
            whole.contains("order\\u{1b}[2J-with-a-name-that-is-much-too-long") && !whole.contains('\u{1b}'),
            "{whole}"
        );
        let mut out = Vec::new();
        print_list(&json!({"items": []}), UNIX_EPOCH, None, &mut out).expect("writing to a Vec does not fail");
        assert_eq!(out, b"There are none.\n");
    }
}
