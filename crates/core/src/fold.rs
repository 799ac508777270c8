//! A table of pairs as a few products: these sources, those destinations, one value.

use std::hash::{Hash, Hasher};

use indexmap::IndexMap;
use rustc_hash::{FxBuildHasher, FxHasher};

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
    let mut distinct: Groups<Vec<V>> = Groups::default();
    for (i, row) in rows.into_iter().enumerate() {
        distinct.entry(row).or_default().push(i);
    }
    let width = distinct.first().map_or(0, |(row, _)| row.len());
    let rows: Vec<&Vec<V>> = distinct.keys().collect();
    let columns = alike(&rows, width);
    let small = |row: &&Vec<V>| columns.iter().map(|c| row[c[0]]).collect::<Vec<V>>();
    let table: Vec<Vec<V>> = rows.iter().map(small).collect();
    let turned: Vec<Vec<V>> =
        (0..columns.len()).map(|c| table.iter().map(|row| row[c]).collect()).collect();

    let (by_row, by_column) = (products(&table), products(&turned));
    let all = |groups: &[&Vec<usize>], of: &[usize]| {
        let mut all: Vec<usize> = of.iter().flat_map(|g| groups[*g]).copied().collect();
        all.sort_unstable();
        all
    };
    let sources: Vec<&Vec<usize>> = distinct.values().collect();
    let destinations: Vec<&Vec<usize>> = columns.iter().collect();
    let turn = by_column.len() < by_row.len();
    let chosen = if turn { by_column } else { by_row };
    let product = |((value, across), along): ((V, Vec<usize>), Vec<usize>)| {
        let (from, to) = if turn { (across, along) } else { (along, across) };
        let (sources, destinations) = (all(&sources, &from), all(&destinations, &to));
        Product { sources, destinations, value }
    };
    chosen.into_iter().map(product).collect()
}

type Groups<K> = IndexMap<K, Vec<usize>, FxBuildHasher>;

/// The columns, those that are the same in every row together.
fn alike<V: Copy + Eq + Hash>(rows: &[&Vec<V>], width: usize) -> Vec<Vec<usize>> {
    // Row by row, so that memory is read in order: first by hash, then exactly.
    let mut hashes = vec![FxHasher::default(); width];
    for row in rows {
        row.iter().zip(&mut hashes).for_each(|(value, hash)| value.hash(hash));
    }
    let mut by_hash: Groups<u64> = Groups::default();
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

/// By value and the columns that have it: the rows where they do.
fn products<V: Copy + Eq + Hash + Default>(
    table: &[Vec<V>],
) -> IndexMap<(V, Vec<usize>), Vec<usize>, FxBuildHasher> {
    let mut products: Groups<(V, Vec<usize>)> = Groups::default();
    for (i, row) in table.iter().enumerate() {
        let mut by_value: Groups<V> = Groups::default();
        for (column, value) in row.iter().enumerate() {
            if *value != V::default() {
                by_value.entry(*value).or_default().push(column);
            }
        }
        for found in by_value {
            products.entry(found).or_default().push(i);
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
