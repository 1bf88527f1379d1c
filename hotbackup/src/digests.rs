//! Digests of the blocks of one file's copy, which its node keeps until the manifest is written.
//!
//! They are made of what a copier writes. What is written again is forgotten, and read back from the copy when the backup is
//! published. Most files are one block: its digest takes no memory of its own.

use std::ops::{Deref, DerefMut, Range};

use crate::manifest::BLOCK_BYTES;

/// A digest that is not known: the block is read again from the copy.
pub(crate) const UNKNOWN: u64 = 0;

/// The digests of a copy's blocks, of which some may be [`UNKNOWN`].
pub(crate) enum Digests {
    One(u64),
    Many(Box<[u64]>),
}

impl Digests {
    /// Those of `blocks` blocks, of which none is known.
    pub(crate) fn unknown(blocks: usize) -> Digests {
        if blocks == 1 { Digests::One(UNKNOWN) } else { Digests::Many(vec![UNKNOWN; blocks].into()) }
    }

    /// Has as many as `blocks`: what there is beyond is dropped, and what is new is unknown.
    pub(crate) fn resize(&mut self, blocks: usize) {
        if blocks != self.len() {
            let old = std::mem::replace(self, Digests::unknown(blocks));
            self.iter_mut().zip(&*old).for_each(|(new, old)| *new = *old);
        }
    }

    /// Forgets those of the blocks that `range` of the copy touches, and of the last one, whose length may have changed.
    pub(crate) fn forget(&mut self, range: &Range<u64>) {
        let block = BLOCK_BYTES as u64;
        let from = usize::try_from(range.start / block).unwrap_or(usize::MAX);
        let to = usize::try_from(range.end.div_ceil(block)).unwrap_or(usize::MAX);
        let touched = from..to.max(from.saturating_add(1)).min(self.len());
        for digest in self.get_mut(touched).into_iter().flatten() {
            *digest = UNKNOWN;
        }
        if let Some(last) = self.last_mut() {
            *last = UNKNOWN;
        }
    }

    /// Forgets all of them. Allocates nothing and gives nothing back: this may be in the freeze.
    pub(crate) fn forget_all(&mut self) {
        self.fill(UNKNOWN);
    }
}

impl Default for Digests {
    fn default() -> Digests {
        Digests::Many(Box::default())
    }
}

impl Deref for Digests {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        match self {
            Digests::One(digest) => std::slice::from_ref(digest),
            Digests::Many(digests) => digests,
        }
    }
}

impl DerefMut for Digests {
    fn deref_mut(&mut self) -> &mut [u64] {
        match self {
            Digests::One(digest) => std::slice::from_mut(digest),
            Digests::Many(digests) => digests,
        }
    }
}

/// How many digests are kept of a file of this size. Those of a file beyond 1 TiB are only made when the backup is
/// published, hole by hole: their number may have nothing to do with its data.
pub(crate) fn blocks_of(size: u64) -> usize {
    if size > 1 << 40 { 0 } else { size.div_ceil(BLOCK_BYTES as u64) as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = BLOCK_BYTES as u64;

    fn numbered(blocks: usize) -> Digests {
        let mut digests = Digests::unknown(blocks);
        digests.iter_mut().zip(1..).for_each(|(digest, number)| *digest = number);
        digests
    }

    #[test]
    fn what_is_written_again_is_forgotten_and_so_is_the_last() {
        let forgotten = |range| {
            let mut digests = numbered(4);
            digests.forget(&range);
            digests.to_vec()
        };
        assert_eq!(forgotten(0..1), [UNKNOWN, 2, 3, UNKNOWN]);
        assert_eq!(forgotten(BLOCK - 1..BLOCK + 1), [UNKNOWN, UNKNOWN, 3, UNKNOWN]);
        assert_eq!(forgotten(BLOCK..BLOCK), [1, UNKNOWN, 3, UNKNOWN]);
        assert_eq!(forgotten(2 * BLOCK..u64::MAX), [1, 2, UNKNOWN, UNKNOWN]);
        assert_eq!(forgotten(9 * BLOCK..u64::MAX), [1, 2, 3, UNKNOWN]);
    }

    #[test]
    fn the_number_of_blocks_may_change() {
        for (from, to) in [(0, 1), (0, 3), (1, 0), (1, 1), (1, 3), (3, 0), (3, 1), (3, 2), (3, 3)] {
            let mut digests = numbered(from);
            digests.resize(to);
            let expected: Vec<u64> =
                (0..to).map(|at| if at < from { at as u64 + 1 } else { UNKNOWN }).collect();
            assert_eq!(*digests, expected);
        }
    }
}
