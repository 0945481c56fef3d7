//! The JSON shapes; core types stay free of serde.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::health::{COMPONENTS, Condition, Report};

/// The body of `/readyz`.
#[derive(Debug, Serialize)]
pub(super) struct Readiness {
    ready: bool,
    components: BTreeMap<&'static str, Component>,
}

#[derive(Debug, Serialize)]
struct Component {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl From<&Report> for Readiness {
    fn from(report: &Report) -> Self {
        let names = COMPONENTS.into_iter().map(|component| component.name());
        let mut components: BTreeMap<_, _> = names.zip(report.components.iter().map(Component::from)).collect();
        let draining = match report.draining {
            false => Component { status: "ready", reason: None },
            true => Component { status: "not_ready", reason: Some("the proxy is shutting down".into()) },
        };
        components.insert("draining", draining);
        Readiness { ready: report.is_ready(), components }
    }
}

impl From<&Condition> for Component {
    fn from(condition: &Condition) -> Self {
        let (status, reason) = match condition {
            Condition::Ready => ("ready", None),
            Condition::Degraded(reason) => ("degraded", Some(reason.clone())),
            Condition::NotReady(reason) => ("not_ready", Some(reason.clone())),
        };
        Component { status, reason }
    }
}
