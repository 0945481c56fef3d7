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
    /// The login name of its producer: `*` stands for any characters, `?` for one.
    pub user: Option<WildMatch>,
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

    /// The checker of this name, which the producer picked. A checker belongs to those that its rule fits: nobody else
    /// may fill it with questions.
    ///
    /// # Errors
    /// [`NotToBePicked`].
    pub fn picked(&self, checker: &str, subject: &Subject<'_>) -> Result<&Rule, NotToBePicked> {
        let rule = self.0.iter().find(|rule| &*rule.checker == checker).ok_or(NotToBePicked::Unknown)?;
        if rule.fits(subject) { Ok(rule) } else { Err(NotToBePicked::Unfit) }
    }

    /// The first checker that is to be asked about such a transaction.
    pub fn matching(&self, subject: &Subject<'_>) -> Option<&Rule> {
        self.0.iter().find(|rule| rule.fits(subject))
    }
}

impl Rule {
    fn fits(&self, subject: &Subject<'_>) -> bool {
        self.vhost.as_deref().is_none_or(|wanted| wanted == subject.vhost)
            && self.user.as_ref().is_none_or(|wanted| wanted.matches(subject.user))
            && self.transaction.as_ref().is_none_or(|wanted| wanted.matches(subject.transaction.as_str()))
            && self.exchange.as_deref().is_none_or(|wanted| wanted.as_bytes() == subject.exchange)
    }
}

/// The transaction that a checker is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its virtual host.
    pub vhost: &'a str,
    /// The login name of its producer.
    pub user: &'a str,
    /// Its name.
    pub transaction: &'a TransactionName,
    /// The exchange of its first message.
    pub exchange: &'a [u8],
}

/// Why a producer can't have the checker that it picked. Put it behind the checker's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotToBePicked {
    /// None has this name.
    #[error("which is not among the configured checkers")]
    Unknown,
    /// Its rule is for other transactions.
    #[error("whose match does not fit this transaction")]
    Unfit,
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
            user: None,
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
            let subject = Subject { vhost, user: "app", transaction: &name, exchange: exchange.as_bytes() };
            rules.matching(&subject).map(|rule| rule.checker.to_string())
        };
        assert_eq!(matching("/", "order-1", "orders").as_deref(), Some("orders"));
        assert_eq!(matching("/", "order-1", "other").as_deref(), Some("rest"));
        assert_eq!(matching("shop", "a-refund-12", "x").as_deref(), Some("refunds"));
        assert_eq!(matching("shop", "a-refund-123", "x"), None);
    }

    #[test]
    fn a_producer_picks_only_among_the_checkers_that_fit() {
        let of_team =
            Rule { user: Some(WildMatch::new("orders-*")), ..rule("orders", Some("/"), Some("order-*"), None) };
        let rules = Rules::new(vec![of_team, rule("rest", None, None, None)]);
        let name = TransactionName::new(b"order-1").unwrap();
        let of_app = Subject { vhost: "/", user: "orders-app", transaction: &name, exchange: b"" };
        let picked = |checker: &str, subject| rules.picked(checker, &subject).map(|rule| rule.checker.to_string());
        assert_eq!(picked("orders", of_app).as_deref(), Ok("orders"));
        assert_eq!(picked("rest", of_app).as_deref(), Ok("rest"), "the order does not matter to who picks");
        assert_eq!(picked("order", of_app), Err(NotToBePicked::Unknown));
        let other = TransactionName::new(b"refund-1").unwrap();
        for stranger in [
            Subject { user: "stranger", ..of_app },
            Subject { vhost: "b", ..of_app },
            Subject { transaction: &other, ..of_app },
        ] {
            assert_eq!(picked("orders", stranger), Err(NotToBePicked::Unfit), "{stranger:?}");
            assert_eq!(rules.matching(&stranger).map(|rule| &*rule.checker), Some("rest"));
        }
    }
}
