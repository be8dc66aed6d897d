//! The intersection of several secondary index ranges.
//!
//! Each condition of a list is a union of ranges, one for each state and form, all in the order of ids. The
//! union that is behind seeks to the position of the one ahead, and so on; ids in between are not read (the
//! leapfrog join of Veldhuizen, "Leapfrog Triejoin", ICDT 2014).

use keyward_core::id::KeyId;
use sled::{IVec, Tree};

use crate::store::StoreError;

/// An id, and whether every condition has it. All smaller ids after the previous candidate are decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(in crate::store::local) key_id: KeyId,
    /// The value stored with the id.
    pub(in crate::store::local) value: IVec,
    pub(super) is_in_all: bool,
}

/// The intersection of unions.
pub(super) struct Intersection<'a> {
    unions: Vec<Union<'a>>,
    /// The smallest id that is not decided yet.
    from: Vec<u8>,
}

/// The union of ranges.
pub(super) struct Union<'a>(Vec<Range<'a>>);

/// The ids of a tree after one prefix.
struct Range<'a> {
    tree: &'a Tree,
    prefix: Vec<u8>,
    entries: Option<sled::Iter>,
    /// The first entry at or after the last seek.
    head: RangeHead,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum RangeHead {
    NotRead,
    At(KeyId, IVec),
    Ended,
}

impl<'a> Intersection<'a> {
    /// The ids after `after` in all unions, of which there must be at least one.
    pub(in crate::store::local) fn new(unions: Vec<Union<'a>>, after: Option<&KeyId>) -> Self {
        Self { unions, from: after.map(past).unwrap_or_default() }
    }

    /// The next candidate. `None`: there are no more.
    pub(in crate::store::local) fn next(&mut self) -> Result<Option<Candidate>, StoreError> {
        let Some((first, others)) = self.unions.split_first_mut() else { return Ok(None) };
        let Some((key_id, value)) = first.seek(&self.from)? else { return Ok(None) };
        for other in others {
            let Some((ahead, _)) = other.seek(key_id.as_str().as_bytes())? else { return Ok(None) };
            if ahead != key_id {
                self.from = ahead.as_str().into();
                return Ok(Some(Candidate { key_id, value, is_in_all: false }));
            }
        }
        self.from = past(&key_id);
        Ok(Some(Candidate { key_id, value, is_in_all: true }))
    }
}

/// The smallest id after this one.
fn past(id: &KeyId) -> Vec<u8> {
    [id.as_str().as_bytes(), &[0]].concat()
}

impl<'a> Union<'a> {
    /// The union of a tree's entries with these prefixes. No id may have two of them.
    pub(in crate::store::local) fn new(tree: &'a Tree, prefixes: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let range = |prefix| Range { tree, prefix, entries: None, head: RangeHead::NotRead };
        Self(prefixes.into_iter().map(range).collect())
    }

    /// The first id at or after `from`.
    fn seek(&mut self, from: &[u8]) -> Result<Option<(KeyId, IVec)>, StoreError> {
        let mut least: Option<(&KeyId, &IVec)> = None;
        for range in &mut self.0 {
            let head = range.seek(from)?;
            if let Some(head) = head
                && least.is_none_or(|least| head.0 < least.0)
            {
                least = Some(head);
            }
        }
        Ok(least.map(|(id, value)| (id.clone(), value.clone())))
    }
}

impl Range<'_> {
    fn seek(&mut self, from: &[u8]) -> Result<Option<(&KeyId, &IVec)>, StoreError> {
        if !self.has_reached(from) {
            // Often it is the next entry; a seek costs more.
            if let Some(entries) = &mut self.entries {
                self.head = head_of(entries.next(), &self.prefix)?;
            }
            if !self.has_reached(from) {
                let mut entries = self.tree.range([&*self.prefix, from].concat()..);
                self.head = head_of(entries.next(), &self.prefix)?;
                self.entries = Some(entries);
            }
        }
        Ok(match &self.head {
            RangeHead::At(id, value) => Some((id, value)),
            RangeHead::NotRead | RangeHead::Ended => None,
        })
    }

    fn has_reached(&self, from: &[u8]) -> bool {
        match &self.head {
            RangeHead::NotRead => false,
            RangeHead::At(id, _) => id.as_str().as_bytes() >= from,
            RangeHead::Ended => true,
        }
    }
}

fn head_of(entry: Option<sled::Result<(IVec, IVec)>>, prefix: &[u8]) -> Result<RangeHead, StoreError> {
    let Some((name, value)) = entry.transpose()? else { return Ok(RangeHead::Ended) };
    let Some(id) = name.strip_prefix(prefix) else { return Ok(RangeHead::Ended) };
    let id = std::str::from_utf8(id).ok().and_then(|id| KeyId::parse(id).ok());
    id.map(|id| RangeHead::At(id, value))
        .ok_or_else(|| StoreError::Engine("an ordering holds what is not an id".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::{BTreeMap, BTreeSet};

    fn id(number: u32) -> KeyId {
        KeyId::parse(&format!("k{number:05}")).unwrap()
    }

    /// Some numbers below `below`, from a generator of our own: the same at each run.
    fn some_of(below: u32, one_in: u32, seed: &mut u64) -> BTreeSet<u32> {
        (0..below)
            .filter(|_| {
                *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((*seed >> 33) as u32).is_multiple_of(one_in)
            })
            .collect()
    }

    #[test]
    fn it_has_what_all_unions_have_in_order_from_any_place_on() {
        let db = sled::Config::new().temporary(true).open().unwrap();
        let tree = db.open_tree("facets").unwrap();
        let mut seed = 7;
        for round in 0..60 {
            tree.clear().unwrap();
            // Each condition: three disjoint sets, as the states of keys are.
            let conditions: Vec<BTreeMap<u32, u32>> = (0..1 + round % 4)
                .map(|_| some_of(400, 1 + round % 5, &mut seed).into_iter().map(|n| (n, n % 3)).collect())
                .collect();
            let prefix = |condition: usize, state: u32| format!("t\0c{condition}\0{state}\0").into_bytes();
            for (condition, ids) in conditions.iter().enumerate() {
                for (n, state) in ids {
                    let name = [&*prefix(condition, *state), id(*n).as_str().as_bytes()].concat();
                    tree.insert(name, vec![*state as u8]).unwrap();
                }
            }
            tree.insert("t\0c9\0", "what comes behind all ranges is of none").unwrap();
            for after in [None, Some(0), Some(57), Some(399)] {
                let unions = (0..conditions.len()).map(|c| Union::new(&tree, (0..3).map(|state| prefix(c, state))));
                let mut all = Intersection::new(unions.collect(), after.map(id).as_ref());
                let (mut found, mut last) = (vec![], None);
                while let Some(looked) = all.next().unwrap() {
                    assert!(last.as_ref() < Some(&looked.key_id), "each id once, and in order");
                    last = Some(looked.key_id.clone());
                    found.extend(looked.is_in_all.then_some(looked.key_id));
                }
                let expected = conditions[0].keys().filter(|n| {
                    after.is_none_or(|after| **n > after) && conditions.iter().all(|ids| ids.contains_key(n))
                });
                assert_eq!(found, expected.map(|n| id(*n)).collect::<Vec<_>>(), "round {round}, after {after:?}");
            }
        }
    }

    #[test]
    fn ranges_that_hardly_meet_are_leapt_over() {
        let db = sled::Config::new().temporary(true).open().unwrap();
        let tree = db.open_tree("facets").unwrap();
        let add = |of: &str, n: u32| drop(tree.insert(format!("{of}\0{}", id(n).as_str()), b""));
        (0..20_000).for_each(|n| add("many", n));
        [7, 9_000, 19_999, 30_000].into_iter().for_each(|n| add("few", n));
        let union = |of: &str| Union::new(&tree, [format!("{of}\0").into_bytes()]);
        for order in [["many", "few"], ["few", "many"]] {
            let mut both = Intersection::new(order.map(union).into(), None);
            let (mut looks, mut found) = (0, 0);
            while let Some(looked) = both.next().unwrap() {
                looks += 1;
                found += u32::from(looked.is_in_all);
            }
            assert_eq!(found, 3);
            assert!(looks < 10, "{looks} ids were looked at");
        }
    }
}
