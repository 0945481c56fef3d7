//! The dashboard's files, and what a browser may do with answers.

use super::*;

#[tokio::test]
async fn the_dashboard_is_served_to_everybody_and_only_once_each() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = super::access::with_tokens(folder.path()).await;
    let page = port.get("/").await;
    assert_eq!(page.status, 200, "no token is needed to see the page: {page:?}");
    assert!(page.head.contains("\r\ncontent-type: text/html; charset=utf-8\r\n"), "{page:?}");
    assert!(page.head.contains("\r\ncache-control: no-cache\r\n"), "{page:?}");
    let etag = page.header("etag").expect("an ETag");
    for known in [etag.to_owned(), format!("\"other\", W/{etag}")] {
        let again = port.send("GET /", &[("Host", "localhost"), ("If-None-Match", &known)], "").await;
        assert_eq!((again.status, again.body.as_str()), (304, ""), "{known}");
        assert_eq!(again.header("etag"), Some(etag));
    }
    let other = port.send("GET /", &[("Host", "localhost"), ("If-None-Match", "\"other\"")], "").await;
    assert_eq!((other.status, other.body), (200, page.body));
    port.get("/assets/nowhere.js").await.problem(404);
    port.get("/assets/../index.html").await.problem(404);
    port.post("/", "{}").await.problem(405);
}

#[tokio::test]
async fn every_answer_is_confined() {
    let port = Port::with_store().await;
    for path in ["/", "/healthz", "/metrics", "/api/transactions", "/api/nowhere", "/nowhere"] {
        let answer = port.get(path).await;
        let policy = answer.header("content-security-policy").unwrap_or_default();
        for part in ["default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.contains(part), "{path}: {answer:?}");
        }
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("x-frame-options", "deny"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{path}");
        }
        assert_eq!(answer.header("access-control-allow-origin"), None, "{path}: other origins see nothing");
    }
}
