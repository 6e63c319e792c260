//! The processor as a device: the kernels of `wels-kernels` behind the traits of `wels-device`.
//!
//! Each operation takes the slices out of its tensors and calls one kernel, whose header has the formula and the order
//! of its sums. `ranks` has one model over the processors of several ranks. [`naive`] is a second device, of plain
//! loops and with memory that nobody else can look into, for tests.

#![forbid(unsafe_code)]

mod attention;
mod compressed;
mod experts;
mod head;
mod images;
mod memory;
pub mod naive;
mod pictures;
mod products;
mod ranks;
mod rows;
mod sparse;
pub mod testing;
mod weights;

use std::sync::{Arc, OnceLock};

use wels_device::{AdamW, Compressed, Device, Images, Optimizer, SparseAttention, Tensor};
use wels_kernels::optim;

use memory::{slice, slice_mut};

pub use ranks::{Ranks, SMALL_BYTES, largest_share, over_ranks};

/// The processor.
pub struct Cpu {
    /// Of several ranks that have a model together, this one.
    ranks: Option<Arc<Ranks>>,
}

/// The processor. All callers share one.
pub fn device() -> Arc<dyn Device> {
    static DEVICE: OnceLock<Arc<dyn Device>> = OnceLock::new();
    DEVICE.get_or_init(|| Arc::new(Cpu { ranks: None })).clone()
}

impl Device for Cpu {
    fn name(&self) -> &str {
        "cpu"
    }

    fn images(&self) -> Option<&dyn Images> {
        Some(self)
    }

    fn sparse_attention(&self) -> Option<&dyn SparseAttention> {
        Some(self)
    }

    fn compressed(&self) -> Option<&dyn Compressed> {
        Some(self)
    }

    fn in_words(&self) -> String {
        match &self.ranks {
            None => self.name().into(),
            Some(ranks) => format!("the processors of {} ranks", ranks.comm().world()),
        }
    }
}

impl Optimizer for Cpu {
    fn adamw(
        &self,
        (params, first): (&mut Tensor, usize),
        grads: &Tensor,
        (m, v): (&mut Tensor, &mut Tensor),
        rule: &AdamW,
        scale: f32,
    ) {
        let params = &mut slice_mut(params)[first..first + grads.len()];
        optim::adamw(params, slice(grads), slice_mut(m), slice_mut(v), rule, scale);
    }

    fn blend(&self, alpha: f32, x: &Tensor, beta: f32, y: &mut Tensor) {
        optim::blend(alpha, slice(x), beta, slice_mut(y));
    }

    fn squares(&self, x: &Tensor) -> Vec<f32> {
        optim::squares_of_chunks(slice(x))
    }
}
