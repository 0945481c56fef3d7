//! The documents hold together: the book has every page, links and anchors lead somewhere, and the README says the same in
//! both languages. Each rule is a function from text to faults, and is shown a bad sample beside the real files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn the_book_has_every_page_once() {
    let summary = read(&docs().join("SUMMARY.md"));
    let mut listed: Vec<_> = links(&summary).into_iter().map(|link| docs().join(link)).collect();
    listed.sort();
    let pages: Vec<_> = pages().into_iter().filter(|page| !page.ends_with("SUMMARY.md")).collect();
    assert_eq!(listed, pages, "left: docs/SUMMARY.md, right: the files");
    assert!(pages.len() > 10, "{pages:?}");
}

#[test]
fn links_and_anchors_lead_somewhere() {
    let readmes = ["README.md", "README.zh-CN.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
        .map(|name| root().join(name));
    for page in pages().into_iter().chain(readmes) {
        assert_eq!(dead_links(&page), Vec::<String>::new(), "in {}", page.display());
    }
    let page = docs().join("introduction.md");
    let faults = |text: &str| dead_links_of(&page, text);
    let sample = "# A b\n[a](nowhere.md) [b](#a-c) [c](concepts.md#nothing) [d](../README.md) ![e](images/none.svg)";
    assert_eq!(faults(sample).len(), 5, "{:?}", faults(sample));
    let sample =
        "# A `b`, c\n[a](#a-b-c) [b](https://example.org/x#y) [c](concepts.md#the-check-back)\n```\n[d](none)\n```";
    assert!(faults(sample).is_empty(), "{:?}", faults(sample));
}

#[test]
fn what_the_book_includes_is_there() {
    let mut seen = 0;
    for page in pages() {
        for file in includes(&read(&page)) {
            seen += 1;
            assert!(beside(&page, &file).is_file(), "{} includes {file}", page.display());
        }
    }
    assert!(seen > 6, "the quick starts are included: {seen}");
    assert_eq!(includes("a\n{{#include b/c.py}}\n"), ["b/c.py"]);
}

#[test]
fn the_readme_says_the_same_in_both_languages() {
    let [english, chinese] = ["README.md", "README.zh-CN.md"].map(|name| skeleton(&read(&root().join(name))));
    assert_eq!(english, chinese, "left: README.md, right: README.zh-CN.md");
    assert!(english.len() > 20, "{english:?}");

    let sample = "# A\ntext [b](c.md)\n- d\n| e |\n```sh\nf  # g\n```\n";
    assert_eq!(skeleton(sample), ["#", "(c.md)", "-", "|", "```sh", "f", "```"]);
    assert_eq!(skeleton(sample), skeleton("# Ä\nanders [ö](c.md)\n- ü\n| ß |\n```sh\nf  # h\n```\n"));
    assert_ne!(skeleton(sample), skeleton(&sample.replace("c.md", "d.md")));
    assert_ne!(skeleton(sample), skeleton(&sample.replace("# A", "## A")));
}

#[test]
fn the_commands_in_the_documents_are_commands() {
    let mut seen = 0;
    for page in pages().into_iter().chain([root().join("README.md")]) {
        for line in commands(&read(&page)) {
            seen += 1;
            assert_eq!(refusal(&line), None, "{line} in {}", page.display());
        }
    }
    assert!(seen > 30, "only {seen} commands were found");

    let sample = "halfway no\n```sh\nhalfway tx list   # all\ncurl x\n```\n```console\n$ halfway doctor\nok\n```";
    assert_eq!(commands(sample), ["halfway tx list", "halfway doctor"]);
    assert!(refusal("halfway tx list --state lost").is_some_and(|words| words.contains("lost")));
    assert!(refusal("halfway tx show ID --verbos").is_some());
}

/// The lines of shell code that call the proxy's own command.
fn commands(text: &str) -> Vec<String> {
    let blocks = ["sh", "console"].map(|language| blocks(text, language)).concat();
    let lines = blocks.iter().flat_map(|block| block.lines()).map(|line| line.strip_prefix("$ ").unwrap_or(line));
    let own = lines.filter(|line| line.starts_with("halfway "));
    own.map(|line| line.split(" #").next().unwrap_or_default().trim_end().to_owned()).collect()
}

/// The blocks of code in a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let blocks = text.split("```").skip(1).step_by(2);
    blocks.filter_map(|block| Some(block.strip_prefix(language)?.strip_prefix('\n')?.to_owned())).collect()
}

/// What the command line has against a command; with `--help` it reads all of it and does nothing. ID stands for an id.
fn refusal(line: &str) -> Option<String> {
    let binary = Path::new(env!("CARGO_BIN_EXE_halfway"));
    let id = if line.starts_with("halfway dead") { "17" } else { "01932f3e-5c5e-7cc3-98c4-dc0c0c07398f" };
    let script = line.replacen("halfway", "\"$0\"", 1).replace(" ID", &format!(" {id}")) + " --help";
    let output = Command::new("sh").arg("-c").arg(script).arg(binary).output().expect("sh can be started");
    let helped = output.status.success() && String::from_utf8_lossy(&output.stdout).contains("Usage:");
    (!helped).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn the_configurations_in_the_documents_are_valid() {
    let mut seen = 0;
    for page in pages().into_iter().chain([root().join("README.md")]) {
        for block in blocks(&read(&page), "toml") {
            seen += 1;
            assert_eq!(invalid(&block), None, "{block} in {}", page.display());
        }
    }
    assert!(seen > 2, "only {seen} configurations were found");
    assert!(invalid("[stor]\nurl = 'x'").is_some_and(|words| words.contains("store.url")));
}

/// What `halfway config check` has against a configuration, where the files in `secrets` are there that it names.
fn invalid(text: &str) -> Option<String> {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join("config.toml");
    fs::write(&file, text).expect("a file can be written");
    fs::create_dir(folder.path().join("secrets")).expect("a folder can be made");
    for name in text.split("\"secrets/").skip(1).filter_map(|rest| rest.split('"').next()) {
        fs::write(folder.path().join("secrets").join(name), format!("secret-of-{name}"))
            .expect("a file can be written");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_halfway"));
    command.env_clear().current_dir(folder.path()).args(["config", "check", "--config"]).arg(file);
    let output = command.output().expect("it can be started");
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What a page and its translation have in common, in order: levels of headings, items of lists, rows of tables, targets of
/// links, and code without its comments. Links between the two languages lead crosswise.
fn skeleton(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut code = false;
    for line in text.lines() {
        if line.starts_with("```") {
            code = !code;
            parts.push(line.to_owned());
        } else if code {
            // A comment stands behind two blanks, or alone.
            let statement = line.split("  # ").next().unwrap_or_default().trim_end();
            parts.extend((!statement.trim_start().starts_with("# ")).then(|| statement.to_owned()));
        } else {
            let word = line.split(' ').next().unwrap_or_default();
            let is_mark = |c: char| c == '#' || c == '-' || c == '|';
            let is_item = word.strip_suffix('.').is_some_and(|number| number.parse::<u32>().is_ok());
            parts.extend((is_item || word.starts_with(is_mark)).then(|| word.to_owned()));
            let targets = links(line).into_iter().filter(|link| !link.starts_with("README"));
            parts.extend(targets.map(|link| format!("({link})")));
        }
    }
    parts
}

fn dead_links(page: &Path) -> Vec<String> {
    dead_links_of(page, &read(page))
}

/// Links to files or headings that are not there; and, on a page of the book, out of the book.
fn dead_links_of(page: &Path, text: &str) -> Vec<String> {
    let own = links(text).into_iter().filter(|link| !link.contains("://"));
    let leads_somewhere = |link: &String| {
        let (file, anchor) = link.split_once('#').map_or((link.as_str(), None), |(file, anchor)| (file, Some(anchor)));
        let target = if file.is_empty() { page.to_owned() } else { beside(page, file) };
        let within = !page.starts_with(docs()) || target.starts_with(docs());
        let headings = || anchors(if file.is_empty() { text.to_owned() } else { read(&target) }.as_str());
        within && target.exists() && anchor.is_none_or(|anchor| headings().iter().any(|known| known == anchor))
    };
    own.filter(|link| !leads_somewhere(link)).collect()
}

/// The targets of Markdown links and pictures outside of code.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    targets.map(String::from).collect()
}

/// The anchors of the headings, as GitHub and mdBook make them.
fn anchors(text: &str) -> Vec<String> {
    let prose = prose(text);
    let headings = prose.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect()
    };
    headings.map(anchor).collect()
}

/// The text without blocks of code.
fn prose(text: &str) -> String {
    let blocks = text.split("```");
    blocks.step_by(2).collect()
}

fn includes(text: &str) -> Vec<String> {
    let files = text.split("{{#include ").skip(1).filter_map(|rest| rest.split("}}").next());
    files.map(String::from).collect()
}

/// The file that a page means by `relative`.
fn beside(page: &Path, relative: &str) -> PathBuf {
    let mut path = page.parent().expect("a file is in a folder").to_owned();
    for part in Path::new(relative).components() {
        match part {
            std::path::Component::ParentDir => drop(path.pop()),
            part => path.push(part),
        }
    }
    path
}

/// The pages of the book, sorted.
fn pages() -> Vec<PathBuf> {
    fn within(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let paths = entries.map(|entry| entry.expect("a folder can be read").path());
        paths.flat_map(|path| if path.is_dir() { within(&path) } else { vec![path] }).collect()
    }
    let mut pages = within(&docs());
    pages.retain(|path| path.extension().is_some_and(|ending| ending == "md"));
    pages.sort();
    pages
}

fn docs() -> PathBuf {
    root().join("docs")
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
