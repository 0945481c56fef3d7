//! The form of the house: what the compiler can't see, and what a reader relies on. Each rule is a function from text to
//! faults, and is shown a bad sample beside the real files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of one source file.
const LINES_MAX: usize = 900;
/// Modules that are values and rules only: they are given the time, and return what is to be done.
const PURE: [&str; 3] = ["amqp", "tx", "protocol"];
/// What has no place in them. `std::net` has only addresses there, which are values.
const IMPURE: [&str; 18] = [
    "tokio",
    "rusqlite",
    "tracing",
    "serde",
    "figment",
    "clap",
    "std::fs",
    "std::io",
    "std::env",
    "std::process",
    "std::thread",
    "Mutex",
    "RwLock",
    "Atomic",
    "mpsc",
    "SystemTime::now",
    "Instant::now",
    "now_v7",
];
/// Modules on one level, which must not know each other: the app alone brings them together.
const STRANGERS: [(&str, &str); 3] = [("session", "relay"), ("admin", "session"), ("admin", "relay")];

/// Names by which one kind of store is known in code.
const BACKENDS: [&str; 6] = ["::sqlite", "sqlite::", "rusqlite", "SqliteStore", "store::postgres", "PostgresStore"];

#[test]
fn pure_modules_stay_pure() {
    each_source(|path, text| PURE.iter().find(|pure| within(path, pure)).map_or(Vec::new(), |_| impurities(text)));
    assert_eq!(impurities("use tokio::net::TcpStream;"), ["tokio"]);
    assert_eq!(impurities("use std::net::{IpAddr, TcpStream};"), ["std::net"]);
    assert_eq!(impurities("use std::net::TcpStream;"), ["std::net"]);
    assert_eq!(impurities("let now = std::time::Instant::now();"), ["Instant::now"]);
    assert_eq!(impurities("#[derive(Serialize)] struct S; use serde::Serialize;"), ["serde"]);
    let fine = "use std::net::IpAddr;\n// No tokio here.\n#[cfg(test)]\nmod tests { use std::fs; }";
    assert!(impurities(fine).is_empty());
}

#[test]
fn a_module_knows_only_those_above_it_in_the_table_of_contents() {
    let order = table_of_contents(&read(&root().join("src/lib.rs")));
    assert!(order.iter().any(|name| name == "amqp") && order.last().is_some_and(|name| name == "cli"), "{order:?}");
    each_source(|path, text| module(path).map_or(Vec::new(), |module| upward(&module, text, &order)));

    let order = ["amqp", "tx", "store", "relay", "session"].map(String::from);
    assert_eq!(upward("amqp", "use crate::tx::id::MessageId;", &order), ["amqp knows tx"]);
    assert_eq!(upward("tx", "use crate::{amqp::frame, store::{Store, Lane}};", &order), ["tx knows store"]);
    assert_eq!(upward("store", "let x = crate::nowhere::f();", &order), ["store knows nowhere"]);
    assert_eq!(upward("session", "use crate::relay::Relay;", &order), ["session knows relay"]);
    assert!(upward("store", "use crate::amqp::frame; use crate::store::Lane;", &order).is_empty());
    assert_eq!(table_of_contents("//! - [`a`]: x\n//! - [`b`] and [`c`]: y, see [`z`]\n"), ["a", "b", "c"]);
}

#[test]
fn only_the_store_knows_which_kinds_of_store_there_are() {
    let src = root().join("src");
    each_source(|path, text| match path.starts_with(&src) && !path.starts_with(src.join("store")) {
        true => backends(text),
        false => Vec::new(),
    });
    assert_eq!(backends("use crate::store::sqlite;"), ["::sqlite"]);
    assert_eq!(backends("use crate::store::{sqlite, Lane}; let x = sqlite::stats(path);"), ["sqlite::"]);
    assert_eq!(backends("fn open() -> SqliteStore {}"), ["SqliteStore"]);
    assert!(backends("let file = url.file(); // a SqliteStore").is_empty());
}

#[test]
fn no_source_file_is_too_long() {
    each_source(|_, text| too_long(text));
    assert!(too_long(&"x\n".repeat(LINES_MAX)).is_empty());
    assert_eq!(too_long(&"x\n".repeat(LINES_MAX + 1)).len(), 1);
}

#[test]
fn nothing_is_left_to_do_and_no_machine_is_named() {
    let mut seen = 0;
    for path in files(&root()) {
        // What is not text has no words.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        seen += 1;
        assert_eq!(left_over(&text), Vec::<String>::new(), "in {}", path.display());
    }
    assert!(seen > 50, "only {seen} files were read");
    assert_eq!(left_over(concat!("// TO", "DO: later")).len(), 1);
    assert_eq!(left_over(concat!("#[ign", "ore = \"slow\"]")).len(), 1);
    assert_eq!(left_over(concat!("cd /ho", "me/somebody/halfway")).len(), 1);
    assert!(left_over("what is done is done").is_empty());
}

#[test]
fn the_map_of_the_house_names_every_dependency() {
    let architecture = read(&root().join("docs/architecture.md"));
    let dependencies = dependencies(&read(&root().join("Cargo.toml")));
    assert!(dependencies.len() > 10, "{dependencies:?}");
    assert_eq!(unnamed(&dependencies, &architecture), Vec::<String>::new());

    assert_eq!(unnamed(&["a".into(), "b".into()], "only `a` stands here"), ["b"]);
    assert_eq!(dependencies_of_sample(), ["bytes", "clap", "lapin"]);
}

#[test]
fn the_operators_manual_has_every_event_of_the_log() {
    let operations = read(&root().join("docs/operations.md"));
    let chapter = operations.split("\n## ").find(|chapter| chapter.starts_with("Logs\n")).expect("a chapter");
    let documented = BTreeSet::from_iter(documented_events(chapter));
    let sources = files(&root().join("src")).into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs"));
    let logged = BTreeSet::from_iter(sources.flat_map(|path| events(&read(&path))));
    assert!(logged.len() > 50, "{logged:?}");
    let missing: Vec<_> = logged.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&logged).collect();
    assert!(missing.is_empty() && gone.is_empty(), "not in the table: {missing:#?}, not in the code: {gone:#?}");

    let is = |level: &str, text: &str| (text.to_owned(), level.to_owned());
    let code =
        "tracing::warn!(a = f(\"(\"), \"it \\\"goes\\\"\");\ntracing::debug!(\"no\");\ntracing::info!(\n    \"so\"\n)";
    assert_eq!(events(code), [is("warn", "it \"goes\""), is("info", "so")]);
    assert_eq!(events("tracing::info!(\"{what}\");\n#[cfg(test)]\nmod tests {\n tracing::info!(\"no\") }"), []);
    let rows = "| event | level |\n| --- | --- |\n| `a`, `b c` | info | is `x` | |\n";
    assert_eq!(documented_events(rows), [is("info", "a"), is("info", "b c")]);
}

/// Shows `rule` every file of `src/` and fails with what it finds.
fn each_source(rule: impl Fn(&Path, &str) -> Vec<String>) {
    let sources: Vec<_> =
        files(&root()).into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs")).collect();
    assert!(sources.len() > 50, "only {} sources were found", sources.len());
    for path in sources {
        assert_eq!(rule(&path, &read(&path)), Vec::<String>::new(), "in {}", path.display());
    }
}

/// The parts of `IMPURE`, and sockets, that the code of a file names outside its tests.
fn impurities(text: &str) -> Vec<String> {
    let code = code(text);
    let mut found: Vec<String> = IMPURE.iter().filter(|word| has_word(&code, word)).map(|&word| word.into()).collect();
    if code.replace("std::net::IpAddr", "").contains("std::net") {
        found.push("std::net".into());
    }
    found
}

/// The parts of `BACKENDS` that the code of a file names outside its tests.
fn backends(text: &str) -> Vec<String> {
    let code = code(text);
    BACKENDS.into_iter().filter(|name| code.contains(name)).map(String::from).collect()
}

/// Whether `word` stands in `code` with nothing before or behind it that would make it part of another name.
fn has_word(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        !code[..at].chars().next_back().is_some_and(part) && !code[at + word.len()..].chars().next().is_some_and(part)
    })
}

/// A file's code without comments and without its tests, which stand last.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code = code.split("#[cfg(test)]\npub(crate) mod tests").next().unwrap_or_default();
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The modules of the crate in the order in which `lib.rs` lists them.
fn table_of_contents(lib: &str) -> Vec<String> {
    let entries = lib.lines().filter_map(|line| line.strip_prefix("//! - ")?.split_once(':')).map(|(names, _)| names);
    entries.flat_map(|names| names.split('`').skip(1).step_by(2).map(String::from).collect::<Vec<_>>()).collect()
}

/// What a module uses of the crate that is not above it in `order`.
fn upward(module: &str, text: &str, order: &[String]) -> Vec<String> {
    let place = |name: &str| order.iter().position(|known| known == name);
    let strange = |used: &str| STRANGERS.contains(&(module, used));
    let may = |used: &String| place(used) <= place(module) && place(used).is_some() && !strange(used);
    let used = used_modules(&code(text));
    used.into_iter().filter(|used| !may(used)).map(|used| format!("{module} knows {used}")).collect()
}

/// The names behind `crate::`, those in braces included.
fn used_modules(code: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    for (at, prefix) in code.match_indices("crate::") {
        let rest = &code[at + prefix.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            found.push(name(rest));
            continue;
        };
        let mut depth = 0;
        let end = list.find(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth < 0
        });
        let mut depth = 0;
        let items = list[..end.unwrap_or(list.len())].split(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        });
        found.extend(items.map(|item| name(item.trim())).filter(|name| !name.is_empty()));
    }
    found
}

fn too_long(text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if lines > LINES_MAX { vec![format!("{lines} lines, {LINES_MAX} may be")] } else { Vec::new() }
}

/// The fixed texts that the code of a file logs from level info on, with their levels: of each call the last text in it.
fn events(text: &str) -> Vec<(String, String)> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut found = Vec::new();
    for level in ["error", "warn", "info"] {
        for (at, call) in code.match_indices(&format!("tracing::{level}!(")) {
            let (mut depth, mut in_text, mut escaped, mut last) = (1, false, false, String::new());
            for c in code[at + call.len()..].chars() {
                match c {
                    _ if escaped => {
                        last.push(c);
                        escaped = false;
                    }
                    '\\' if in_text => escaped = true,
                    '"' => {
                        in_text = !in_text;
                        if in_text {
                            last.clear();
                        }
                    }
                    _ if in_text => last.push(c),
                    '(' => depth += 1,
                    ')' => depth -= 1,
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
            }
            found.push((at, (last, level.to_owned())));
        }
    }
    found.sort();
    found.into_iter().map(|(_, event)| event).filter(|(text, _)| !text.contains('{')).collect()
}

/// The events in the first column of a table, with the level in the second.
fn documented_events(table: &str) -> Vec<(String, String)> {
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" | "));
    let events = rows.flat_map(|(events, rest)| {
        let level = rest.split(" | ").next().unwrap_or_default();
        events.trim_end_matches('`').split("`, `").map(move |event| (event.to_owned(), level.to_owned()))
    });
    events.collect()
}

/// Lines that put something off, a test too, or name a folder of somebody's machine. The words are cut in two so that
/// this file may stand among those it looks at.
fn left_over(text: &str) -> Vec<String> {
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("#[ign", "ore"),
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/Use", "rs/"),
        concat!("/wo", "rk/"),
        concat!("/tm", "p/"),
    ];
    text.lines().filter(|line| words.iter().any(|word| line.contains(word))).map(String::from).collect()
}

/// Dependencies in a manifest, those of the tests included.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut within = false;
    let mut found = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            within = ["[dependencies]", "[dev-dependencies]"].contains(&line);
        } else if let Some((name, _)) = line.split_once(" = ").filter(|_| within) {
            found.push(name.to_owned());
        }
    }
    found
}

fn dependencies_of_sample() -> Vec<String> {
    dependencies(
        "[package]\nname = \"x\"\n[dependencies]\nbytes = \"1\"\nclap = { version = \"4\" }\n[dev-dependencies]\nlapin = \"4\"\n[lints]\nall = \"warn\"\n",
    )
}

/// Names that don't stand in `text` between back quotes.
fn unnamed(names: &[String], text: &str) -> Vec<String> {
    names.iter().filter(|name| !text.contains(&format!("`{name}`"))).cloned().collect()
}

/// The module of the crate that a file belongs to; `None` outside `src/`, and for the root and the binary.
fn module(path: &Path) -> Option<String> {
    let relative = path.strip_prefix(root().join("src")).ok()?;
    if relative.ends_with("tests.rs") {
        return None;
    }
    let name = relative.components().next()?.as_os_str().to_str()?.trim_end_matches(".rs");
    (!["lib", "main"].contains(&name)).then(|| name.to_owned())
}

fn within(path: &Path, name: &str) -> bool {
    module(path).is_some_and(|module| module == name)
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files of the project, without what tools make.
fn files(folder: &Path) -> Vec<PathBuf> {
    const MADE: [&str; 8] =
        ["target", ".git", ".venv", "node_modules", "corpus", "artifacts", "__pycache__", "erl_crash.dump"];
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("the folder can be read").path());
    paths
        .filter(|path| !path.file_name().is_some_and(|name| MADE.iter().any(|made| name == *made)))
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .collect()
}
