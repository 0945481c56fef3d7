//! The bytes of an input, read as choices; and what both kinds of script build from them.

use pure::protocol::command::ConnectionSettings;
use pure::protocol::handshake::LoginRules;
use pure::tx::decision::{Fate, Verdict};
use pure::tx::id::{Timestamp, TransactionId};
use pure::tx::limits::TransactionLimits;
use pure::tx::outcome::StoreError;
use pure::tx::state::State;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use uuid::Uuid;

/// Choices to come. At the end every choice is 0.
pub struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    pub fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    /// Up to `count` bytes as they stand in the input.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        bytes
    }

    /// Small limits, so that a short script reaches them.
    pub fn settings(&mut self) -> ConnectionSettings {
        let choice = self.byte();
        ConnectionSettings {
            login: LoginRules { from_loopback: either(choice, 0, true, false), loopback_users: vec!["guest".into()] },
            forward_wait: either(choice, 1, Duration::from_secs(1), Duration::ZERO),
            mandatory_wait: Duration::from_secs(30),
            age_max: either(choice, 7, Duration::ZERO, Duration::from_secs(20)),
            judgement: either(choice, 6, Duration::from_secs(1), Duration::ZERO),
            limits: TransactionLimits {
                messages_max: either(choice, 2, 5, 1_000),
                bytes_max: either(choice, 3, 6_000, 1 << 20),
                message_bytes_max: Some(either(choice, 4, 500, 8_000)),
                memory_bytes_max: either(choice, 5, 200, 64 << 10),
            },
            rules: Arc::default(),
            control_exchange: "halfway".into(),
            new_id,
        }
    }

    /// A decision that is made.
    pub fn verdict(&mut self) -> Verdict {
        let id = TransactionId(Uuid::nil());
        let fate = Fate { id, state: State::Committed, decided_at: Timestamp(0), decided_by: "checker c".into() };
        if self.flag() { Verdict::Before(fate) } else { Verdict::Decided(fate) }
    }

    pub fn store_error(&mut self) -> StoreError {
        match self.below(7) {
            4 => StoreError::Locked("n".into()),
            5 => StoreError::Unknown("timeout".into()),
            6 => StoreError::Fenced,
            0 => StoreError::Full("disk full".into()),
            1 => StoreError::Io("input/output error".into()),
            2 => StoreError::Conflict("rolled_back".into()),
            _ => StoreError::Closed,
        }
    }
}

/// Ids in order, so that a script does the same each time.
fn new_id() -> TransactionId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    TransactionId(Uuid::from_u128(NEXT.fetch_add(1, Ordering::Relaxed).into()))
}

fn either<T>(choice: u8, bit: u8, yes: T, no: T) -> T {
    if choice & (1 << bit) != 0 { yes } else { no }
}
