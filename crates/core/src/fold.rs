//! A table of pairs as a few products: these sources, those destinations, one value.

use std::hash::{Hash, Hasher};

use indexmap::{IndexMap, IndexSet};
use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet, FxHasher};

/// Every one of the sources has the value with every one of the destinations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product<V> {
    /// Numbers of rows, ascending.
    pub sources: Vec<usize>,
    /// Numbers of columns, ascending.
    pub destinations: Vec<usize>,
    /// What the table has at each of them.
    pub value: V,
}

/// The cells of a table that differ from the default, each in exactly one product. Rows are of
/// equal length, in order. Whichever gives fewer: rows that are alike in a value share a product,
/// or columns do.
pub fn fold<V: Copy + Eq + Hash + Default>(
    rows: impl IntoIterator<Item = Vec<V>>,
) -> Vec<Product<V>> {
    // Large clusters have tens of millions of cells: they are kept once, as numbers.
    let mut values: IndexSet<V, FxBuildHasher> = IndexSet::from_iter([V::default()]);
    let mut distinct: IndexMap<Vec<u32>, Vec<usize>, FxBuildHasher> = IndexMap::default();
    for (i, row) in rows.into_iter().enumerate() {
        // Not `into_iter`, which would keep the larger allocation.
        let row: Vec<u32> = row.iter().map(|value| values.insert_full(*value).0 as u32).collect();
        distinct.entry(row).or_default().push(i);
    }
    let sources: Vec<&Vec<usize>> = distinct.values().collect();
    let rows: Vec<&[u32]> = distinct.keys().map(Vec::as_slice).collect();
    let columns = alike(&rows);
    let table = Table { rows: &rows, columns: columns.iter().map(|alike| alike[0]).collect() };
    let turn = count(table.turned()) < count(table.straight());
    let chosen = if turn { products(table.turned()) } else { products(table.straight()) };

    let all = |groups: &mut dyn Iterator<Item = &Vec<usize>>| {
        let mut all: Vec<usize> = groups.flatten().copied().collect();
        all.sort_unstable();
        all
    };
    let product = |((value, across), along): ((u32, Vec<u32>), Vec<u32>)| {
        let (from, to) = if turn { (across, along) } else { (along, across) };
        Product {
            sources: all(&mut from.iter().map(|i| sources[*i as usize])),
            destinations: all(&mut to.iter().map(|i| &columns[*i as usize])),
            value: values[value as usize],
        }
    };
    chosen.into_iter().map(product).collect()
}

/// A table of the numbers of values, of which only some columns count.
struct Table<'a> {
    rows: &'a [&'a [u32]],
    columns: Vec<usize>,
}

impl Table<'_> {
    /// Its rows.
    fn straight(&self) -> impl Iterator<Item = Vec<u32>> {
        self.rows.iter().map(|row| self.columns.iter().map(|column| row[*column]).collect())
    }

    /// Its columns; some at a time, so that memory is read in order.
    fn turned(&self) -> impl Iterator<Item = Vec<u32>> {
        self.columns.chunks(64).flat_map(|columns| {
            let mut turned = vec![Vec::with_capacity(self.rows.len()); columns.len()];
            for row in self.rows {
                columns.iter().zip(&mut turned).for_each(|(c, line)| line.push(row[*c]));
            }
            turned
        })
    }
}

/// The columns, those that are the same in every row together.
fn alike(rows: &[&[u32]]) -> Vec<Vec<usize>> {
    let width = rows.first().map_or(0, |row| row.len());
    // Row by row, so that memory is read in order: first by hash, then exactly.
    let mut hashes = vec![FxHasher::default(); width];
    for row in rows {
        row.iter().zip(&mut hashes).for_each(|(value, hash)| value.hash(hash));
    }
    let mut by_hash: IndexMap<u64, Vec<usize>, FxBuildHasher> = IndexMap::default();
    for (column, hash) in hashes.iter().enumerate() {
        by_hash.entry(hash.finish()).or_default().push(column);
    }
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for candidates in by_hash.into_values() {
        let known = groups.len();
        for column in candidates {
            let same = |g: &&mut Vec<usize>| rows.iter().all(|row| row[g[0]] == row[column]);
            match groups[known..].iter_mut().find(same) {
                Some(group) => group.push(column),
                None => groups.push(vec![column]),
            }
        }
    }
    groups.sort_unstable();
    groups
}

/// How many products there will be; by hash, so that none of them is kept for that.
fn count(lines: impl Iterator<Item = Vec<u32>>) -> usize {
    let mut seen: FxHashSet<u64> = FxHashSet::default();
    let mut of_line: FxHashMap<u32, FxHasher> = FxHashMap::default();
    for line in lines {
        for (at, value) in line.iter().enumerate().filter(|(_, value)| **value != 0) {
            // This hash does not see zeros at the beginning.
            of_line.entry(*value).or_default().write_usize(at + 1);
        }
        for (value, mut hash) in of_line.drain() {
            hash.write_u32(value);
            seen.insert(hash.finish());
        }
    }
    seen.len()
}

/// By value and the places of a line that have it: the lines where they do.
fn products(
    lines: impl Iterator<Item = Vec<u32>>,
) -> IndexMap<(u32, Vec<u32>), Vec<u32>, FxBuildHasher> {
    let mut products: IndexMap<(u32, Vec<u32>), Vec<u32>, FxBuildHasher> = IndexMap::default();
    for (i, line) in (0..).zip(lines) {
        let mut by_value: IndexMap<u32, Vec<u32>, FxBuildHasher> = IndexMap::default();
        for (at, value) in (0..).zip(line).filter(|(_, value)| *value != 0) {
            by_value.entry(value).or_default().push(at);
        }
        for (value, mut places) in by_value {
            places.shrink_to_fit();
            products.entry((value, places)).or_default().push(i);
        }
    }
    products
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(rows: &[&[u32]]) -> Vec<String> {
        let products = fold(rows.iter().map(|row| row.to_vec()));
        products
            .iter()
            .map(|p| format!("{:?} -> {:?}: {}", p.sources, p.destinations, p.value))
            .collect()
    }

    #[test]
    fn what_is_open_to_all_but_one_is_one_product() {
        let table: [&[u32]; 4] = [&[9, 9, 0, 9], &[9, 9, 4, 9], &[0, 0, 0, 5], &[9, 9, 0, 9]];
        assert_eq!(shown(&table), ["[0, 1, 3] -> [0, 1, 3]: 9", "[1] -> [2]: 4", "[2] -> [3]: 5"]);
    }

    #[test]
    fn destinations_that_take_the_same_callers_share_a_product() {
        let table: [&[u32]; 3] = [&[1, 1, 1], &[1, 1, 0], &[0, 0, 1]];
        assert_eq!(shown(&table), ["[0, 1] -> [0, 1]: 1", "[0, 2] -> [2]: 1"]);
    }

    #[test]
    fn a_table_without_rows_or_values_has_no_products() {
        assert!(shown(&[]).is_empty());
        assert!(shown(&[&[0, 0], &[0, 0]]).is_empty());
    }
}
