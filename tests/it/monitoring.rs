//! What a monitoring system sees: metrics of a running proxy in the right form and documented, and rules and a dashboard
//! that name nothing else. Prometheus' own promtool judges them.

use crate::support::{PATIENCE, Proxy, broker, deadline, free_port, transactional, unique, wait_until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn document(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(document(path)).expect("the document is there")
}

fn promtool(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(document("monitoring"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is there: run tests/setup.sh");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("promtool reads");
    child.wait_with_output().expect("promtool ends")
}

#[track_caller]
fn assert_satisfied(output: &Output) {
    let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{said}");
}

/// The metrics of a proxy that has a checker, a virtual host in use, and a certificate.
fn scraped() -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("certificate.pem"), certified.cert.pem()).expect("written");
    std::fs::write(path("key.pem"), certified.signing_key.serialize_pem()).expect("written");
    let settings = [
        ("listen.tls_address", format!("'127.0.0.1:{}'", free_port())),
        ("listen.tls.certificate", format!("'{}'", path("certificate.pem"))),
        ("listen.tls.key", format!("'{}'", path("key.pem"))),
        ("checker", "[{ name = 'orders', url = 'http://127.0.0.1:1/half' }]".to_owned()),
    ];
    let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let proxy = Proxy::start_with(broker().port, &settings);
    let queue = unique("monitored");
    let mut client = transactional(proxy.port, &queue);
    client.publish(1, &queue, "one");
    client.commit(1);
    wait_until(deadline(PATIENCE), "the relay and the certificate to show", || {
        proxy.metric("halfway_forward_seconds_count") == 1.0
            && proxy.metric("halfway_relay_connected") == 1.0
            && proxy.metric("halfway_certificate_not_after_timestamp_seconds") > 0.0
    });
    proxy.http("/metrics").expect("the admin port answers").1
}

/// The names of metrics in an exposition, from their heads.
fn exposed(text: &str) -> BTreeSet<String> {
    let heads = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    heads.map(String::from).collect()
}

/// Everything in a text that looks like a metric of ours.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("halfway_")).map(String::from).collect()
}

/// Those that are no metric, nor a series of a histogram.
fn strange(names: BTreeSet<String>, known: &BTreeSet<String>) -> Vec<String> {
    let is_known = |name: &String| {
        let series = ["", "_bucket", "_count", "_sum"].iter().filter_map(|ending| name.strip_suffix(ending));
        series.into_iter().any(|name| known.contains(name))
    };
    names.into_iter().filter(|name| !is_known(name)).collect()
}

#[test]
fn metrics_are_well_formed_and_each_is_documented_and_shown() {
    let text = scraped();
    assert_satisfied(&promtool(&["check", "metrics"], &text));
    let exposed = exposed(&text);
    assert!(exposed.len() > 40, "{exposed:?}");
    let operations = read("operations.md");
    let chapter = operations.split("\n## ").find(|chapter| chapter.starts_with("Metrics\n")).expect("a chapter");
    let rows = chapter.lines().filter_map(|line| line.strip_prefix("| `halfway_"));
    let documented: BTreeSet<_> =
        rows.flat_map(|row| named(&format!("halfway_{}", row.split('|').next().unwrap_or_default()))).collect();
    assert_eq!(documented, exposed);

    let known = &exposed;
    assert_eq!(strange(named(&read("monitoring/alerts.yml")), known), Vec::<String>::new());
    assert_eq!(strange(named(&read("monitoring/alerts_test.yml")), known), Vec::<String>::new());
    let dashboard: Value = serde_json::from_str(&read("monitoring/grafana.json")).expect("JSON");
    let shown = named(&expressions(&dashboard).join("\n"));
    let unshown: Vec<_> = exposed.iter().filter(|name| !shown.iter().any(|shown| shown.starts_with(*name))).collect();
    assert_eq!(unshown, Vec::<&String>::new(), "the dashboard shows all there is");
    assert_eq!(strange(shown, known), Vec::<String>::new());
}

/// The queries of a dashboard.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    targets.map(|target| target["expr"].as_str().expect("a query").to_owned()).collect()
}

#[test]
fn the_dashboard_has_queries_that_prometheus_understands_and_panels_that_do_not_overlap() {
    let dashboard: Value = serde_json::from_str(&read("monitoring/grafana.json")).expect("JSON");
    let mut rules = "groups:\n  - name: dashboard\n    rules:\n".to_owned();
    for (number, query) in expressions(&dashboard).iter().enumerate() {
        let query = query.replace("$__rate_interval", "1m").replace("$instance", ".*");
        rules += &format!("      - {{ record: 'q{number}', expr: '{query}' }}\n");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("rules.yml");
    std::fs::write(&path, rules).expect("written");
    assert_satisfied(&promtool(&["check", "rules", &path.display().to_string()], ""));

    let mut cells = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().expect("a place"));
        assert!(x + w <= 24, "{} leaves the grid", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(cells.insert(cell), "{} overlaps another panel", panel["title"]);
        }
    }
}

#[test]
fn every_alert_fires_when_it_should_and_says_what_to_do() {
    assert_satisfied(&promtool(&["check", "rules", "alerts.yml"], ""));
    assert_satisfied(&promtool(&["test", "rules", "alerts_test.yml"], ""));
    let (rules, tests, operations) =
        (read("monitoring/alerts.yml"), read("monitoring/alerts_test.yml"), read("operations.md"));
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in alerts {
        assert!(tests.contains(&format!("alertname=\"{alert}\"")), "{alert} has no test");
        assert!(operations.contains(&format!("| `{alert}` |")), "{alert} is not documented");
    }
}
