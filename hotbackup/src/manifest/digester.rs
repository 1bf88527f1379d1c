//! Digests of blocks that are copied in pieces.

use std::ops::Range;

use xxhash_rust::xxh3::Xxh3;

use super::{BLOCK_BYTES, block_digest, zeros, zeros_digest};

/// Makes the digests of a file's blocks from the pieces of a chunk, which come in their order. A block of which one is missing gets
/// none.
pub(crate) struct Digester {
    /// Of the block that is begun.
    hasher: Xxh3,
    /// Where the piece begins that goes on with it.
    next: u64,
}

impl Digester {
    pub(crate) fn new() -> Digester {
        Digester { hasher: Xxh3::new(), next: u64::MAX }
    }

    /// A piece of a file of `size` bytes, or a hole. `note` gets the number of each block that ends in it, and its digest.
    pub(crate) fn piece(
        &mut self,
        size: u64,
        range: Range<u64>,
        bytes: Option<&[u8]>,
        mut note: impl FnMut(u64, u64),
    ) {
        let block = BLOCK_BYTES as u64;
        let mut at = range.start;
        while at < range.end.min(size) {
            let index = at / block;
            let (start, stop) = (index * block, ((index + 1) * block).min(size));
            let end = stop.min(range.end);
            let part = match bytes {
                Some(bytes) => &bytes[(at - range.start) as usize..(end - range.start) as usize],
                None => zeros((end - at) as usize),
            };
            if at == start && end == stop {
                note(index, if bytes.is_some() { block_digest(part) } else { zeros_digest(part.len()) });
            } else if at == start || at == self.next {
                if at == start {
                    self.hasher.reset();
                }
                self.hasher.update(part);
                self.next = end;
                if end == stop {
                    note(index, self.hasher.digest());
                }
            }
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = BLOCK_BYTES as u64;

    /// The digests of pieces that end at `ends`, of which every third is a hole, up to a file's end; those of the whole blocks.
    fn digests(size: u64, from: u64, ends: &[u64], missing: Option<usize>) -> (Vec<Option<u64>>, Vec<u64>) {
        let mut file: Vec<u8> = (0..size).map(|at| (at % 251) as u8 + 1).collect();
        let mut digester = Digester::new();
        let mut found = vec![None; size.div_ceil(BLOCK) as usize];
        let mut at = from;
        for (number, &end) in ends.iter().enumerate() {
            let is_hole = number % 3 == 2;
            let bytes = at as usize..end.min(size) as usize;
            if is_hole {
                file[bytes.clone()].fill(0);
            }
            if missing != Some(number) {
                let piece = (!is_hole).then(|| &file[bytes]);
                digester.piece(size, at..end, piece, |index, digest| found[index as usize] = Some(digest));
            }
            at = end;
        }
        (found, file.chunks(BLOCK_BYTES).map(block_digest).collect())
    }

    #[test]
    fn pieces_and_holes_give_the_digests_of_whole_blocks() {
        let size = 4 * BLOCK + 1000;
        for ends in [
            &[size][..],
            &[BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK, size],
            &[4096, 8192, 2 * BLOCK + 4096, 2 * BLOCK + 8192, 4 * BLOCK - 1, 4 * BLOCK + 1, size],
            &[BLOCK - 1, BLOCK + 1, 4 * BLOCK + 10, 4 * BLOCK + 20, 4 * BLOCK + 30, size],
        ] {
            let (found, whole) = digests(size, 0, ends, None);
            assert_eq!(found, whole.into_iter().map(Some).collect::<Vec<_>>(), "{ends:?}");
        }
    }

    #[test]
    fn a_block_of_which_a_piece_is_missing_gets_none() {
        let size = 3 * BLOCK;
        let ends = [4096, BLOCK + 4096, BLOCK + 8192, size];
        let (found, whole) = digests(size, 0, &ends, Some(1));
        assert_eq!(found, [None, None, Some(whole[2])]);
        let (found, whole) = digests(size, 4096, &[8192, 2 * BLOCK, size], None);
        assert_eq!(found, [None, Some(whole[1]), Some(whole[2])]);
    }
}
