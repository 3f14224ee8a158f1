//! How much one call looks at: few large jobs or many small ones, so that the server is not busy with it for long, and
//! needs little memory for it.

/// Most jobs.
const MOST: usize = 1000;
/// What all of them together may have, about, in bytes.
const BYTES: usize = 1024 * 1024;

/// As many as the ones before let expect to be small enough.
#[derive(Debug)]
pub(super) struct Portion(usize);

impl Portion {
    /// Before anything is known of their size.
    pub const fn first() -> Self {
        Self(16)
    }

    pub const fn jobs(&self) -> usize {
        self.0
    }

    /// After a call that looked at so many bytes.
    pub fn adapt(&mut self, bytes: usize) {
        let fitting = self.0.saturating_mul(BYTES) / bytes.max(1);
        self.0 = fitting.clamp(1, self.0.saturating_mul(4)).min(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_step_by_step_and_shrinks_at_once() {
        let mut portion = Portion::first();
        for expected in [64, 256, 1000, 1000] {
            portion.adapt(100 * portion.jobs());
            assert_eq!(portion.jobs(), expected);
        }
        portion.adapt(100 * BYTES);
        assert_eq!(portion.jobs(), 10);
        portion.adapt(0);
        assert_eq!(portion.jobs(), 40);
        portion.adapt(1000 * BYTES);
        assert_eq!(portion.jobs(), 1);
    }
}
