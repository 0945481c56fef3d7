//! Publisher confirms, seen from the publisher: which delivery tag stands for which message.

use std::collections::BTreeMap;

/// What was published on one channel in confirm mode and is not confirmed yet.
///
/// RabbitMQ counts tags from 1 per channel, confirms out of order, and several at once with `multiple`. Memory follows
/// the number of unconfirmed messages, not the distance between their tags: one message may wait for hours while
/// millions behind it are confirmed.
#[derive(Debug)]
pub struct Confirms<T> {
    unconfirmed: BTreeMap<u64, T>,
    published: u64,
}

impl<T> Default for Confirms<T> {
    fn default() -> Self {
        Self { unconfirmed: BTreeMap::new(), published: 0 }
    }
}

impl<T> Confirms<T> {
    /// Accounts for the next message published on the channel.
    pub fn push(&mut self, message: T) {
        self.published += 1;
        self.unconfirmed.insert(self.published, message);
    }

    /// Takes out the messages that basic.ack or basic.nack speaks of, in the order they were published. Tag 0 with
    /// `multiple` means all; a tag that is not waited for means none.
    pub fn take(&mut self, tag: u64, multiple: bool) -> impl Iterator<Item = T> {
        let mut single = if multiple { None } else { self.unconfirmed.remove(&tag) };
        std::iter::from_fn(move || {
            if !multiple {
                return single.take();
            }
            let first = self.unconfirmed.first_entry()?;
            (tag == 0 || *first.key() <= tag).then(|| first.remove())
        })
    }

    /// Starts anew with tag 1, as a new channel does; gives back what was never confirmed, in order.
    pub fn restart(&mut self) -> impl Iterator<Item = T> {
        self.published = 0;
        std::mem::take(&mut self.unconfirmed).into_values()
    }

    /// The unconfirmed messages with `tag` or a later one, in order.
    pub fn from_tag(&mut self, tag: u64) -> impl Iterator<Item = (u64, &mut T)> {
        self.unconfirmed.range_mut(tag..).map(|(tag, message)| (*tag, message))
    }

    /// The unconfirmed messages, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.unconfirmed.values()
    }

    /// The tag of the message that has waited longest.
    pub fn oldest(&self) -> Option<u64> {
        self.unconfirmed.first_key_value().map(|(tag, _)| *tag)
    }

    /// The unconfirmed message, if there is one alone.
    pub fn only(&self) -> Option<&T> {
        self.unconfirmed.values().next().filter(|_| self.len() == 1)
    }

    /// Messages that are not confirmed.
    pub fn len(&self) -> usize {
        self.unconfirmed.len()
    }

    /// Whether all are confirmed.
    pub fn is_empty(&self) -> bool {
        self.unconfirmed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn each_message_is_taken_once_by_the_confirm_that_covers_it(steps in proptest::collection::vec((0u8..4, 0u64..40), 0..200)) {
            let (mut confirms, mut model, mut next) = (Confirms::default(), BTreeSet::new(), 0);
            for (step, tag) in steps {
                match step {
                    0 | 1 => { next += 1; confirms.push(next); model.insert(next); }
                    2 => {
                        let taken: Vec<u64> = confirms.take(tag, false).collect();
                        prop_assert_eq!(taken, model.take(&tag).into_iter().collect::<Vec<_>>());
                    }
                    _ => {
                        let covered: Vec<u64> = model.iter().copied().filter(|held| tag == 0 || *held <= tag).collect();
                        model.retain(|held| !covered.contains(held));
                        prop_assert_eq!(confirms.take(tag, true).collect::<Vec<_>>(), covered);
                    }
                }
                prop_assert_eq!(confirms.len(), model.len());
                prop_assert_eq!(confirms.oldest(), model.first().copied());
            }
            prop_assert_eq!(confirms.restart().collect::<Vec<_>>(), model.into_iter().collect::<Vec<_>>());
            confirms.push(7);
            prop_assert_eq!(confirms.take(1, false).collect::<Vec<_>>(), [7]);
        }
    }
}
