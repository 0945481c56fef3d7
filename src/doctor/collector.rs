//! The collector of spans.

use super::{Finding, PATIENCE, reach};
use crate::config;

/// Whether the collector of spans is there; nothing if there are none.
pub(super) async fn examine(telemetry: &config::Telemetry) -> Option<Finding> {
    let url = telemetry.otlp_url.as_ref()?;
    let what = format!("collector of spans {url}");
    Some(match reach(url, PATIENCE).await {
        Ok(()) => Finding::fine(what, "takes connections"),
        Err(error) => Finding::warning(
            what,
            format!("can't be reached: {error}"),
            "spans are lost; nothing else depends on it",
            "start the collector, or mend telemetry.otlp_url; \"\" sends no spans",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Fitness;
    use super::*;
    use crate::config::HttpUrl;

    #[tokio::test]
    async fn a_collector_that_is_away_is_a_warning() {
        assert_eq!(examine(&config::Telemetry::default()).await, None);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let url = Some(HttpUrl::try_from(url).expect("a URL"));
        let telemetry = config::Telemetry { otlp_url: url, ..config::Telemetry::default() };
        assert_eq!(examine(&telemetry).await.expect("a collector").fitness, Fitness::Fine);
        drop(listener);
        let gone = examine(&telemetry).await.expect("a collector");
        assert!(matches!(gone.fitness, Fitness::Warning(_)), "{gone:?}");
    }
}
