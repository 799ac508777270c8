//! Which of many selectors match a label set, without trying them all.

use rustc_hash::FxHashMap;

use crate::labels::{Labels, Operator, Selector};

/// Selectors, each with a value, filed under one label that whatever they match must have.
#[derive(Debug, Default)]
pub(crate) struct SelectorIndex<'a, T> {
    by_pair: FxHashMap<(&'a str, &'a str), Vec<usize>>,
    by_key: FxHashMap<&'a str, Vec<usize>>,
    /// Selectors that need no label at all: empty ones, and those of `NotIn` and `DoesNotExist`.
    anywhere: Vec<usize>,
    items: Vec<(&'a Selector, T)>,
}

impl<'a, T: Copy> SelectorIndex<'a, T> {
    pub(crate) fn new(items: Vec<(&'a Selector, T)>) -> Self {
        // Of the labels that a selector asks for, the one that fewest selectors ask for tells most.
        let mut popularity: FxHashMap<(&str, &str), u32> = FxHashMap::default();
        for (selector, _) in &items {
            for (key, value) in selector.match_labels.iter() {
                *popularity.entry((key, value)).or_default() += 1;
            }
        }
        let mut index = SelectorIndex {
            by_pair: FxHashMap::default(),
            by_key: FxHashMap::default(),
            anywhere: Vec::new(),
            items: Vec::new(),
        };
        for (i, (selector, _)) in items.iter().enumerate() {
            let pairs = selector.match_labels.iter().map(|(k, v)| (k.as_str(), v.as_str()));
            if let Some(pair) = pairs.min_by_key(|pair| popularity.get(pair)) {
                index.by_pair.entry(pair).or_default().push(i);
                continue;
            }
            let demands = selector.match_expressions.iter();
            let demand = demands.min_by_key(|r| match &r.operator {
                Operator::In(_) => 0,
                Operator::Exists => 1,
                Operator::NotIn(_) | Operator::DoesNotExist => 2,
            });
            match demand.map(|r| (r.key.as_str(), &r.operator)) {
                Some((key, Operator::In(values))) => {
                    for value in values {
                        let filed = index.by_pair.entry((key, value)).or_default();
                        if filed.last() != Some(&i) {
                            filed.push(i);
                        }
                    }
                }
                Some((key, Operator::Exists)) => index.by_key.entry(key).or_default().push(i),
                _ => index.anywhere.push(i),
            }
        }
        index.items = items;
        index
    }

    /// The values of all selectors that match, each once, in no particular order.
    pub(crate) fn matching(&self, labels: &Labels, mut found: impl FnMut(T)) {
        let mut try_all = |candidates: &[usize]| {
            for &i in candidates {
                let (selector, value) = &self.items[i];
                if selector.matches(labels) {
                    found(*value);
                }
            }
        };
        try_all(&self.anywhere);
        if self.by_pair.is_empty() && self.by_key.is_empty() {
            return;
        }
        for (key, value) in labels.iter() {
            if let Some(candidates) = self.by_pair.get(&(key.as_str(), value.as_str())) {
                try_all(candidates);
            }
            if let Some(candidates) = self.by_key.get(key.as_str()) {
                try_all(candidates);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::Requirement;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn expression(key: &str, operator: Operator) -> Selector {
        let requirement = Requirement { key: key.to_owned(), operator };
        Selector { match_expressions: vec![requirement], ..Selector::default() }
    }

    #[test]
    fn the_index_finds_what_trying_every_selector_finds() {
        let one_of = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>();
        let selectors = [
            Selector::default(),
            Selector { match_labels: labels(&[("app", "web")]), ..Selector::default() },
            Selector {
                match_labels: labels(&[("app", "web"), ("tier", "front")]),
                ..Selector::default()
            },
            expression("app", Operator::In(one_of(&["web", "web", "db"]))),
            expression("app", Operator::NotIn(one_of(&["web"]))),
            expression("tier", Operator::Exists),
            expression("tier", Operator::DoesNotExist),
        ];
        let index = SelectorIndex::new(selectors.iter().enumerate().map(|(i, s)| (s, i)).collect());
        for labels in [
            labels(&[]),
            labels(&[("app", "web")]),
            labels(&[("app", "db"), ("tier", "front")]),
            labels(&[("app", "web"), ("tier", "front")]),
            labels(&[("tier", "back")]),
        ] {
            let mut found = Vec::new();
            index.matching(&labels, |i| found.push(i));
            found.sort_unstable();
            let expected: Vec<_> =
                (0..selectors.len()).filter(|i| selectors[*i].matches(&labels)).collect();
            assert_eq!(found, expected, "{labels:?}");
        }
    }
}
