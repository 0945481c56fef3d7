//! Which checker knows about a transaction, and what else its producer says of it.

use super::name::TransactionName;
use std::sync::Arc;
use std::time::Duration;
use wildmatch::WildMatch;

/// What a transaction must be like for a checker to be asked about it. A part that is not given fits everything.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The checker's name.
    pub checker: Arc<str>,
    /// The virtual host.
    pub vhost: Option<String>,
    /// The name: `*` stands for any characters, `?` for one.
    pub transaction: Option<WildMatch>,
    /// The exchange of its first message.
    pub exchange: Option<String>,
    /// How long a transaction is in doubt before the checker is asked first.
    pub first_after: Duration,
}

/// Every configured checker, in the order of the configuration: the first that fits is asked.
#[derive(Debug, Clone, Default)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// In this order.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self(rules)
    }

    /// The checker of this name, whatever its rule says: the producer picked it.
    pub fn named(&self, checker: &str) -> Option<&Rule> {
        self.0.iter().find(|rule| &*rule.checker == checker)
    }

    /// The first checker that is to be asked about such a transaction.
    pub fn matching(&self, vhost: &str, transaction: &TransactionName, exchange: &[u8]) -> Option<&Rule> {
        let fits = |rule: &&Rule| {
            rule.vhost.as_deref().is_none_or(|wanted| wanted == vhost)
                && rule.transaction.as_ref().is_none_or(|wanted| wanted.matches(transaction.as_str()))
                && rule.exchange.as_deref().is_none_or(|wanted| wanted.as_bytes() == exchange)
        };
        self.0.iter().find(fits)
    }
}

/// Who is to be asked about a transaction, and when first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckPlan {
    /// The checker's name.
    pub checker: Arc<str>,
    /// From the moment it is in doubt.
    pub first_after: Duration,
}

/// What makes a transaction outlive its channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Unique for its user in its virtual host.
    pub name: TransactionName,
    /// Who is to be asked when it is in doubt; nobody: it waits for a person.
    pub check: Option<CheckPlan>,
    /// Whether a transactional channel published it, which decides it or leaves it in doubt. What other channels
    /// publish is in doubt from the start, because none of them will decide.
    pub transactional: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(checker: &str, vhost: Option<&str>, transaction: Option<&str>, exchange: Option<&str>) -> Rule {
        Rule {
            checker: checker.into(),
            vhost: vhost.map(Into::into),
            transaction: transaction.map(WildMatch::new),
            exchange: exchange.map(Into::into),
            first_after: Duration::from_secs(6),
        }
    }

    #[test]
    fn the_first_rule_that_fits_in_every_part_wins() {
        let rules = Rules::new(vec![
            rule("orders", Some("/"), Some("order-*"), Some("orders")),
            rule("refunds", None, Some("*-refund-??"), None),
            rule("rest", Some("/"), None, None),
        ]);
        let matching = |vhost: &str, name: &str, exchange: &str| {
            let name = TransactionName::new(name.as_bytes()).unwrap();
            rules.matching(vhost, &name, exchange.as_bytes()).map(|rule| rule.checker.to_string())
        };
        assert_eq!(matching("/", "order-1", "orders").as_deref(), Some("orders"));
        assert_eq!(matching("/", "order-1", "other").as_deref(), Some("rest"));
        assert_eq!(matching("shop", "a-refund-12", "x").as_deref(), Some("refunds"));
        assert_eq!(matching("shop", "a-refund-123", "x"), None);
        assert!(rules.named("refunds").is_some() && rules.named("order").is_none());
    }
}
