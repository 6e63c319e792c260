//! How the devices of a world's ranks hand each other numbers without the host.

use std::ops::Range;

use crate::Tensor;

/// The other ranks' devices, as one rank's sees them. Of a tensor that all ranks have, `parts[r]` are the elements that
/// belong to rank r: neighbouring ranges that do not overlap, the same on all ranks.
///
/// All ranks call the same, in the same order. Nothing is added up here: whoever adds does so in an order of its own.
/// What goes wrong is a lost device, and panics on all ranks; one that does not come is waited for, so ranks see to it
/// beforehand that all will.
pub trait Link: Send + Sync {
    /// Which rank this is, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn world(&self) -> usize;

    /// Sends each rank its part of `of`; `into[r]` becomes what rank r has of this one's part.
    ///
    /// # Panics
    /// If the sizes do not fit.
    fn scatter(&self, of: &Tensor, parts: &[Range<usize>], into: &mut [Tensor]);

    /// Sends all ranks this one's part of `of`; all others become theirs.
    ///
    /// # Panics
    /// If a part is not inside, or the tensor shares its memory.
    fn gather(&self, of: &mut Tensor, parts: &[Range<usize>]);
}
