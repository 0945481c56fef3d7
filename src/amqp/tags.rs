//! Which delivery tags a client holds unacknowledged, as ranges: a client without prefetch may hold millions.

use std::collections::BTreeMap;

/// A set of delivery tags. Tags are added in rising order, so neighbours share one range.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct TagSet {
    /// First tag of a range to its last.
    ranges: BTreeMap<u64, u64>,
}

impl TagSet {
    /// Adds a delivered tag, which must be higher than all before it.
    pub fn insert(&mut self, tag: u64) {
        match self.ranges.last_entry() {
            Some(mut last) if last.get() + 1 == tag => *last.get_mut() = tag,
            _ => {
                self.ranges.insert(tag, tag);
            }
        }
    }

    /// The highest tag in the set.
    pub fn highest(&self) -> Option<u64> {
        self.ranges.last_key_value().map(|(_, last)| *last)
    }

    /// Takes out one tag; nothing happens if it is not there.
    pub fn remove(&mut self, tag: u64) {
        self.remove_range(tag, tag);
    }

    /// Takes out every tag up to and including `tag`.
    pub fn remove_up_to(&mut self, tag: u64) {
        self.remove_range(0, tag);
    }

    /// Takes out every tag that `other` has.
    pub fn remove_all(&mut self, other: &Self) {
        for (first, last) in &other.ranges {
            self.remove_range(*first, *last);
        }
    }

    /// Takes out everything.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }

    fn remove_range(&mut self, first: u64, last: u64) {
        while let Some((&from, &to)) = self.ranges.range(..=last).next_back() {
            if to < first {
                return;
            }
            self.ranges.remove(&from);
            if last < to {
                self.ranges.insert(last + 1, to);
            }
            if from < first {
                self.ranges.insert(from, first - 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_as_a_set_of_numbers(steps in proptest::collection::vec((0u8..4, 0u64..40), 0..200)) {
            let (mut tags, mut model, mut next) = (TagSet::default(), BTreeSet::new(), 0);
            for (step, tag) in steps {
                match step {
                    0 | 1 => { next += 1 + tag % 2; tags.insert(next); model.insert(next); }
                    2 => { tags.remove(tag); model.remove(&tag); }
                    _ => { tags.remove_up_to(tag); model.retain(|held| *held > tag); }
                }
                let held: Vec<u64> = tags.ranges.iter().flat_map(|(first, last)| *first..=*last).collect();
                prop_assert_eq!(held, model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(tags.highest(), model.last().copied());
            }
            let mut none = tags.clone();
            none.remove_all(&tags);
            prop_assert_eq!(none, TagSet::default());
        }
    }
}
