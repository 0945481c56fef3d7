//! The admin port's tokens.

use super::{Finding, word};
use crate::{
    admin::{Access, TokenError},
    config,
};

/// Whether the admin port's tokens can be used; nothing if it has none.
pub(super) fn examine(admin: &config::Admin) -> Option<Finding> {
    let what = "tokens of the admin port";
    let usable = |_| Finding::fine(what, format!("{} usable", admin.tokens.len()));
    let failed = |error: TokenError| {
        let cure = match &error {
            TokenError::Unreadable { path, .. } | TokenError::Unusable { path, .. } => {
                format!("openssl rand -hex 32 > {}", word(&path.display().to_string()))
            }
            TokenError::NoRandom => "see why the system gives none: a container without getrandom(2), say".into(),
        };
        Finding::failed(what, error.to_string(), "the proxy does not start", cure)
    };
    (!admin.tokens.is_empty()).then(|| Access::load(admin).map_or_else(failed, usable))
}

#[cfg(test)]
mod tests {
    use super::super::{Advice, Fitness};
    use super::*;
    use std::fs;

    #[test]
    fn a_token_that_can_not_be_used_fails() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let token_file = folder.path().join("alice");
        assert_eq!(examine(&config::Admin::default()), None);
        let token = config::AdminToken { token_file: token_file.clone(), role: config::Role::Viewer };
        let admin = config::Admin { tokens: vec![token], ..config::Admin::default() };
        let Some(Finding { fitness: Fitness::Failed(Advice { cure, .. }), .. }) = examine(&admin) else {
            panic!("it is not there")
        };
        assert_eq!(cure, format!("openssl rand -hex 32 > {}", token_file.display()));
        fs::write(&token_file, "secret\n").expect("written");
        assert_eq!(examine(&admin).expect("a token").fitness, Fitness::Fine);
    }
}
