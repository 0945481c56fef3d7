//! A key has its home in the structs of the configuration, and `config.toml` says what it means. The reference in
//! `docs/configuration.md` is made from both, so that none of the three can fall behind.

use super::super::load::{Keys, leaves};
use super::*;
use figment::providers::{Format, Toml};
use serde_json::Value as Json;
use std::{collections::BTreeMap, fmt::Write, path::Path};

const FILE: &str = include_str!("../../../config.toml");
const BEGIN: &str =
    "<!-- made from config.toml and the code; anew: UPDATE=1 cargo test --lib config::tests::reference -->\n";
const CHECKER: &str = "checker";
const END: &str = "<!-- the end of what is made -->\n";

#[test]
fn the_documented_file_has_every_key_with_its_default() {
    let loaded = load_text(FILE, &[]).expect("valid");
    assert_eq!(loaded.config, Config::default());
    for entry in loaded.entries() {
        assert!(matches!(entry.origin, Origin::File(_)), "{} is missing", entry.key);
    }
}

#[test]
fn the_documented_checker_has_every_key_and_every_default() {
    let file: Json = Toml::from_str(&without_comments(FILE)).expect("TOML");
    let documented = leaves(&file["checker"][0]);
    assert!(documented.keys().eq(leaves(&Checker::with_every_key()).keys()), "{documented:#?}");
    for (key, default) in defaults_of_a_checker() {
        assert_eq!(documented[&key], default, "{key}");
    }
}

#[test]
fn the_reference_is_made_from_the_code_and_the_file() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = fs::read_to_string(&path).expect("the page can be read");
    let (head, rest) = page.split_once(BEGIN).expect("there is a place where it begins");
    let (_, tail) = rest.split_once(END).expect("there is a place where it ends");
    let made = format!("{head}{BEGIN}{}\n{END}{tail}", reference());
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, made).expect("the page can be written");
    } else {
        let command = "UPDATE=1 cargo test --lib config::tests::reference";
        assert!(
            page == made,
            "docs/configuration.md is not what the code and config.toml say; make it anew: {command}"
        );
    }
}

/// A chapter for each table of the file, in its order, and in each a row for every key. The defaults are shown as the file
/// writes them; the tests above see to it that they are right.
fn reference() -> String {
    let (mut keys_of_code, of_a_checker) = (leaves(&Config::default()), defaults_of_a_checker());
    let mut text = String::new();
    for Section { name, rows } in sections(&without_comments(FILE)) {
        write!(text, "\n### {name}\n\n| key | default | meaning |\n| --- | --- | --- |\n").expect("text");
        for Row { key, value, meaning } in rows {
            let example = name == CHECKER && !of_a_checker.contains_key(&key);
            let default = if example { String::new() } else { format!("`{value}` ") };
            writeln!(text, "| `{key}` | {default}| {meaning} |").expect("text");
            assert!(name == CHECKER || keys_of_code.remove(&key).is_some(), "{key} of config.toml is no key");
        }
    }
    assert!(keys_of_code.is_empty(), "config.toml does not name {:?}", keys_of_code.keys());
    text
}

/// What an item of `[[checker]]` is when nothing is said; not the keys without which there is none.
fn defaults_of_a_checker() -> BTreeMap<String, Json> {
    let defaults: Keys = leaves(&Checker::default());
    defaults.into_iter().filter(|(key, _)| key != "name").collect()
}

/// One table of the file.
struct Section {
    name: String,
    rows: Vec<Row>,
}

/// One key, and the comment that stands above it.
struct Row {
    key: String,
    value: String,
    meaning: String,
}

fn sections(file: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut comment = String::new();
    for line in file.lines() {
        if let Some(words) = line.strip_prefix('#') {
            comment = [comment.as_str(), words.trim()].join(" ").trim().to_owned();
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            sections.push(Section { name: name.trim_matches(['[', ']']).to_owned(), rows: Vec::new() });
        } else if let Some((key, value)) = line.split_once(" = ") {
            assert!(!comment.is_empty(), "{key} of config.toml has no comment");
            let Section { name, rows } = sections.last_mut().expect("a key stands in a table");
            let key = if name == CHECKER { key.to_owned() } else { format!("{name}.{key}") };
            rows.push(Row { key, value: value.to_owned(), meaning: comment.replace('|', "\\|") });
        }
        comment.clear();
    }
    sections
}

/// The file with its `[[checker]]` in force.
fn without_comments(file: &str) -> String {
    let (before, checker) = file.split_once("# [[checker]]\n").expect("the file has one");
    let (checker, after) = checker.split_once("\n\n").expect("something follows");
    let lines = checker.lines().map(|line| line.strip_prefix("# ").unwrap_or(line));
    format!("{before}[[checker]]\n{}\n\n{after}", lines.collect::<Vec<_>>().join("\n"))
}
