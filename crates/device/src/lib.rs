//! What a model computes with, wherever that is: tensors, and a device's coarse operations as one object-safe trait.
//!
//! A layer or a step of training calls some forty operations on [`Tensor`]s; a [`Device`] carries them out in memory
//! that only it looks into. The processor is one device (`wels-cpu`), and whatever else implements [`Device`] runs the
//! same models. The operations are coarse (a product, an attention, a loss), so a virtual call for each costs nothing.
//!
//! **What a device promises.** Results are a function of the operands alone: not of the number of threads, of what else
//! is in a batch, or of what it computed before. On the processor they are the bits of the plain loops in
//! `wels_kernels::reference`; another kind of device may round differently, but the same way every time.
//!
//! **Host and device.** Numbers cross in four places only: [`Tensor::to_host`], [`Tensor::set`], [`Ids`] (token ids and
//! places, small and made on the host) and [`Weights::pack`]. What the host has to know of a pass, such as losses and
//! loads of experts, it reads when the pass is over.
//!
//! Shape letters: T tokens, D model width, H heads, E experts, K experts a token, S = T·K slots, V vocabulary.

#![forbid(unsafe_code)]

mod attention;
mod coefficient;
mod compressed;
mod experts;
mod head;
mod ids;
mod images;
mod link;
mod pictures;
mod pool;
mod sparse;
mod tensor;
mod weights;

mod device;

pub use attention::{
    Attention, AttentionGradients, AttentionInputs, CachePages, ColumnHeads, ExpandedQuery, LatentQuery,
    PagedSequences, exact_cache,
};
pub use coefficient::{Coefficient, Policy, PolicyTerm};
pub use compressed::{Compressed, EntryOperands, EntryResults, PageRows};
pub use device::{
    Buffers, Device, DeviceMemory, Groups, KernelTime, LowRankRows, Memory, Optimizer, Products, RotaryColumns, Rows,
    WeightGradient,
};
pub use experts::{Balance, Dispatch, Experts, experts_in_order};
pub use head::{Head, HeadGradients, TeacherHead};
pub use ids::{Ids, Rotary};
pub use images::{Images, LayerNormOperands};
pub use link::Link;
pub use pictures::Pictures;
pub use pool::{Pool, Usage};
pub use sparse::{Chosen, IndexOperands, ScoreGradients, SparseAttention};
pub use tensor::{Dtype, Tensor};
pub use weights::{Packed, PackedMatrix, Source, WeightRef, Weights};

pub use wels_kernels::attention::Shape as AttentionShape;
pub use wels_kernels::attention::compressed::{Compressed as EntryAttention, Span};
pub use wels_kernels::attention::index::Indexer;
pub use wels_kernels::attention::latent::LatentLayout;
pub use wels_kernels::attention::paged::{CacheDtype, Layout as KvLayout, PAGE, RowLayout, Sequence};
pub use wels_kernels::compress::{Compression, Stretch};
pub use wels_kernels::distil::Divergence;
pub use wels_kernels::gemm::{Precision, Start};
pub use wels_kernels::group_norm::{Activation, GroupNorm};
pub use wels_kernels::head::IGNORE;
pub use wels_kernels::optim::{AdamW, SQUARES_CHUNK};
pub use wels_kernels::quant::{BlockType, MemoryBudget};
pub use wels_kernels::rope::Direction;
pub use wels_kernels::router::{Router, Scoring};
pub use wels_kernels::streams::Mixing;
pub use wels_kernels::swiglu::Gating;
pub use wels_kernels::windows::{Step, Windows};

/// Arithmetic on the host that belongs to no device: number formats of files, random numbers, tables.
pub mod host {
    pub use wels_kernels::math::scalar;
    pub use wels_kernels::quant::blocks;
    pub use wels_kernels::rope::{Layout, Scaling, Table, frequencies};
    pub use wels_kernels::{convert, random, sample};
}
