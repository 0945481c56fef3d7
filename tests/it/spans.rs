//! Spans for OpenTelemetry, as a collector gets them from a running proxy.

use crate::support::checker::HttpChecker;
use crate::support::collector::{Collector, text};
use crate::support::id;
use crate::support::table::{Properties, Table};
use crate::support::{PATIENCE, Proxy, Raw, broker, deadline, free_port, transactional, unique, wait_until};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind};
use rustix::process::Signal;
use std::collections::BTreeMap;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn start(url: &str, more: &[(&str, &str)]) -> Proxy {
    let url = format!("'{url}'");
    Proxy::start_with(broker().port, &[&[("telemetry.otlp_url", &*url)], more].concat())
}

fn publish(raw: &mut Raw, queue: &str, headers: Table) {
    let properties = Properties::persistent().headers(headers.string("traceparent", PARENT));
    raw.publish_with(1, ("", queue.as_bytes()), 0, &properties, b"body");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The spans of each transaction, by its id, in the order in which they began.
fn by_transaction(spans: Vec<Span>) -> BTreeMap<String, Vec<Span>> {
    let mut traces: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for span in spans {
        traces.entry(hex(&span.trace_id)).or_default().push(span);
    }
    // Those that began together, the stage and the decision of a plain one, come in their order.
    traces.values_mut().for_each(|spans| spans.sort_by_key(|span| span.start_time_unix_nano));
    traces
}

#[test]
fn a_collector_gets_the_spans_of_plain_and_named_transactions_with_their_links() {
    let collector = Collector::start();
    let checker = HttpChecker::start(|_| "{\"decision\":\"commit\"}");
    let checkers = format!("[{{ name = 'orders', url = '{}', first_after = '1ms' }}]", checker.url);
    let more = [("checker", checkers.as_str()), ("telemetry.service_name", "'shop-proxy'")];
    let mut proxy = start(&collector.url, &more);
    let queue = unique("spans");
    let mut raw = transactional(proxy.port, &queue);
    publish(&mut raw, &queue, Table::new());
    publish(&mut raw, &queue, Table::new());
    raw.commit(1);
    let name = unique("order");
    publish(&mut raw, &queue, Table::new().string("x-half-transaction", &name));
    // The prepare barrier: it is durable, and then in doubt.
    raw.call(1, id::TX_SELECT, id::TX_SELECT_OK, |_| {});
    raw.close(1);
    wait_until(deadline(PATIENCE), "both messages to be forwarded", || {
        proxy.metric("halfway_messages_forwarded_total") == 3.0
    });
    // What waits for others goes out at the end.
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_for_end().code(), Some(0));

    let head = &collector.heads()[0];
    assert!(head.starts_with("post /v1/traces http/1.1") && head.contains("application/x-protobuf"), "{head}");
    assert_eq!(collector.resource("service.name").as_deref(), Some("shop-proxy"));
    assert_eq!(collector.resource("service.version").as_deref(), Some(env!("CARGO_PKG_VERSION")));
    let traces = by_transaction(collector.spans());
    let operations: Vec<Vec<_>> = traces.values().map(|spans| spans.iter().map(operation).collect()).collect();
    // Ids rise with time: the plain one came first.
    assert_eq!(operations, [vec!["stage", "decide", "forward"], vec!["stage", "check", "decide", "forward"]]);
    for span in traces.values().flatten() {
        let link = &span.links[0];
        assert_eq!(
            (span.links.len(), hex(&link.trace_id), hex(&link.span_id)),
            (1, PARENT[3..35].to_owned(), PARENT[36..52].to_owned()),
            "{span:?}"
        );
        assert_eq!((link.flags & 0xff, span.span_id.len(), span.parent_span_id.len()), (1, 8, 0));
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano && span.start_time_unix_nano > 0);
        let attribute = |key| text(&span.attributes, key);
        assert_eq!(attribute("messaging.system").as_deref(), Some("rabbitmq"));
        assert_eq!(attribute("messaging.destination.name").as_deref(), Some("amq.default"));
        assert_eq!(attribute("messaging.rabbitmq.destination.routing_key"), Some(queue.clone()));
        assert_eq!(attribute("halfway.transaction.id").map(|id| id.replace('-', "")), Some(hex(&span.trace_id)));
        assert_eq!(span.name, format!("{} amq.default", operation(span)));
        let kind = match operation(span).as_str() {
            "stage" => SpanKind::Consumer,
            "decide" => SpanKind::Internal,
            "check" => SpanKind::Client,
            _ => SpanKind::Producer,
        };
        assert_eq!(span.kind(), kind);
    }
    let spans: Vec<_> = traces.into_values().collect();
    let attribute = |span: &Span, key| text(&span.attributes, key).expect("it is there");
    assert_eq!(attribute(&spans[0][0], "messaging.batch.message_count"), "2");
    assert_eq!(attribute(&spans[0][1], "halfway.decided_by"), "channel");
    assert_eq!(attribute(&spans[1][0], "halfway.transaction.name"), name);
    assert_eq!(attribute(&spans[1][1], "halfway.check.result"), "commit");
    assert_eq!(attribute(&spans[1][2], "halfway.decided_by"), "checker orders");
}

fn operation(span: &Span) -> String {
    text(&span.attributes, "messaging.operation.name").expect("each has one")
}

#[test]
fn a_collector_that_is_away_or_unwilling_costs_spans_and_nothing_else() {
    // Nobody listens there.
    let gone = start(&format!("http://127.0.0.1:{}", free_port()), &[]);
    let collector = Collector::start();
    collector.answer(400);
    let unwilling = start(&collector.url, &[]);
    for proxy in [&gone, &unwilling] {
        let queue = unique("spans");
        let mut raw = transactional(proxy.port, &queue);
        publish(&mut raw, &queue, Table::new());
        raw.commit(1);
        assert_eq!(raw.get_soon(2, &queue).text(), "body");
    }
    let failed =
        |proxy: &Proxy| proxy.http("/metrics").unwrap().1.contains("halfway_spans_total{result=\"failed\"} 3\n");
    wait_until(deadline(PATIENCE), "the spans to be given up", || failed(&gone) && failed(&unwilling));
    assert!(gone.log().contains("the collector takes no spans; they are lost"), "{}", gone.log());

    collector.answer(200);
    let queue = unique("spans");
    let mut raw = transactional(unwilling.port, &queue);
    publish(&mut raw, &queue, Table::new());
    raw.commit(1);
    wait_until(deadline(PATIENCE), "the next spans to come", || collector.spans().len() == 3);
    wait_until(deadline(PATIENCE), "the log to say so", || unwilling.log().contains("the collector takes spans again"));
}
