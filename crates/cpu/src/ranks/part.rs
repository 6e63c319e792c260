//! Who has what of a parameter.
//!
//! A parameter of one matrix is cut by its rows, in panels of [`PANEL`], as evenly as they go. One of several (experts,
//! heads) goes by whole matrices where their number divides by that of the ranks, or is large; else each of its
//! matrices is cut by rows.

use std::ops::Range;

use wels_kernels::quant::QuantMatrix;

/// Rows that a product packs together: a cut elsewhere would have them padded.
const PANEL: usize = 16;
/// Matrices a rank from which on it does not matter that some ranks have one more.
const MANY: usize = 8;

/// How a parameter is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Rows,
    Matrices,
}

fn cut(world: usize, count: usize) -> Cut {
    let whole = count > 1 && (count.is_multiple_of(world) || count >= MANY * world);
    if whole { Cut::Matrices } else { Cut::Rows }
}

/// A rank's rows of a matrix.
fn rows_of(rank: usize, world: usize, rows: usize) -> Range<usize> {
    let panels = rows.div_ceil(PANEL);
    let begin = |rank: usize| (rank * panels / world * PANEL).min(rows);
    begin(rank)..begin(rank + 1)
}

/// A rank's matrices of a parameter.
fn matrices_of(rank: usize, world: usize, count: usize) -> Range<usize> {
    rank * count / world..(rank + 1) * count / world
}

/// The largest share that one of `world` ranks has of `count` matrices of so many rows.
pub fn largest_share(world: usize, rows: usize, count: usize) -> f64 {
    let most = |len: &dyn Fn(usize) -> usize| (0..world).map(len).max().unwrap_or(0) as f64;
    match cut(world, count) {
        Cut::Rows => most(&|rank| rows_of(rank, world, rows).len()) / rows as f64,
        Cut::Matrices => most(&|rank| matrices_of(rank, world, count).len()) / count as f64,
    }
}

/// What a rank keeps of matrices.
pub(crate) enum Kept {
    /// All, on the first rank; nothing on the others.
    Small { here: bool },
    /// These rows of each.
    Rows(Range<usize>),
    /// These of them.
    Matrices(Range<usize>),
}

impl Kept {
    pub fn of(rank: usize, world: usize, rows: usize, count: usize, small: bool) -> Kept {
        match cut(world, count) {
            _ if small => Kept::Small { here: rank == 0 },
            Cut::Rows => Kept::Rows(rows_of(rank, world, rows)),
            Cut::Matrices => Kept::Matrices(matrices_of(rank, world, count)),
        }
    }
}

/// What a rank has of one matrix.
pub(crate) enum Piece {
    /// The matrix is small, and whole on the first rank.
    Small(Option<QuantMatrix>),
    /// What this rank keeps of one that is in parts.
    Kept(Option<QuantMatrix>),
}

/// What a rank has of a parameter's matrices, in their order.
pub(crate) type Pieces = Vec<Option<QuantMatrix>>;

/// A parameter of which each rank has a part.
pub(crate) struct Part {
    id: u32,
    world: usize,
    cut: Cut,
    /// N of each matrix.
    rows: usize,
    /// How many matrices.
    count: usize,
    /// Of those that this rank has.
    pieces: Vec<QuantMatrix>,
}

impl Part {
    pub fn new(id: u32, world: usize, pieces: Pieces, rows: usize, count: usize) -> Part {
        Part { id, world, cut: cut(world, count), rows, count, pieces: pieces.into_iter().flatten().collect() }
    }

    pub fn id(&self) -> u32 {
        self.id
    }

    /// N of each matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn is_cut_by_rows(&self) -> bool {
        self.cut == Cut::Rows
    }

    /// A rank's rows of each matrix, in which it is cut by rows.
    pub fn rows_of(&self, rank: usize) -> Range<usize> {
        rows_of(rank, self.world, self.rows)
    }

    /// A rank's matrices, where they are whole.
    pub fn matrices_of(&self, rank: usize) -> Range<usize> {
        matrices_of(rank, self.world, self.count)
    }

    /// This rank's: all, cut, or some of them, whole.
    pub fn pieces(&self) -> &[QuantMatrix] {
        &self.pieces
    }

    /// What this rank has of it.
    pub fn bytes(&self) -> usize {
        self.pieces.iter().map(QuantMatrix::bytes).sum()
    }

    /// The values of all matrices, of what all ranks have of them.
    pub fn whole(&self, ranks: &[Vec<f32>], cols: usize) -> Vec<f32> {
        if !self.is_cut_by_rows() {
            return ranks.concat();
        }
        let mut rests: Vec<&[f32]> = ranks.iter().map(|values| &values[..]).collect();
        let mut whole = Vec::with_capacity(self.count * self.rows * cols);
        for _ in 0..self.count {
            for (rank, rest) in rests.iter_mut().enumerate() {
                let own = rest.split_off(..self.rows_of(rank).len() * cols).expect("the rows of a rank");
                whole.extend_from_slice(own);
            }
        }
        whole
    }
}

/// Puts `own[T, columns]` into their columns of `y[T, n]`.
pub(crate) fn place(own: &[f32], columns: Range<usize>, y: &mut [f32], n: usize) {
    if columns.is_empty() {
        return;
    }
    for (own, y) in own.chunks_exact(columns.len()).zip(y.chunks_exact_mut(n)) {
        y[columns.clone()].copy_from_slice(own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_have_all_of_it_and_about_as_much_each() {
        for world in 1..9 {
            for rows in [1, 16, 17, 576, 1408, 49_152, 102_400] {
                let ranges: Vec<_> = (0..world).map(|rank| rows_of(rank, world, rows)).collect();
                assert_eq!((ranges[0].start, ranges[world - 1].end), (0, rows));
                assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
                assert!(ranges.iter().all(|range| range.len() <= rows.div_ceil(PANEL).div_ceil(world) * PANEL));
            }
        }
    }

    #[test]
    fn the_largest_share_is_some_ranks() {
        assert_eq!(largest_share(4, 1024, 1), 0.25);
        assert_eq!(largest_share(4, 16, 1), 1.0, "one panel");
        assert_eq!(largest_share(3, 8, 64), 22.0 / 64.0);
    }

    #[test]
    fn matrices_stay_whole_where_that_is_even() {
        assert_eq!(cut(4, 1), Cut::Rows);
        assert_eq!(cut(4, 64), Cut::Matrices);
        assert_eq!(cut(3, 64), Cut::Matrices, "22 are no more than 15% over a third of 64");
        assert_eq!(cut(3, 8), Cut::Rows);
        assert_eq!(matrices_of(1, 3, 64), 21..42);
    }
}
