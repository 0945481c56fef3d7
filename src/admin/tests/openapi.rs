//! The document of the API is the API.

use std::collections::BTreeSet;

use super::*;
use crate::admin::request::{FILTER_KEYS, LETTER_FILTER_KEYS};

const PAGE_KEYS: [&str; 2] = ["limit", "cursor"];

fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().expect("paths");
    let each = |(path, item): (&String, &Value)| {
        let methods = item.as_object().expect("methods").clone();
        methods.into_iter().map(|(method, operation)| (method, path.clone(), operation)).collect::<Vec<_>>()
    };
    paths.iter().flat_map(each).collect()
}

fn names<'a>(parameters: &'a Value, place: &str) -> BTreeSet<&'a str> {
    let parameters = parameters.as_array().into_iter().flatten().filter(|parameter| parameter["in"] == place);
    parameters.map(|parameter| parameter["name"].as_str().expect("a name")).collect()
}

#[tokio::test]
async fn every_path_in_it_is_there_and_no_other() {
    let port = Port::with_store().await;
    let answer = port.get("/openapi.json").await;
    assert_eq!(answer.status, 200);
    let document = answer.json();
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1.")), "{document}");
    let operations = operations(&document);
    assert_eq!(
        operations.len(),
        26,
        "a path was added or taken away: this number, and docs/operations.md, have to follow"
    );
    let mut ids = BTreeSet::new();
    for (method, path, operation) in &operations {
        assert!(ids.insert(operation["operationId"].as_str().expect("an id").to_owned()), "{path}");
        assert!(operation["tags"].is_array() && operation["responses"].is_object(), "{method} {path}");
        let filled = path.replace(['{', '}'], "x");
        let line = format!("{} {filled}", method.to_uppercase());
        let headers = [("Host", "localhost"), ("Content-Type", "text/plain")];
        // Whatever is wrong with such a request, its path and its method are known.
        if path != "/api/events" {
            assert!(![404, 405].contains(&port.send(&line, &headers, "").await.status), "{line}");
        }
    }
}

#[tokio::test]
async fn references_lead_somewhere_and_queries_are_those_that_are_read() {
    let port = Port::with_store().await;
    let document = port.get("/openapi.json").await.json();
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(document.pointer(reference).is_some(), "{reference} leads nowhere");
    }
    for (method, path, operation) in operations(&document) {
        let query = names(&operation["parameters"], "query");
        let expected: BTreeSet<&str> = match path.as_str() {
            "/api/transactions" => FILTER_KEYS.into_iter().chain(PAGE_KEYS).collect(),
            "/api/dead-letters" => LETTER_FILTER_KEYS.into_iter().chain(PAGE_KEYS).collect(),
            "/api/connections" | "/api/transactions/{id}/messages" if method == "get" => PAGE_KEYS.into(),
            _ => BTreeSet::new(),
        };
        assert_eq!(query, expected, "{method} {path}");
        let in_path = path.split('{').skip(1).filter_map(|rest| rest.split('}').next()).collect::<BTreeSet<_>>();
        assert_eq!(names(&operation["parameters"], "path"), in_path, "{method} {path}");
    }
}

#[tokio::test]
async fn what_needs_no_token_says_so_and_the_rest_does_not() {
    let port = Port::with_store().await;
    let document = port.get("/openapi.json").await.json();
    assert_eq!(document["security"].as_array().map(Vec::len), Some(2));
    for (method, path, operation) in operations(&document) {
        let is_free = !path.starts_with("/api") || (path == "/api/session" && method == "post");
        assert_eq!(operation["security"] == json!([{}]), is_free, "{method} {path}: {}", operation["security"]);
    }
}

/// Fields of a body's schema in the document.
fn fields(document: &Value, name: &str) -> BTreeSet<String> {
    let schema = &document["components"]["schemas"][name];
    assert_eq!(schema["additionalProperties"], false, "{name}");
    schema["properties"].as_object().map(|fields| fields.keys().cloned().collect()).unwrap_or_default()
}

#[tokio::test]
async fn bodies_have_the_fields_that_are_read() {
    let port = Port::with_store().await;
    let document = port.get("/openapi.json").await.json();
    let of = |fields: &[&str]| fields.iter().map(|field| (*field).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(fields(&document, "ReasonBody"), of(&["reason"]));
    assert_eq!(fields(&document, "TokenBody"), of(&["token"]));
    assert_eq!(fields(&document, "NothingBody"), of(&[]));
    assert_eq!(fields(&document, "TransactionFilter"), of(&FILTER_KEYS));
    assert_eq!(fields(&document, "LetterFilter"), of(&LETTER_FILTER_KEYS));
    for bulk in ["TransactionsBulk", "LettersBulk"] {
        assert_eq!(fields(&document, bulk), of(&crate::admin::body::BULK_FIELDS), "{bulk}");
    }
}
