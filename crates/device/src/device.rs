//! The trait, and its groups of operations that have no file of their own.
//!
//! Outputs are `&mut Tensor`: all of an output is written, but where an argument of type [`Start`] says that it goes on
//! from what it holds. An operand of another device, or of a size that does not fit, is a bug, and panics.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;

use crate::attention::Attention;
use crate::compressed::Compressed;
use crate::experts::{Dispatch, Experts};
use crate::head::Head;
use crate::images::Images;
use crate::link::Link;
use crate::sparse::SparseAttention;
use crate::weights::{WeightRef, Weights};
use crate::{AdamW, Direction, Dtype, Gating, Ids, Precision, Rotary, Start, Tensor};

/// What a kernel has taken.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTime {
    /// Its name.
    pub kernel: String,
    /// How often it was launched.
    pub launches: u64,
    /// Of all launches.
    pub seconds: f64,
}

/// Memory of a device, which only it can look into.
pub type Memory = Box<dyn Any + Send + Sync>;

/// A device's own memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// All there is.
    pub total: u64,
    /// What this process can still take.
    pub free: u64,
    /// The most that this process has held.
    pub peak: u64,
}

/// Something to compute with. One value serves all threads that use it.
pub trait Device: Buffers + Rows + Products + Experts + Attention + Head + Optimizer + Weights {
    /// What users know it by: `cpu`.
    fn name(&self) -> &str;

    /// How activations and their gradients are kept where products have this precision. Weights, their gradients,
    /// router logits, losses and what norms and attention keep for their backward parts are f32 on every device.
    fn activations(&self, _precision: Precision) -> Dtype {
        Dtype::F32
    }

    /// What each kernel has taken since this was last asked for, the longest first, where that is measured.
    fn profile(&self) -> Vec<KernelTime> {
        Vec::new()
    }

    /// Does `work`, a small step like many before: a device may keep what it is to do until there is more of it, or
    /// until something is read. What is computed is the same.
    fn together(&self, work: &mut dyn FnMut()) {
        work();
    }

    /// Whether it gains by steps that find their tensors where the step before had them, as one does that keeps what a
    /// step is made of.
    fn keeps_steps(&self) -> bool {
        false
    }

    /// What models of images need besides, on a device that has it.
    fn images(&self) -> Option<&dyn Images> {
        None
    }

    /// What models that attend to chosen keys alone need besides, on a device that has it.
    fn sparse_attention(&self) -> Option<&dyn SparseAttention> {
        None
    }

    /// What models with compressed keys need besides, on a device that has it.
    fn compressed(&self) -> Option<&dyn Compressed> {
        None
    }

    /// What it hands numbers to other ranks' devices by, if it is one of several that can.
    fn link(&self) -> Option<&dyn Link> {
        None
    }

    /// Which one it is, for people.
    fn in_words(&self) -> String {
        self.name().into()
    }

    /// The most operations of products a second, in a precision. Where a run has several devices its first rank's
    /// names the sum of all, as it does of energy. `None` where whoever asks has to measure, as for the processor.
    fn peak_flops(&self, _precision: Precision) -> Option<f64> {
        None
    }

    /// The most bytes of its memory that are read in a second; `None` as above.
    fn peak_bytes_per_second(&self) -> Option<f64> {
        None
    }

    /// Its memory; `None` where that is the host's.
    fn memory(&self) -> Option<DeviceMemory> {
        None
    }

    /// A counter of its energy, which grows from any beginning; `None` where nothing counts.
    fn energy_joules(&self) -> Option<f64> {
        None
    }
}

impl fmt::Debug for dyn Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Memory and what crosses to the host.
pub trait Buffers: Send + Sync {
    /// Memory for `len` numbers with arbitrary contents.
    fn alloc(&self, dtype: Dtype, len: usize) -> Memory;

    /// Is told that memory is handed out again, to whoever must not see what it holds.
    fn reused(&self, _memory: &mut Memory) {}

    /// The values, as f32, when everything before is computed.
    fn read<'a>(&self, from: &'a Tensor) -> Cow<'a, [f32]>;

    /// Sets the elements from `first` on.
    fn write(&self, to: &mut Tensor, first: usize, values: &[f32]);

    /// Copies `rows` rows; both have the same columns and number format.
    fn copy_rows(&self, from: &Tensor, from_row: usize, to: &mut Tensor, to_row: usize, rows: usize);

    /// Sets all elements.
    fn fill(&self, to: &mut Tensor, value: f32);

    /// Whether no element is an infinity or a NaN.
    fn is_finite(&self, x: &Tensor) -> bool;
}

/// Where the rotary parts of the heads lie in a row.
#[derive(Clone, Copy, Debug)]
pub struct RotaryColumns {
    /// First column of the first head's rotary part.
    pub offset: usize,
    /// From one head to the next.
    pub head_stride: usize,
    pub heads: usize,
}

/// What is computed row by row.
pub trait Rows {
    /// `y += x`.
    fn add(&self, x: &Tensor, y: &mut Tensor);

    /// `y = factor · y`.
    fn scale(&self, y: &mut Tensor, factor: f32);

    /// `y = cap · tanh(y / cap)`, of f32.
    fn soft_cap(&self, y: &mut Tensor, cap: f32);

    /// `y[t] += bias`.
    fn add_bias(&self, bias: &Tensor, y: &mut Tensor);

    /// `dbias = Σ_t dy[t]`, a chain over the rows; `sequences` as in [`Products::linear_dw`].
    fn bias_backward(&self, dy: &Tensor, sequences: &Ids, dbias: &mut Tensor, start: Start);

    /// Copies `width` columns of all rows of `x`, from column `from` on, to those of `y` from column `to` on.
    fn copy_columns(&self, x: &Tensor, from: usize, y: &mut Tensor, to: usize, width: usize);

    /// `y[H·T, width]`: the heads of `x[T, …]`, which lie at its columns `offset + h·stride`, one below the other.
    fn split_heads(&self, x: &Tensor, heads: usize, offset: usize, stride: usize, y: &mut Tensor);

    /// `y[T, H·width]`: the heads of `x[H·T, width]`, which lie one below the other, side by side.
    fn join_heads(&self, x: &Tensor, heads: usize, y: &mut Tensor);

    /// `y = w ⊙ x · rstd`, `rstd[t] = 1/√(mean(x[t]²) + ε)`.
    fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f32, y: &mut Tensor, rstd: &mut Tensor);

    /// Backward of [`Rows::rms_norm`]; `dw` is a chain over the rows; `sequences` as in [`Products::linear_dw`].
    fn rms_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        w: &Tensor,
        rstd: &Tensor,
        sequences: &Ids,
        dx: (&mut Tensor, Start),
        dw: (&mut Tensor, Start),
    );

    /// Turns the rotary parts `at` of each row of `x` by the row's position.
    fn rope(&self, x: &mut Tensor, positions: &Ids, rotary: &Rotary, at: RotaryColumns, direction: Direction);

    /// What a gate lets pass of `up`: `y = silu(gate) ⊙ up`, or as [`Gating`] says.
    fn gated(&self, gating: Gating, gate: &Tensor, up: &Tensor, y: &mut Tensor);

    /// Backward of [`Rows::gated`] for `operands`, gate and up, into `gradients`, theirs.
    fn gated_backward(&self, gating: Gating, dy: &Tensor, operands: [&Tensor; 2], gradients: [&mut Tensor; 2]);

    /// `y[t] = table[ids[t]]`.
    fn gather(&self, table: WeightRef, ids: &Ids, y: &mut Tensor);

    /// Backward of [`Rows::gather`]: row i is a chain over the t with `ids[t] = i`.
    fn gather_backward(&self, dy: &Tensor, ids: &Ids, dtable: &mut Tensor, start: Start);
}

/// Which rows a stacked matrix's parts are multiplied with.
#[derive(Clone, Copy)]
pub enum Groups<'a> {
    /// Part e with expert e's slots; the other operand is `[S, …]`.
    Slots(&'a Dispatch),
    /// The same, the other operand being `[T, …]`: slot s stands for the row of its token.
    Tokens(&'a Dispatch),
    /// As many parts, each with as many rows, one after the other.
    Equal(usize),
}

/// What an adapter adds to some rows of a y: see [`Products::add_low_rank`].
pub struct LowRankRows<'a> {
    /// Which, ascending.
    pub rows: &'a Ids,
    /// A and B, as [`Products::pack_low_rank`] gave them.
    pub packed: &'a Memory,
    /// α / r of the adapter, or α / √r.
    pub scale: f32,
}

/// What becomes of one matrix's gradient: `dy` and `dw`, and what `dw` begins with.
pub type WeightGradient<'a> = (&'a Tensor, (&'a mut Tensor, Start));

/// Products with matrices `w[N, K]`. An element of a result is one chain over k, or over the rows in `dw`, and does not
/// depend on the other rows.
pub trait Products {
    /// `y[T, N] = x[T, K] · w[N, K]ᵀ`, for several w with one x.
    fn linear(&self, precision: Precision, x: &Tensor, products: &mut [(WeightRef, &mut Tensor)]);

    /// `dx[T, K] = Σ dy[T, N] · w[N, K]` over some pairs (dy, w): a chain over the N of the first, then of the next. Of
    /// packed w the processor takes those [with whole rows](crate::Packed::with_whole_rows), other devices none.
    fn linear_dx(&self, precision: Precision, terms: &[(&Tensor, WeightRef)], dx: (&mut Tensor, Start));

    /// `dw[N, K] = dyᵀ · x`, for several dy with one x. The rows are those of whole sequences, which begin and end at
    /// `sequences` (`[sequences + 1]`): a device that adds several rows at once does so within a sequence, so that
    /// micro-batches, which cut between them, change no bit.
    fn linear_dw(&self, precision: Precision, x: &Tensor, sequences: &Ids, gradients: &mut [WeightGradient]);

    /// A `[r, K]` and B `[N, r]` of an adapter, for [`Products::add_low_rank`]; `None` on a device that has no such.
    fn pack_low_rank(&self, _a: &Tensor, _b: &Tensor) -> Option<Memory> {
        None
    }

    /// What adapters add to the products of one x: `y[t] += (s · x[t] · Aᵀ) · Bᵀ`, s its scale, for the rows t of
    /// each adapter, which have no other one; in f32, with the bits of these operations one by one.
    fn add_low_rank(&self, _x: &Tensor, _products: &mut [(&mut Tensor, Vec<LowRankRows>)]) {
        unreachable!("nothing was packed for this")
    }

    /// [`Products::linear`] of each part of stacked matrices `w[parts·N, K]` with its rows.
    fn grouped(&self, precision: Precision, x: &Tensor, groups: Groups, products: &mut [(WeightRef, &mut Tensor)]);

    /// `dx[S, K] = Σ dy[S, N] · w[e]`, as [`Products::linear_dx`].
    fn grouped_dx(
        &self,
        precision: Precision,
        dispatch: &Dispatch,
        terms: &[(&Tensor, WeightRef)],
        dx: (&mut Tensor, Start),
    );

    /// `dw[e] = dy[S, N]ᵀ · x` over the slots of each expert, for several dy; `sequences` are those of the tokens, as
    /// in [`Products::linear_dw`].
    fn grouped_dw(
        &self,
        precision: Precision,
        x: &Tensor,
        groups: Groups,
        sequences: &Ids,
        gradients: &mut [WeightGradient],
    );
}

/// What changes the weights.
pub trait Optimizer {
    /// One step of AdamW on the elements of `params` from `first` on, as many as the moments `m` and `v` and the
    /// gradients have, of which `scale · grads` are followed.
    fn adamw(
        &self,
        params: (&mut Tensor, usize),
        grads: &Tensor,
        moments: (&mut Tensor, &mut Tensor),
        rule: &AdamW,
        scale: f32,
    );

    /// `y = α·x + β·y`, element by element.
    fn blend(&self, alpha: f32, x: &Tensor, beta: f32, y: &mut Tensor);

    /// Σ x² of each [`SQUARES_CHUNK`](crate::SQUARES_CHUNK) elements, the last being fewer; on the host.
    fn squares(&self, x: &Tensor) -> Vec<f32>;
}
