//! How rows of bf16 are cut: into pieces, one a thread, and for weight gradients into groups of rows.

use crate::launch::Buffer;

/// Numbers of a piece, which a thread takes.
const PIECE: usize = 8;
/// Rows of a group, unless its sequence ends.
const GROUP_ROWS: usize = 64;

/// Pieces of rows of so many columns.
pub(crate) fn pieces(rows: usize, cols: usize) -> usize {
    rows * cols.div_ceil(PIECE)
}

/// Whether pieces are taken by accesses of 16 bytes: all rows and columns are then at multiples of them, as buffers
/// begin at multiples of 256 bytes.
pub(crate) fn wide(columns: &[usize]) -> usize {
    usize::from(columns.iter().all(|columns| columns.is_multiple_of(PIECE)))
}

/// Where groups of rows begin, and where the last ends.
pub(crate) struct RowGroups {
    pub count: usize,
    pub begins: Buffer,
}

/// [`GROUP_ROWS`] rows each, or fewer where a sequence ends.
pub(crate) fn group_begins(sequences: &[u32]) -> Vec<u32> {
    let of_sequence = |pair: &[u32]| (pair[0]..pair[1]).step_by(GROUP_ROWS);
    let mut begins: Vec<u32> = sequences.windows(2).flat_map(of_sequence).collect();
    begins.extend(sequences.last());
    begins
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_begin_with_each_sequence() {
        assert_eq!(group_begins(&[0, 3, 3, 133]), [0, 3, 67, 131, 133]);
        assert_eq!(group_begins(&[0]), [0]);
    }
}
