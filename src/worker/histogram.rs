//! How large things were, counted by size: what Prometheus calls a histogram.

/// Upper bounds of lengths of time, in nanoseconds: from a handler that does nothing to one that takes an hour.
pub const DURATIONS: [u64; 15] = {
    const MS: u64 = 1_000_000;
    const S: u64 = 1_000 * MS;
    [
        MS,
        5 * MS,
        25 * MS,
        100 * MS,
        250 * MS,
        500 * MS,
        S,
        5 * S / 2,
        5 * S,
        10 * S,
        30 * S,
        60 * S,
        300 * S,
        900 * S,
        3600 * S,
    ]
};
/// Upper bounds of batches, in jobs.
pub const BATCHES: [u64; 6] = [1, 4, 16, 64, 256, 1024];

/// Lengths of time.
pub type Durations = Histogram<15>;
/// Sizes of batches.
pub type Batches = Histogram<6>;

/// Counts values by the smallest bound that they do not exceed.
#[derive(Debug, Clone)]
pub struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    counts: [u64; N],
    beyond: u64,
    sum: u64,
}

impl<const N: usize> Histogram<N> {
    /// An empty one. `bounds` grow.
    pub const fn new(bounds: &'static [u64; N]) -> Self {
        Self { bounds, counts: [0; N], beyond: 0, sum: 0 }
    }

    /// Counts a value.
    #[inline]
    pub fn add(&mut self, value: u64) {
        self.sum = self.sum.saturating_add(value);
        // From below: where there are most values to count, they are small.
        match self.bounds.iter().position(|bound| value <= *bound) {
            Some(bucket) => self.counts[bucket] += 1,
            None => self.beyond += 1,
        }
    }

    /// Each bound, and how many values do not exceed it.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut so_far = 0;
        self.bounds.iter().zip(self.counts).map(move |(bound, count)| {
            so_far += count;
            (*bound, so_far)
        })
    }

    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.beyond
    }

    /// All values together.
    pub const fn sum(&self) -> u64 {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_at_the_bound_it_reaches_and_at_all_above() {
        let mut batches = Batches::new(&BATCHES);
        for size in [1, 4, 5, 2000] {
            batches.add(size);
        }
        let counts: Vec<u64> = batches.cumulative().map(|(_, count)| count).collect();
        assert_eq!(counts, [1, 2, 3, 3, 3, 3]);
        assert_eq!((batches.count(), batches.sum()), (4, 2010));
    }

    #[test]
    fn bounds_grow() {
        assert!(DURATIONS.is_sorted() && BATCHES.is_sorted());
    }
}
