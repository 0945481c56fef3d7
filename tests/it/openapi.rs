//! The HTTP API against its own document, by schemathesis: requests that fit it, requests that don't, and answers held
//! against it.

use crate::command::park;
use crate::support::{Proxy, broker};
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

/// Of one operation, in each way of making it.
const EXAMPLES: &str = "10";

/// What can't be written down in the document, or needs something that is there.
fn configuration(id: &str) -> String {
    let mut text = String::from("[checks]\nignored_auth.enabled = false\n");
    // A reason is needed unless it is a dry run.
    for path in ["/api/transactions/bulk", "/api/dead-letters/bulk"] {
        let _ = write!(
            text,
            "[[operations]]\ninclude-path = \"{path}\"\nchecks.positive_data_acceptance.enabled = false\n"
        );
    }
    for path in ["/commit", "/rollback"] {
        let _ = write!(
            text,
            "[[operations]]\ninclude-path = \"/api/transactions/{{id}}{path}\"\n\
             checks.positive_data_acceptance.expected-statuses = [\"2XX\", 409, 412]\n"
        );
    }
    for path in ["", "/messages", "/commit", "/rollback", "/check"] {
        let _ = write!(
            text,
            "[[operations]]\ninclude-path = \"/api/transactions/{{id}}{path}\"\nparameters = {{ id = \"{id}\" }}\n"
        );
    }
    text
}

#[test]
fn the_api_is_as_its_document_says() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/schemathesis");
    assert!(python.exists(), "there is no .venv with schemathesis: run tests/setup.sh");
    let mut proxy = Proxy::prepare(broker().port, &[("admin.show_bodies", "true")]);
    let id = park(&proxy, "order-1");
    for number in 2..5 {
        park(&proxy, &format!("order-{number}"));
    }
    proxy.resume();
    let configuration_file = proxy.folder().join("schemathesis.toml");
    std::fs::write(&configuration_file, configuration(&id)).expect("written");
    let output = Command::new(python)
        .arg("--config-file")
        .arg(&configuration_file)
        .args(["run", &format!("http://127.0.0.1:{}/openapi.json", proxy.admin_port)])
        // The same requests each time. A stream of events has no end to be looked at, and a port that needs no token
        // ignores those it is shown.
        .args(["--generation-deterministic", "--max-examples", EXAMPLES, "--workers", "1"])
        .args(["--phases", "examples,coverage,fuzzing", "--exclude-path", "/api/events"])
        .args(["--suppress-health-check", "all", "--request-timeout", "30", "--continue-on-failure", "--no-color"])
        .current_dir(proxy.folder())
        .output()
        .expect("schemathesis can be started");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("Tested: 25"), "all but the stream: {said}");
    assert!(!proxy.log().contains("panicked"), "{}", proxy.log());
}
