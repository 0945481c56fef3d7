//! From file and environment to a checked [`Config`], with the origin of every value.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt, fs, io,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use figment::{
    Figment, Metadata, Profile, Provider, Source,
    providers::{Format, Toml},
    value::{Dict, Map, Tag, Value},
};
use serde::Serialize;
use serde_json::Value as Json;
use thiserror::Error;

use super::{Checker, Config, Secret, validate};

/// Reads the configuration: defaults, then the file, then the environment.
///
/// `file` is the one the operator named and must exist. Without it, `config.toml` in the working directory is read, or
/// else `/etc/halfway/config.toml`; it is no error when neither is there.
/// # Errors
/// Everything that is wrong, each with its key and where it stands; see [`ConfigError`].
pub fn load(file: Option<&Path>) -> Result<Loaded, ConfigError> {
    let file = match file {
        Some(named) => Some(named.to_owned()),
        None => STANDARD_FILES.into_iter().map(PathBuf::from).find(|path| path.exists()),
    };
    load_from(file.as_deref(), std::env::vars_os())
}

/// A configuration that passed every check.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// What works and is probably not meant.
    pub warnings: Vec<Problem>,
    /// Variables that have our prefix and were not read, because Kubernetes sets them for a service.
    pub service_links: Vec<String>,
    origins: BTreeMap<String, Origin>,
}

impl Loaded {
    /// Every key with its effective value (secrets redacted) and its origin, sorted by key.
    pub fn entries(&self) -> Vec<Entry> {
        let origin = |key: &str| {
            let known = self.origins.get(key).or_else(|| self.origins.get(list_of(key)?));
            known.cloned().unwrap_or(Origin::Default)
        };
        leaves(&self.config).into_iter().map(|(key, value)| Entry { origin: origin(&key), key, value }).collect()
    }

    /// What was found out only later about a key, told like everything else that is wrong.
    pub fn problem(&self, key: &str, text: String) -> Problem {
        let origin = self.origins.get(key).cloned().unwrap_or(Origin::Default);
        Problem { origin, key: key.to_owned(), text }
    }
}

/// One line of `halfway config show`.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The path, such as `listen.address`.
    pub key: String,
    /// The value as it would stand in the file.
    pub value: Json,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a value comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// The file that a `*_file` key names.
    SecretFile(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) | Origin::SecretFile(path) => write!(f, "{}", path.display()),
            Origin::Variable(name) => f.write_str(name),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file, or the file that holds a secret, can't be read.
    #[error("cannot read {}{}: {source}", path.display(), key.as_ref().map(|key| format!(" (named by `{key}`)")).unwrap_or_default())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The key that names it, when it holds a secret.
        key: Option<String>,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}, line {line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What the parser says; the line itself is left out, as it may hold a secret.
        message: String,
    },
    /// Keys or values are wrong; never empty.
    #[error("{}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
    Problems(Vec<Problem>),
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// Where it stands.
    pub origin: Origin,
    /// The key, such as `listen.address`.
    pub key: String,
    /// What is wrong with it, in one clause.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Variable(name) if variable_of(&self.key) == *name || self.key == *name => {
                write!(f, "{}: {}", self.origin, self.text)
            }
            _ => write!(f, "{}: `{}`: {}", self.origin, self.key, self.text),
        }
    }
}

/// [`load`] with everything given, so that tests need not touch the process's environment.
pub(super) fn load_from(
    file: Option<&Path>,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Loaded, ConfigError> {
    let known = known_keys();
    let mut secrets = Vec::new();
    let mut service_links = Vec::new();
    let mut problems = Vec::new();
    let mut figment = Figment::new();
    if let Some(path) = file {
        let dict = read_file(path)?;
        let layer = Layer { origin: Origin::File(path.to_owned()), dict };
        find_unknown(&layer.dict, "", &layer.origin, &known, &mut problems);
        figment = figment.merge(layer);
    }
    for (name, value) in variables {
        if let Some(checker) = name.to_str().and_then(secret_variable).map(str::to_owned) {
            secrets.push((checker, name, value));
            continue;
        }
        if let (Some(name), Some(value)) = (name.to_str(), value.to_str())
            && name.starts_with(PREFIX)
            && is_service_link(name, value)
        {
            service_links.push(name.to_owned());
            continue;
        }
        match read_variable(name, value, &known) {
            Ok(Some(layer)) => {
                find_unknown(&layer.dict, "", &layer.origin, &known, &mut problems);
                figment = figment.merge(layer);
            }
            Ok(None) => {}
            Err(problem) => problems.push(problem),
        }
    }
    let origin_of = |key: &str| {
        let list = || list_of(key).and_then(|list| figment.find_metadata(list));
        figment.find_metadata(key).or_else(list).and_then(origin).unwrap_or(Origin::Default)
    };
    let config = figment.extract::<Config>().map_err(|errors| {
        problems.extend(errors.into_iter().map(|error| Problem {
            origin: error.metadata.as_ref().and_then(origin).unwrap_or(Origin::Default),
            key: error.path.join("."),
            text: error.kind.to_string(),
        }));
    });
    let Ok(mut config) = config else { return Err(ConfigError::Problems(problems)) };
    let mut origins = BTreeMap::new();
    for (checker, name, value) in secrets {
        match set_secret(&mut config.checker, &checker, &name, value) {
            Ok(key) => drop(origins.insert(key, Origin::Variable(name.to_string_lossy().into_owned()))),
            Err(problem) => problems.push(problem),
        }
    }
    let with_origin = |(key, text): (String, String)| Problem { origin: origin_of(&key), key, text };
    problems.extend(validate::problems(&config).into_iter().map(with_origin));
    if !problems.is_empty() {
        return Err(ConfigError::Problems(problems));
    }

    let warnings = validate::warnings(&config).into_iter().chain(open_secrets(&config)).map(with_origin).collect();
    for key in known.into_keys() {
        let origin = origin_of(&key);
        origins.insert(key, origin);
    }
    if let Some(path) = &config.relay.password_file {
        config.relay.password = read_secret(path, "relay.password_file")?;
        origins.insert("relay.password".into(), Origin::SecretFile(path.clone()));
    }
    if let (Some(password), Some(path)) = (config.store.url.password(), &config.store.password_file) {
        *password = Some(read_secret(path, "store.password_file")?);
    }
    for (number, checker) in config.checker.iter_mut().enumerate() {
        if let Some(path) = &checker.secret_file {
            let key = format!("{CHECKER}.{number}.secret_file");
            let secret = read_secret(path, &key)?;
            if secret.expose().is_empty() {
                let origin = Origin::SecretFile(path.clone());
                return Err(ConfigError::Problems(vec![Problem { origin, key, text: "is empty".into() }]));
            }
            origins.insert(format!("{CHECKER}.{number}.secret"), Origin::SecretFile(path.clone()));
            checker.secret = Some(secret);
        }
        if let (Some(url), Some(path)) = (&mut checker.postgres, &checker.password_file) {
            url.place.password = Some(read_secret(path, &format!("{CHECKER}.{number}.password_file"))?);
        }
    }
    Ok(Loaded { config, file: file.map(Path::to_owned), warnings, service_links, origins })
}

fn read_file(path: &Path) -> Result<Dict, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        key: None,
        source,
    })?;
    Toml::from_str(&text).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        line: error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count()),
        message: error.message().to_owned(),
    })
}

fn read_secret(path: &Path, key: &str) -> Result<Secret, ConfigError> {
    match fs::read_to_string(path) {
        // An editor ends a file with a newline; no secret is meant to.
        Ok(text) => Ok(Secret::new(text.trim_end_matches(['\n', '\r']))),
        Err(source) => Err(ConfigError::Unreadable { path: path.to_owned(), key: Some(key.to_owned()), source }),
    }
}

/// Files with secrets, and with everybody's messages, that everybody on the machine can read, each by its key and what is wrong with it. What can't be
/// looked at is told where it is read.
fn open_secrets(config: &Config) -> Vec<(String, String)> {
    let Config { listen, relay, store, checker, admin, .. } = config;
    let keys = [
        ("listen.tls.key", listen.tls.key.as_deref()),
        ("relay.password_file", relay.password_file.as_deref()),
        ("store.url", store.url.file()),
        ("store.password_file", store.password_file.as_deref()),
    ];
    let checkers = checker.iter().enumerate().flat_map(|(n, one)| {
        [("secret_file", &one.secret_file), ("password_file", &one.password_file)]
            .map(|(key, path)| (format!("{CHECKER}.{n}.{key}"), path))
    });
    let tokens =
        admin.tokens.iter().enumerate().map(|(n, one)| (format!("admin.tokens.{n}.token_file"), &*one.token_file));
    let files = keys.into_iter().filter_map(|(key, path)| Some((key.to_owned(), path?)));
    let files = files.chain(checkers.filter_map(|(key, path)| Some((key, path.as_deref()?)))).chain(tokens);
    let is_open = |path: &Path| fs::metadata(path).is_ok_and(|file| file.permissions().mode() & READABLE_BY_ALL != 0);
    let open = files.filter(|(_, path)| is_open(path));
    open.map(|(key, path)| (key, format!("{} can be read by everybody on this machine", path.display()))).collect()
}

fn find_unknown(dict: &Dict, prefix: &str, origin: &Origin, known: &Keys, problems: &mut Vec<Problem>) {
    for (name, value) in dict {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if known.contains_key(&key) {
            problems.extend(unknown_in_list(&key, value, origin));
            if let Value::Array(_, items) = value
                && key == CHECKER
            {
                find_unknown_of_checkers(items, origin, problems);
            }
            continue;
        }
        match value {
            Value::Dict(_, inner) if !inner.is_empty() => find_unknown(inner, &key, origin, known, problems),
            _ if known.keys().any(|known| known.strip_prefix(&key).is_some_and(|rest| rest.starts_with('.'))) => {}
            _ => {
                let near = nearest(&key, known.keys().map(String::as_str));
                let text = format!("unknown key, the nearest valid one is `{near}`");
                problems.push(Problem { origin: origin.clone(), key, text });
            }
        }
    }
}

/// The unknown keys of the tables that a list holds.
fn unknown_in_list(list: &str, value: &Value, origin: &Origin) -> Vec<Problem> {
    let Some((_, valid)) = LISTS_OF_TABLES.iter().find(|(key, _)| *key == list) else { return Vec::new() };
    let mut problems = Vec::new();
    for (index, item) in value.as_array().unwrap_or_default().iter().enumerate() {
        for name in item.as_dict().into_iter().flat_map(Dict::keys).filter(|name| !valid.contains(&name.as_str())) {
            let near = nearest(name, valid.iter().copied());
            let text = format!("unknown key, the nearest valid one is `{near}`");
            problems.push(Problem { origin: origin.clone(), key: format!("{list}.{index}.{name}"), text });
        }
    }
    problems
}

/// As [`find_unknown`], within the tables of `[[checker]]`.
fn find_unknown_of_checkers(items: &[Value], origin: &Origin, problems: &mut Vec<Problem>) {
    let known = leaves(&Checker::with_every_key());
    for (number, item) in items.iter().enumerate() {
        let Value::Dict(_, dict) = item else { continue };
        let mut found = Vec::new();
        find_unknown(dict, "", origin, &known, &mut found);
        problems.extend(
            found.into_iter().map(|problem| Problem { key: format!("{CHECKER}.{number}.{}", problem.key), ..problem }),
        );
    }
}

/// The checker's part of a variable called `HALFWAY_CHECKER__` + name + `__SECRET`.
fn secret_variable(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX)?.strip_prefix("CHECKER__")?.strip_suffix("__SECRET")
}

/// Gives the checker whose name, written as a variable's, is `wanted` its secret; the key that was set.
fn set_secret(checkers: &mut [Checker], wanted: &str, variable: &OsStr, value: OsString) -> Result<String, Problem> {
    let written = |name: &str| name.to_uppercase().replace(|c: char| !c.is_alphanumeric(), "_");
    let variable = variable.to_string_lossy().into_owned();
    let problem = |key: &str, text: String| Problem { origin: Origin::Variable(variable), key: key.into(), text };
    let mut fitting = checkers.iter_mut().enumerate().filter(|(_, checker)| written(&checker.name) == wanted);
    let Some((number, checker)) = fitting.next() else {
        return Err(problem(CHECKER, format!("no checker has a name that is written {wanted} in a variable")));
    };
    let key = format!("{CHECKER}.{number}.secret");
    if let Some((_, other)) = fitting.next() {
        let text =
            format!("`{}` and `{}` are written alike in a variable; use `secret_file`", checker.name, other.name);
        return Err(problem(&key, text));
    }
    let value = value.into_string().map_err(|_| problem(&key, "the value is not UTF-8".into()))?;
    checker.secret = Some(Secret::new(value));
    Ok(key)
}

/// Whether Kubernetes sets such a variable in each pod that stands beside a service, called `halfway` or `halfway-admin`
/// say. The value has to fit too: a misspelt `HALFWAY_LISTEN_PORT=5673` is not passed over.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_number = |text: &str| text.parse::<u16>().is_ok();
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok();
    let is_url = |text: &str| PROTOCOLS.iter().any(|protocol| text.starts_with(&format!("{protocol}://")));
    if name.ends_with("_SERVICE_HOST") {
        return is_address(value);
    }
    // The port, or the port called so.
    if name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return is_number(value);
    }
    if name.ends_with("_PORT") && is_url(value) {
        return true;
    }
    // `…_PORT_<n>_TCP`, and that with `_PROTO`, `_PORT` or `_ADDR`.
    name.match_indices("_PORT_").any(|(at, infix)| {
        let mut parts = name[at + infix.len()..].split('_');
        let is_port = parts.next().is_some_and(is_number);
        let is_protocol = |text: &str| PROTOCOLS.iter().any(|protocol| protocol.eq_ignore_ascii_case(text));
        is_port
            && parts.next().is_some_and(is_protocol)
            && match parts.next() {
                None => is_url(value),
                Some("PROTO") => is_protocol(value),
                Some("PORT") => is_number(value),
                Some("ADDR") => is_address(value),
                Some(_) => false,
            }
            && parts.next().is_none()
    })
}

/// The layer of one variable; none when the variable is not ours.
fn read_variable(name: OsString, value: OsString, known: &Keys) -> Result<Option<Layer>, Problem> {
    let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { return Ok(None) };
    // The token is for the command line, not a part of the configuration, which may be shown.
    if name == TOKEN_VARIABLE {
        return Ok(None);
    }
    let problem =
        |key: &str, text: String| Problem { origin: Origin::Variable(name.to_owned()), key: key.to_owned(), text };
    let Some((key, default)) = known.iter().find(|(key, _)| variable_of(key) == name) else {
        let variables: Vec<String> = known.keys().map(|key| variable_of(key)).collect();
        let near = nearest(name, variables.iter().map(String::as_str));
        return Err(problem(name, format!("unknown variable, the nearest valid one is {near}")));
    };
    let text = value.into_string().map_err(|_| problem(key, "the value is not UTF-8".into()))?;
    // The default tells the type, so that a password of digits stays a string.
    let value = match default {
        Json::Number(_) => Value::from(
            text.trim().parse::<u64>().map_err(|_| problem(key, format!("expected a whole number, found {text:?}")))?,
        ),
        Json::Bool(_) => Value::from(
            text.trim().parse::<bool>().map_err(|_| problem(key, format!("expected true or false, found {text:?}")))?,
        ),
        Json::Array(_) => {
            let list = parse_list(&text).map_err(|text| problem(key, text))?;
            let unknown = unknown_in_list(key, &list, &Origin::Variable(name.to_owned()));
            if let Some(first) = unknown.into_iter().next() {
                return Err(first);
            }
            list
        }
        _ if ADDRESSES.contains(&key.as_str()) && is_array(&text) => {
            parse_list(&text).map_err(|text| problem(key, text))?
        }
        _ if ADDRESSES.contains(&key.as_str()) && text.contains(',') => split_list(&text),
        _ => Value::from(text),
    };
    let dict = key.rsplit('.').fold(value, |value, part| Value::from(Dict::from([(part.to_owned(), value)])));
    let Value::Dict(_, dict) = dict else { unreachable!("a key has at least one part, so the fold ends in a table") };
    Ok(Some(Layer { origin: Origin::Variable(name.to_owned()), dict }))
}

/// `a, b` or the TOML array `["a", "b"]`; the empty text is the empty list.
fn parse_list(text: &str) -> Result<Value, String> {
    if text.trim_start().starts_with('[') {
        let mut dict: Dict = Toml::from_str(&format!("list = {text}"))
            .map_err(|error| format!("expected a list such as a,b or [\"a\", \"b\"]: {}", error.message()))?;
        return dict.remove("list").ok_or_else(|| "expected a list".into());
    }
    Ok(split_list(text))
}

fn split_list(text: &str) -> Value {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    Value::Array(Tag::Default, items.map(Value::from).collect())
}

/// Whether a list is written as TOML has it; `[::1]:5673` begins like one.
fn is_array(text: &str) -> bool {
    let inner = text.trim_start().strip_prefix('[').map(str::trim_start);
    inner.is_some_and(|inner| inner.starts_with(['"', '\'']))
}

fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

fn nearest<'a>(wanted: &str, valid: impl Iterator<Item = &'a str>) -> &'a str {
    valid.min_by_key(|valid| strsim::damerau_levenshtein(wanted, valid)).unwrap_or_default()
}

/// Every key that may stand in a file, with its default.
fn known_keys() -> Keys {
    let mut keys = leaves(&Config::default());
    keys.insert(CHECKER.into(), Json::Array(Vec::new()));
    keys
}

/// Every key of `config` with its value, as it would stand in a file. Tables in a list are numbered from 0.
pub(super) fn leaves(config: &impl Serialize) -> Keys {
    fn walk(prefix: String, value: Json, keys: &mut Keys) {
        match value {
            Json::Object(table) => {
                for (name, value) in table {
                    walk(if prefix.is_empty() { name } else { format!("{prefix}.{name}") }, value, keys);
                }
            }
            Json::Array(items) if items.iter().any(Json::is_object) => {
                for (number, item) in items.into_iter().enumerate() {
                    walk(format!("{prefix}.{number}"), item, keys);
                }
            }
            leaf => {
                keys.insert(prefix, leaf);
            }
        }
    }
    let mut keys = Keys::new();
    walk(String::new(), serde_json::to_value(config).expect("structs of strings and numbers become JSON"), &mut keys);
    keys
}

/// The list of tables that a key such as `checker.0.url` stands in; all of a list comes from one place.
fn list_of(key: &str) -> Option<&str> {
    let mut dots = key.match_indices('.').map(|(at, _)| at);
    dots.find(|dot| key[dot + 1..].starts_with(|first: char| first.is_ascii_digit())).map(|dot| &key[..dot])
}

fn origin(metadata: &Metadata) -> Option<Origin> {
    match metadata.source.as_ref()? {
        Source::File(path) => Some(Origin::File(path.clone())),
        Source::Custom(variable) => Some(Origin::Variable(variable.clone())),
        _ => None,
    }
}

/// One source of values, tagged with its origin.
struct Layer {
    origin: Origin,
    dict: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        match &self.origin {
            Origin::File(path) => Metadata::from("file", Source::File(path.clone())),
            origin => Metadata::from("variable", Source::Custom(origin.to_string())),
        }
    }

    fn data(&self) -> figment::error::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

pub(super) type Keys = BTreeMap<String, Json>;

/// Keys that hold one address or a list of them.
const ADDRESSES: [&str; 3] = ["listen.address", "listen.tls_address", "admin.address"];
/// Lists whose items are tables, and the keys of these tables.
const LISTS_OF_TABLES: [(&str, &[&str]); 1] = [("admin.tokens", &["token_file", "role"])];
/// The variable in which the command line finds its token for the admin port.
pub const TOKEN_VARIABLE: &str = "HALFWAY_TOKEN";
/// The one list of tables.
const CHECKER: &str = "checker";
const PREFIX: &str = "HALFWAY_";

/// The bit of a file's mode that lets others than its owner and group read it.
const READABLE_BY_ALL: u32 = 0o004;

/// What a port of a Kubernetes service speaks.
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];
const STANDARD_FILES: [&str; 2] = ["config.toml", "/etc/halfway/config.toml"];
