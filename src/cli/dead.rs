//! `halfway dead`: dead letters looked at, tried again and discarded by hand, through the proxy that runs.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::ask::{self, AskError, Reach, age, client, print, reason, terminal_width, text};
use super::client::{Client, ClientError};
use super::progress::{HowFar, Progress};

/// `halfway dead`.
#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// List the committed messages that RabbitMQ could not take, in the order in which that was found out
    List(List),
    /// Show one dead letter
    Show(Show),
    /// Have a dead letter tried again: as itself, with the same x-half-id
    Retry(Deed),
    /// Forget a dead letter for good
    Discard(Deed),
}

impl DeadCommand {
    pub(super) fn reach(&self) -> &Reach {
        match self {
            Self::List(List { reach, .. })
            | Self::Show(Show { reach, .. })
            | Self::Retry(Deed { reach, .. })
            | Self::Discard(Deed { reach, .. }) => reach,
        }
    }
}

/// Which dead letters.
#[derive(Args, Debug)]
pub struct Only {
    /// Only those in this virtual host
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub vhost: Option<String>,
    /// Only those that were published to this exchange; empty is the default exchange
    #[arg(long)]
    pub exchange: Option<String>,
}

impl Only {
    fn filters(&self) -> [(&'static str, Option<&str>); 2] {
        [("vhost", self.vhost.as_deref()), ("exchange", self.exchange.as_deref())]
    }
}

/// `halfway dead list`.
#[derive(Args, Debug)]
pub struct List {
    /// The proxy.
    #[command(flatten)]
    pub reach: Reach,
    /// Which.
    #[command(flatten)]
    pub only: Only,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
}

/// `halfway dead show`.
#[derive(Args, Debug)]
pub struct Show {
    /// The proxy.
    #[command(flatten)]
    pub reach: Reach,
    /// Its id
    #[arg(value_name = "ID", value_parser = clap::value_parser!(i64).range(1..))]
    pub id: i64,
}

/// `halfway dead retry` and `discard`: one, or all that fit.
#[derive(Args, Debug)]
pub struct Deed {
    /// The proxy.
    #[command(flatten)]
    pub reach: Reach,
    /// Its id
    #[arg(
        value_name = "ID",
        value_parser = clap::value_parser!(i64).range(1..),
        required_unless_present = "all",
        conflicts_with_all = ["all", "vhost", "exchange", "yes"]
    )]
    pub id: Option<i64>,
    /// All of them, or all that --vhost and --exchange leave; without --yes they are only counted
    #[arg(long)]
    pub all: bool,
    /// Which of all.
    #[command(flatten)]
    pub only: Only,
    /// With --all: do it
    #[arg(long, requires = "all")]
    pub yes: bool,
    /// Why, for the history of its transaction
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: String,
}

/// Runs the command against the proxy and prints its answer. Says whether all was done that was asked for.
/// # Errors
/// [`AskError`]; then nothing was printed, or not all of it.
pub async fn run(command: &DeadCommand, out: impl Write) -> Result<bool, AskError> {
    match command {
        DeadCommand::List(list) => {
            let client = client(&list.reach)?;
            let answer = ask::list(&client, PATH, &list.only.filters(), list.limit as usize).await?;
            print(&list.reach, &answer, out, |answer, out| {
                print_list(answer, SystemTime::now(), terminal_width(), out)
            })?;
        }
        DeadCommand::Show(Show { reach, id }) => {
            let answer = client(reach)?.get(&format!("{PATH}/{id}")).await?;
            print(reach, &answer, out, print_letter)?;
        }
        DeadCommand::Retry(deed) => return act(deed, &RETRY, out).await,
        DeadCommand::Discard(deed) => return act(deed, &DISCARD, out).await,
    }
    Ok(true)
}

const PATH: &str = "/api/dead-letters";

/// What may be done with a letter, and how it is told.
struct Act {
    /// In the path.
    what: &'static str,
    /// Behind the number of one letter; its transaction follows.
    one: &'static str,
    doing: &'static str,
    would: &'static str,
    done: &'static str,
    /// In the answer for programs.
    count: &'static str,
}

const RETRY: Act = Act {
    what: "retry",
    one: "is tried again now; see transaction",
    doing: "retrying dead letters",
    would: "would be tried again",
    done: "are tried again now",
    count: "retried",
};

const DISCARD: Act = Act {
    what: "discard",
    one: "discarded, of transaction",
    doing: "discarding dead letters",
    would: "would be discarded",
    done: "are discarded",
    count: "discarded",
};

async fn act(deed: &Deed, act: &Act, out: impl Write) -> Result<bool, AskError> {
    let Some(id) = deed.id else { return act_on_all(deed, act, out).await };
    let answer = decide(&client(&deed.reach)?, &id.to_string(), act.what, &deed.reason).await?;
    print(&deed.reach, &answer, out, |answer, out| {
        let [id, transaction] = ["id", "transaction"].map(|field| text(answer, field));
        writeln!(out, "{id}: {} {transaction}", act.one)
    })?;
    Ok(true)
}

async fn decide(client: &Client, id: &str, what: &str, reason: &str) -> Result<Value, ClientError> {
    client.post(&format!("{PATH}/{id}/{what}"), &json!({"reason": reason})).await
}

/// Does it with what is there now: what becomes a dead letter again meanwhile is left alone.
async fn act_on_all(deed: &Deed, act: &Act, out: impl Write) -> Result<bool, AskError> {
    let client = client(&deed.reach)?;
    let found = ask::list(&client, PATH, &deed.only.filters(), usize::MAX).await?;
    let ids: Vec<String> = found["items"].as_array().into_iter().flatten().map(|item| text(item, "id")).collect();
    let (mut done, mut refused) = (0, Vec::new());
    let tried = Arc::new(AtomicU64::new(0));
    let (seen, total) = (Arc::clone(&tried), ids.len() as u64);
    let doing = act.doing;
    let look = move || HowFar { doing, done: seen.load(Ordering::Relaxed), total };
    let progress = deed.yes.then(|| Progress::start(look));
    for id in ids.iter().filter(|_| deed.yes) {
        match decide(&client, id, act.what, &deed.reason).await {
            Ok(_) => done += 1,
            Err(ClientError::Refused { text, .. }) => refused.push(json!({"id": id, "text": text})),
            Err(error) => return Err(error.into()),
        }
        tried.fetch_add(1, Ordering::Relaxed);
    }
    drop(progress);
    let all_done = refused.is_empty();
    let answer = json!({"found": ids.len(), "dry_run": !deed.yes, act.count: done, "refused": refused});
    print(&deed.reach, &answer, out, |answer, out| {
        if !deed.yes {
            return writeln!(out, "{} {}; give --yes to do it.", ids.len(), act.would);
        }
        for refused in answer["refused"].as_array().into_iter().flatten() {
            writeln!(out, "{}: {}", text(refused, "id"), text(refused, "text"))?;
        }
        writeln!(out, "{done} of {} {}.", ids.len(), act.done)
    })?;
    Ok(all_done)
}

fn print_list(answer: &Value, now: SystemTime, width: Option<usize>, out: &mut impl Write) -> io::Result<()> {
    let columns = [
        ("ID", false),
        ("AGE", false),
        ("TRIES", false),
        ("EXCHANGE", true),
        ("ROUTING KEY", true),
        ("CODE", false),
        ("REASON", true),
    ];
    let row = |item: &Value| {
        let [id, attempts, exchange, key, code, reply] =
            ["id", "attempts", "exchange", "routing_key", "reply_code", "reply_text"].map(|field| text(item, field));
        [id, age(&item["since"], now), attempts, exchange, key, code, reply]
    };
    ask::print_list(answer, columns, row, width, out)
}

fn print_letter<W: Write>(letter: &Value, out: &mut W) -> io::Result<()> {
    const FIELDS: [&str; 9] =
        ["id", "transaction", "exchange", "routing_key", "message_id", "reply_code", "reply_text", "since", "attempts"];
    ask::print_fields(letter, &FIELDS, out)?;
    let message = &letter["message"];
    if message.is_null() {
        return Ok(());
    }
    writeln!(out, "message")?;
    writeln!(out, "  {:14} {}", "bytes", text(message, "bytes"))?;
    for part in ["properties", "headers"] {
        writeln!(out, "  {part}")?;
        for value in message[part].as_array().into_iter().flatten() {
            let [name, kind, value] = ["name", "type", "value"].map(|field| text(value, field));
            writeln!(out, "    {name} ({kind}): {value}")?;
        }
    }
    let body = &message["body"];
    if body.is_null() {
        return writeln!(out, "  body           not shown (admin.show_bodies)");
    }
    let part = if body["truncated"] == true { ", the first of it" } else { "" };
    writeln!(out, "  body, {}{part}\n    {}", text(body, "form"), text(body, "text"))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_letter_is_shown_with_its_message_inert() {
        let mut letter = json!({
            "id": "7", "transaction": "t", "exchange": "orders", "routing_key": "k", "message_id": null,
            "reply_code": 404, "reply_text": "NOT_FOUND", "since": "1970-01-01T00:00:01.000Z", "attempts": 2,
            "message": {
                "bytes": "5", "properties": [{"name": "delivery_mode", "type": "octet", "value": 2}],
                "headers": [{"name": "x-\u{1b}[2J", "type": "longstr", "value": "v"}],
                "body": {"form": "text", "text": "a\u{202e}b", "truncated": false},
            },
        });
        let print = |letter: &Value| {
            let mut out = Vec::new();
            print_letter(letter, &mut out).expect("a Vec takes all");
            String::from_utf8(out).expect("UTF-8")
        };
        let shown = print(&letter);
        for line in
            ["    delivery_mode (octet): 2\n", "    x-\\u{1b}[2J (longstr): v\n", "  body, text\n    a\\u{202e}b\n"]
        {
            assert!(shown.contains(line), "{line} in {shown}");
        }
        letter["message"]["body"] = Value::Null;
        assert!(print(&letter).ends_with("not shown (admin.show_bodies)\n"));
        letter["message"] = Value::Null;
        assert!(print(&letter).ends_with("attempts         2\n"));
    }

    #[test]
    fn a_list_fits_a_terminal_and_shows_hostile_keys_as_text() {
        let item = json!({
            "id": "7", "transaction": "01890a5d-ac96-774b-bcce-b302099a8057", "exchange": "orders",
            "routing_key": "a\u{1b}[2J", "message_id": null, "reply_code": 404,
            "reply_text": "NOT_FOUND - no exchange 'orders' in vhost '/', which is a long text for one line",
            "since": "1970-01-01T00:00:01.000Z", "attempts": 2,
        });
        let print = |answer: &Value, width| {
            let mut out = Vec::new();
            print_list(answer, UNIX_EPOCH + Duration::from_secs(7201), width, &mut out).expect("a Vec takes all");
            String::from_utf8(out).expect("UTF-8")
        };
        let narrow = print(&json!({"items": [item], "next_cursor": "x"}), Some(60));
        assert!(narrow.lines().all(|line| line.chars().count() <= 60), "{narrow}");
        assert!(narrow.contains("7   2h   2      orders") && narrow.ends_with("raise --limit.\n"), "{narrow}");
        let whole = print(&json!({"items": [item], "next_cursor": null}), None);
        assert!(
            whole.contains("a\\u{1b}[2J") && whole.contains("for one line") && !whole.contains('\u{1b}'),
            "{whole}"
        );
        assert_eq!(print(&json!({"items": [], "next_cursor": null}), None), "There are none.\n");
    }
}
