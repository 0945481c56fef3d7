//! What every command that asks the running proxy has in common: how it is reached, and how answers are printed.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;
use serde_json::{Value, json};

use super::Query;
use super::client::{Client, ClientError, Url, encoded};
use super::text::{Column, shown, shown_json, table};
use crate::admin::{LIMIT_MAX, TokenError, check_reason, read_token};
use crate::config::{self, ConfigError, Role, TOKEN_VARIABLE};

/// How the proxy is reached.
#[derive(Args, Debug)]
pub struct Reach {
    /// Where its configuration is.
    #[command(flatten)]
    pub query: Query,
    /// Ask the proxy whose admin port is here, instead of the one in the configuration
    #[arg(long, value_name = "URL")]
    pub url: Option<Url>,
    /// Read the token from this file, instead of HALFWAY_TOKEN or the configuration's first operator
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The proxy could not be asked, or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The configuration does not tell where it is.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It has no admin port.
    #[error("admin.address is switched off, so there is nobody to ask; give --url for another proxy")]
    NoPort,
    /// The token's file.
    #[error("{}", token_text(.0))]
    Token(TokenError),
    /// The variable holds what no header can carry.
    #[error("{TOKEN_VARIABLE} holds no token: it has to be visible ASCII without blanks")]
    TokenVariable,
    /// Nobody published under this name.
    #[error("there is no such transaction, or not any more")]
    Unknown,
    /// The output can't be written.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

fn token_text(error: &TokenError) -> String {
    error.to_string().replace("named by `admin.tokens`", "the token's file")
}

/// A reason, as clap reads it.
pub(super) fn reason(text: &str) -> Result<String, String> {
    check_reason(text).map(|()| text.to_owned())
}

/// The proxy that is meant, and the token for it.
pub(super) fn client(reach: &Reach) -> Result<Client, AskError> {
    let given = match &reach.token_file {
        Some(path) => Some(read_token(path).map_err(AskError::Token)?),
        None => match std::env::var_os(TOKEN_VARIABLE).filter(|token| !token.is_empty()) {
            None => None,
            Some(token) => {
                let token = token.into_string().ok().filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic()));
                Some(token.ok_or(AskError::TokenVariable)?)
            }
        },
    };
    if let Some(url) = &reach.url {
        // The configuration's token is for the configuration's proxy, and for no other.
        return Ok(Client { url: url.clone(), key: "--url", token: given });
    }
    let admin = config::load(reach.query.file.config.as_deref())?.config.admin;
    let address = *admin.address.first().ok_or(AskError::NoPort)?;
    let operator = admin.tokens.iter().find(|token| token.role == Role::Operator);
    let token = match (given, operator) {
        (Some(token), _) => Some(token),
        (None, Some(operator)) => Some(read_token(&operator.token_file).map_err(AskError::Token)?),
        (None, None) => None,
    };
    Ok(Client { url: address.into(), key: "admin.address", token })
}

/// Prints an answer, for people or as JSON.
pub(super) fn print<W: Write>(
    reach: &Reach,
    answer: &Value,
    mut out: W,
    for_people: impl FnOnce(&Value, &mut W) -> io::Result<()>,
) -> Result<(), AskError> {
    match reach.query.json {
        true => writeln!(out, "{}", shown_json(answer))?,
        false => for_people(answer, &mut out)?,
    }
    Ok(())
}

/// Asks a list page by page until `wanted` items are there, or all: `{"items": [...], "next_cursor": ...}`.
pub(super) async fn list(
    client: &Client,
    path: &str,
    filters: &[(&str, Option<&str>)],
    wanted: usize,
) -> Result<Value, AskError> {
    let mut items = Vec::new();
    let mut cursor = Value::Null;
    loop {
        let mut path = format!("{path}?limit={}", (wanted - items.len()).min(LIMIT_MAX));
        for (key, value) in filters.iter().filter_map(|(key, value)| Some((key, (*value)?))) {
            path += &format!("&{key}={}", encoded(value));
        }
        if let Some(cursor) = cursor.as_str() {
            path += &format!("&cursor={}", encoded(cursor));
        }
        let mut page = client.get(&path).await?;
        cursor = page["next_cursor"].take();
        let Value::Array(found) = page["items"].take() else { break };
        items.extend(found);
        if cursor.is_null() || items.len() >= wanted {
            break;
        }
    }
    Ok(json!({"items": items, "next_cursor": cursor}))
}

/// Prints what [`list`] gave as a table. `columns`: heads, and whether they may be shortened; `row`: an item's cells.
pub(super) fn print_list<const N: usize>(
    answer: &Value,
    columns: [(&'static str, bool); N],
    row: impl Fn(&Value) -> [String; N],
    width: Option<usize>,
    out: &mut impl Write,
) -> io::Result<()> {
    let items = answer["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() {
        return writeln!(out, "There are none.");
    }
    let columns = columns.map(|(head, elastic)| Column { head, elastic });
    let rows: Vec<Vec<String>> = items.iter().map(|item| row(item).into()).collect();
    table(&columns, &rows, width).iter().try_for_each(|line| writeln!(out, "{line}"))?;
    match answer["next_cursor"].is_null() {
        true => Ok(()),
        false => writeln!(out, "There are more: raise --limit."),
    }
}

/// Prints fields of an answer, a line each.
pub(super) fn print_fields(answer: &Value, fields: &[&str], out: &mut impl Write) -> io::Result<()> {
    fields.iter().try_for_each(|field| writeln!(out, "{field:16} {}", text(answer, field)))
}

/// A field as a person may see it.
pub(super) fn text(value: &Value, field: &str) -> String {
    match &value[field] {
        Value::Null => "-".into(),
        Value::String(text) => shown(text),
        other => shown(&other.to_string()),
    }
}

/// How long ago something was, in its largest unit.
pub(super) fn age(at: &Value, now: SystemTime) -> String {
    let at = at.as_str().and_then(|at| humantime::parse_rfc3339(at).ok());
    let Some(at) = at else { return "-".into() };
    // A clock that differs makes nothing younger than new.
    let seconds = now.duration_since(at).unwrap_or_default().as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// None where the output goes to a program, which gets everything.
pub(super) fn terminal_width() -> Option<usize> {
    terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn ages_are_short() {
        let age = |seconds| age(&json!("1970-01-01T00:00:00Z"), UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!([0, 59, 60, 3599, 3600, 86_400].map(age), ["0s", "59s", "1m", "59m", "1h", "1d"]);
        let future = super::age(&json!("1980-01-01T00:00:00Z"), UNIX_EPOCH);
        assert_eq!(future, "0s");
    }
}
