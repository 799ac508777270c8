//! What several runs of one thing measured.

use std::fmt;

use portcullis_tests::generate::Random;

use crate::Outcome;
use crate::folder::SEED;

/// One number for each run. Shown as the median, with the least and the greatest.
#[derive(Default)]
pub(crate) struct Runs(Vec<f64>);

impl Runs {
    pub(crate) fn push(&mut self, measured: f64) {
        let at = self.0.partition_point(|known| *known < measured);
        self.0.insert(at, measured);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The same runs in another unit.
    pub(crate) fn map(&self, unit: impl Fn(f64) -> f64) -> Runs {
        self.0.iter().map(|one| unit(*one)).collect()
    }

    /// The middle one; the upper of the two in the middle if their number is even.
    pub(crate) fn median(&self) -> f64 {
        self.0.get(self.0.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// Of a hundred, the one that ninety-nine do not exceed.
    pub(crate) fn p99(&self) -> f64 {
        let at = (self.0.len() * 99).div_ceil(100).saturating_sub(1);
        self.0.get(at).copied().unwrap_or(f64::NAN)
    }

    /// The greatest.
    pub(crate) fn greatest(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }
}

impl FromIterator<f64> for Runs {
    fn from_iter<I: IntoIterator<Item = f64>>(measured: I) -> Runs {
        let mut runs = Runs::default();
        measured.into_iter().for_each(|one| runs.push(one));
        runs
    }
}

impl fmt::Display for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [Some(least), Some(greatest)] = [self.0.first(), self.0.last()] else {
            return f.write_str("not measured");
        };
        let [median, least, greatest] = [&self.median(), least, greatest].map(|n| Digits(*n));
        write!(f, "{median} ({least}–{greatest})")
    }
}

/// Measures each of the ways once in each round, in random order: nobody always comes after the same
/// one.
pub(crate) fn in_turns<W>(
    rounds: usize,
    ways: &mut [W],
    mut measure: impl FnMut(&mut W) -> Outcome,
) -> Outcome {
    let mut order: Vec<usize> = (0..ways.len()).collect();
    let mut random = Random::new(SEED);
    for _ in 0..rounds {
        for i in (1..order.len()).rev() {
            order.swap(i, random.below(i + 1));
        }
        for &i in &order {
            measure(&mut ways[i])?;
        }
    }
    Ok(())
}

/// Three digits, or all before the point if they are more.
pub(crate) struct Digits(pub(crate) f64);

impl fmt::Display for Digits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = match self.0 {
            n if n < 10.0 => 2,
            n if n < 100.0 => 1,
            _ => 0,
        };
        write!(f, "{:.decimals$}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_shown_as_the_median_with_the_least_and_the_greatest() {
        let runs: Runs = [31.26, 4.125, 1234.5].into_iter().collect();
        assert_eq!(runs.to_string(), "31.3 (4.12–1234)");
        let hundreds: Runs = (1..=200).map(f64::from).collect();
        assert_eq!((hundreds.p99(), hundreds.greatest()), (198.0, 200.0));
        assert_eq!(Runs::default().to_string(), "not measured");
    }
}
