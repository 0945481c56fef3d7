//! Delivery tags of a confirm channel on which some messages are parked: the client counts all of them, RabbitMQ only
//! those that it was given.
//!
//! RabbitMQ confirms with `multiple`, and so does this, but never over a half message that is not durable yet. It never
//! speaks of a tag twice, and neither does this: some clients lose count otherwise.

use crate::amqp::method::Settle;
use std::collections::{BTreeMap, BTreeSet};

/// Which tag stands for which.
#[derive(Debug)]
pub struct Numbering {
    /// Messages that the client published before its first half message. Up to here both count alike.
    alike: u64,
    /// What the client has published.
    client: u64,
    /// What RabbitMQ was given.
    upstream: u64,
    /// RabbitMQ's tags behind `alike` that it has not confirmed, with the client's.
    unconfirmed: BTreeMap<u64, u64>,
    /// The client's tags of half messages that are not durable yet.
    parking: BTreeSet<u64>,
}

impl Numbering {
    /// For a channel on which so many messages were published.
    pub fn new(published: u64) -> Self {
        Self {
            alike: published,
            client: published,
            upstream: published,
            unconfirmed: BTreeMap::new(),
            parking: BTreeSet::new(),
        }
    }

    /// The client published a message that goes to RabbitMQ.
    pub fn pass(&mut self) {
        self.client += 1;
        self.upstream += 1;
        self.unconfirmed.insert(self.upstream, self.client);
    }

    /// The client published a half message. Gives back its tag.
    pub fn park(&mut self) -> u64 {
        self.client += 1;
        self.parking.insert(self.client);
        self.client
    }

    /// A half message is durable: its confirm.
    pub fn parked(&mut self, tag: u64) -> Settle {
        self.parking.remove(&tag);
        Settle { tag, multiple: false }
    }

    /// RabbitMQ confirmed, or refused to; what the client is to be told, in this order.
    pub fn translate(&mut self, settle: Settle) -> Vec<Settle> {
        let Settle { tag, multiple } = settle;
        if tag <= self.alike && tag > 0 {
            return vec![settle];
        }
        if !multiple {
            let tag = self.unconfirmed.remove(&tag);
            return tag.map(|tag| Settle { tag, multiple: false }).into_iter().collect();
        }
        let up_to = if tag == 0 { self.upstream } else { tag };
        let rest = self.unconfirmed.split_off(&up_to.saturating_add(1));
        let settled = std::mem::replace(&mut self.unconfirmed, rest);
        // In one go as far as no half message is passed over. This includes what was published before the first one, of
        // which nobody here knows what was confirmed.
        let in_one = match (self.parking.first(), settled.values().last()) {
            (Some(parking), Some(last)) if parking < last => parking - 1,
            (_, last) => last.copied().unwrap_or_default(),
        };
        let mut told = Vec::new();
        if in_one > 0 {
            told.push(Settle { tag: in_one, multiple: true });
        }
        told.extend(settled.into_values().filter(|tag| *tag > in_one).map(|tag| Settle { tag, multiple: false }));
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Pass,
        Park,
        /// The store answers for the half message at this place among those that wait.
        Parked(usize),
        /// RabbitMQ confirms the message at this place among those that wait, alone or as RabbitMQ does with
        /// `multiple`: only when all before it are confirmed too.
        Confirm(usize, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Pass),
            Just(Step::Park),
            any::<usize>().prop_map(Step::Parked),
            (any::<usize>(), any::<bool>()).prop_map(|(place, multiple)| Step::Confirm(place, multiple)),
        ]
    }

    proptest! {
        /// However plain and half messages, confirms and answers of the store mix: each of the client's tags is settled
        /// once, after what settles it happened, and a client that keeps a low-water mark never sees it fall.
        #[test]
        fn each_tag_is_settled_once_and_only_when_it_is(
            before in 0u64..5,
            confirmed_before in 0u64..5,
            steps in proptest::collection::vec(step(), 1..200),
        ) {
            let mut numbering = Numbering::new(before);
            let confirmed_before = confirmed_before.min(before);
            // The client's tags that nothing has settled.
            let mut open: BTreeSet<u64> = (confirmed_before + 1..=before).collect();
            // The client's tags whose cause has happened, so that they may be settled now.
            let (mut upstream, mut last_upstream, mut last) = (BTreeMap::new(), before, before);
            upstream.extend(open.iter().map(|tag| (*tag, *tag)));
            let mut halves = Vec::new();
            for step in steps {
                let (told, due): (Vec<Settle>, BTreeSet<u64>) = match step {
                    Step::Pass => {
                        numbering.pass();
                        (last, last_upstream) = (last + 1, last_upstream + 1);
                        upstream.insert(last_upstream, last);
                        open.insert(last);
                        continue;
                    }
                    Step::Park => {
                        last += 1;
                        prop_assert_eq!(numbering.park(), last);
                        halves.push(last);
                        open.insert(last);
                        continue;
                    }
                    Step::Parked(_) if halves.is_empty() => continue,
                    Step::Parked(place) => {
                        let tag = halves.remove(place % halves.len());
                        (vec![numbering.parked(tag)], BTreeSet::from([tag]))
                    }
                    Step::Confirm(..) if upstream.is_empty() => continue,
                    Step::Confirm(place, multiple) => {
                        let tag = *upstream.keys().nth(place % upstream.len()).unwrap();
                        let due: Vec<u64> = match multiple {
                            true => upstream.keys().copied().take_while(|other| *other <= tag).collect(),
                            false => vec![tag],
                        };
                        let due = due.iter().map(|tag| upstream.remove(tag).unwrap()).collect();
                        (numbering.translate(Settle { tag, multiple }), due)
                    }
                };
                let mut settled = BTreeSet::new();
                for Settle { tag, multiple } in told {
                    let low_water = open.first().copied().unwrap_or(last + 1);
                    prop_assert!(!multiple || tag + 1 >= low_water, "the low-water mark falls");
                    let now: Vec<u64> = match multiple {
                        true => open.iter().copied().filter(|other| *other <= tag).collect(),
                        false => vec![tag],
                    };
                    for tag in now {
                        prop_assert!(open.remove(&tag), "{} is settled twice", tag);
                        settled.insert(tag);
                    }
                }
                prop_assert_eq!(settled, due);
            }
        }
    }
}
