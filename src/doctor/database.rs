//! Checkers that are databases: whether what they are asked can be answered, and by an account that can do no more.

use super::checker::STAY;
use super::{Finding, word};
use crate::config::{Asked, Checker, Look};
use crate::postgres::{Link, Postgres, Text, in_words};
use tokio::time::timeout;
use tokio_postgres::types::ToSql;

/// Everything about one table, as the account sees it.
const TABLE: &str = "\
    SELECT c.relpersistence::text, \
      (SELECT string_agg(wanted, ', ') FROM unnest(ARRAY['vhost', 'username', 'name', 'decision']) wanted \
       WHERE NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = wanted)), \
      EXISTS (SELECT FROM pg_index i \
       WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL \
         AND i.indnkeyatts = 3 AND ARRAY(SELECT a.attname::text FROM unnest((i.indkey::int2[])[0:2]) k \
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k ORDER BY 1) = ARRAY['name', 'username', 'vhost']), \
      (SELECT string_agg(p, ', ') FROM unnest(ARRAY['SELECT', 'INSERT']) p WHERE NOT has_table_privilege(c.oid, p)), \
      (SELECT string_agg(p, ', ') FROM unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE']) p WHERE has_table_privilege(c.oid, p)) \
    FROM pg_class c WHERE c.oid = to_regclass($1)";

/// How many tables the account can write to, this one aside.
const WRITABLE: &str = "\
    SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
      AND c.oid IS DISTINCT FROM to_regclass($1) AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')";

/// What is to be said of a checker that is a database; nothing of any other.
pub(super) async fn examine(checker: &Checker) -> Vec<Finding> {
    let Some(Asked::Postgres { url, look }) = checker.asked() else { return Vec::new() };
    let what = format!("checker {}", checker.name);
    let address = url.place.address();
    let failed = |text: String, cure: String| vec![Finding::failed(what.clone(), text, STAY, cure)];
    let by_hand = format!("from here: psql {}", word(address));
    let link = match Postgres::new(url.clone(), checker.timeout) {
        Ok(database) => database.connect().await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let link = match link {
        Ok(link) => link,
        Err(error) => return failed(format!("cannot connect: {error}"), format!("mend postgres; {by_hand}")),
    };
    let looked = async {
        match look {
            Look::Barrier(table) => barrier(&link, table).await,
            Look::Query { statement, .. } => query(&link, statement).await,
        }
    };
    let looked = match timeout(checker.timeout, looked).await {
        Ok(looked) => looked,
        Err(_) => Err(Wrong::from("no answer in time".to_owned())),
    };
    match looked {
        Err(Wrong { text, cure }) => failed(text, cure.unwrap_or(by_hand)),
        Ok(more) => {
            let seen = match look {
                Look::Barrier(table) => format!("{table} in {address} is as it must be"),
                Look::Query { .. } => format!("{address} takes the query"),
            };
            let fine = Finding::fine(what.clone(), seen);
            let warn = |text: String| {
                let why = "who gets hold of its password can do more than the proxy needs";
                let cure = match look {
                    Look::Barrier(table) => format!("give it a role of its own: GRANT SELECT, INSERT ON {table} TO …"),
                    Look::Query { .. } => "give it a role of its own, with SELECT alone".to_owned(),
                };
                Finding::warning(what.clone(), text, why, cure)
            };
            std::iter::once(fine).chain(more.map(warn)).collect()
        }
    }
}

/// What will not do, and what mends it; none: to look by hand.
struct Wrong {
    text: String,
    cure: Option<String>,
}

impl From<String> for Wrong {
    fn from(text: String) -> Self {
        Wrong { text, cure: None }
    }
}

impl From<tokio_postgres::Error> for Wrong {
    fn from(error: tokio_postgres::Error) -> Self {
        in_words(&error).into()
    }
}

/// Whether the table is the barrier's; what the account may do beyond.
async fn barrier(link: &Link, table: &str) -> Result<Option<String>, Wrong> {
    let see_barrier = "make it as docs/barrier.md has it";
    let wrong = |text: String, cure: String| Err(Wrong { text, cure: Some(cure) });
    let Some(row) = link.query_opt(TABLE, &[&Text(Some(table))]).await? else {
        return wrong(format!("there is no table {table}, or it is not in the search_path"), see_barrier.into());
    };
    let (persistence, missing, keyed): (String, Option<String>, bool) = (row.get(0), row.get(1), row.get(2));
    let (lacks, more): (Option<String>, Option<String>) = (row.get(3), row.get(4));
    if let Some(missing) = missing {
        return wrong(format!("{table} has no column {missing}"), see_barrier.into());
    }
    if !keyed {
        return wrong(format!("{table} has no unique key of vhost, username and name"), see_barrier.into());
    }
    if persistence != "p" {
        return wrong(
            format!("{table} is unlogged or temporary: a crash would empty it, and answers would be wrong"),
            format!("ALTER TABLE {table} SET LOGGED"),
        );
    }
    if let Some(lacks) = lacks {
        return wrong(
            format!("the account may not {lacks} in {table}"),
            format!("GRANT {lacks} ON {table} TO its role"),
        );
    }
    let read_only = link.query_one("SELECT current_setting('default_transaction_read_only') = 'on'", &[]).await?;
    if read_only.get(0) {
        return wrong(
            "default_transaction_read_only is on, so the barrier can't be written".into(),
            "ALTER ROLE … SET default_transaction_read_only = off".into(),
        );
    }
    let beyond = more.map(|more| format!("the account may also {more} in {table}"));
    Ok(beyond.or(writable(link, Some(table)).await?))
}

/// Whether the statement can be asked. It is: about no name at all, and without a chance to write.
async fn query(link: &Link, statement: &str) -> Result<Option<String>, Wrong> {
    let prepared = link.prepare(statement).await?;
    let count = prepared.params().len();
    if prepared.columns().len() != 1 || !(1..=3).contains(&count) {
        return Err("the query must have one column, and $1, or $1 and $2, or $1 to $3".to_owned().into());
    }
    let nothing = [const { Text(None) }; 3];
    let nothing: Vec<&(dyn ToSql + Sync)> = nothing.iter().take(count).map(|value| value as _).collect();
    link.batch_execute("BEGIN READ ONLY").await?;
    link.query_opt(&prepared, &nothing).await?;
    link.batch_execute("ROLLBACK").await?;
    Ok(writable(link, None).await?)
}

/// That the account could write where it need not.
async fn writable(link: &Link, but: Option<&str>) -> Result<Option<String>, tokio_postgres::Error> {
    let tables: i64 = link.query_one(WRITABLE, &[&Text(but)]).await?.get(0);
    Ok((tables > 0).then(|| format!("the account can write to {tables} other tables")))
}
