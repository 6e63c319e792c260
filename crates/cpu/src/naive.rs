//! A device for tests: the plain loops of `wels_kernels::reference`, over memory that is poisoned and that nobody else
//! can look into.
//!
//! Memory is an allocation of its own type, so whatever takes a tensor's slice without asking the device panics. It
//! holds NaNs with a payload of their own ([`POISON`]) when it is taken and when a pool hands it out again, so whatever
//! reads what nothing wrote gives NaN. What crosses between host and device is counted. By the contract of the kernels
//! all results have the bits of the processor's; whole suites of tests run on both.

mod attention;
mod compressed;
mod images;
mod pictures;
mod products;
mod rest;
mod sparse;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wels_device::{Buffers, Compressed, Device, DeviceMemory, Dtype, Images, Memory, SparseAttention, Tensor};
use wels_kernels::reference::convert;

/// The bits of what was never written.
pub const POISON: u32 = 0x7fc0_dead;

/// The device.
#[derive(Default)]
pub struct Naive {
    reads: AtomicUsize,
    writes: AtomicUsize,
    memory: Option<DeviceMemory>,
}

/// Transfers between host and device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostTransfers {
    /// Tensors read by the host.
    pub reads: usize,
    /// Ranges of tensors written by the host.
    pub writes: usize,
}

impl Naive {
    /// One whose transfers are counted from 0.
    pub fn new() -> Arc<Naive> {
        Arc::default()
    }

    /// One that says that it has so much memory.
    pub fn with_memory(memory: DeviceMemory) -> Arc<Naive> {
        Arc::new(Naive { memory: Some(memory), ..Naive::default() })
    }

    /// What has crossed so far.
    pub fn host_transfers(&self) -> HostTransfers {
        HostTransfers { reads: self.reads.load(Ordering::Relaxed), writes: self.writes.load(Ordering::Relaxed) }
    }
}

impl Device for Naive {
    fn name(&self) -> &str {
        "naive"
    }

    fn memory(&self) -> Option<DeviceMemory> {
        self.memory
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
}

/// Memory of the device; values of a bf16 tensor are kept rounded.
struct Cells(Vec<f32>);

fn cells(tensor: &Tensor) -> &[f32] {
    let cells: &Cells = tensor.memory().downcast_ref().expect("a tensor of the naive device's");
    &cells.0[..tensor.len()]
}

fn cells_mut(tensor: &mut Tensor) -> &mut [f32] {
    let len = tensor.len();
    let cells: &mut Cells = tensor.memory_mut().downcast_mut().expect("a tensor of the naive device's");
    &mut cells.0[..len]
}

/// Of an operand that is computed with.
fn values(tensor: &Tensor) -> &[f32] {
    assert_eq!(tensor.dtype(), Dtype::F32, "{tensor:?} where f32 is computed with");
    cells(tensor)
}

fn values_mut(tensor: &mut Tensor) -> &mut [f32] {
    assert_eq!(tensor.dtype(), Dtype::F32, "{tensor:?} where f32 is computed with");
    cells_mut(tensor)
}

impl Buffers for Naive {
    fn alloc(&self, _dtype: Dtype, len: usize) -> Memory {
        Box::new(Cells(vec![f32::from_bits(POISON); len]))
    }

    fn reused(&self, memory: &mut Memory) {
        let cells: &mut Cells = memory.downcast_mut().expect("memory of the naive device's");
        cells.0.fill(f32::from_bits(POISON));
    }

    fn read<'a>(&self, from: &'a Tensor) -> Cow<'a, [f32]> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        Cow::Owned(cells(from).to_vec())
    }

    fn write(&self, to: &mut Tensor, first: usize, values: &[f32]) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let kept = keeper(to.dtype());
        cells_mut(to)[first..].iter_mut().zip(values).for_each(|(cell, value)| *cell = kept(*value));
    }

    fn copy_rows(&self, from: &Tensor, from_row: usize, to: &mut Tensor, to_row: usize, rows: usize) {
        let cols = from.cols();
        assert_eq!((cols, from.dtype()), (to.cols(), to.dtype()), "a copy of {from:?} to {to:?}");
        let source = &cells(from)[from_row * cols..(from_row + rows) * cols];
        cells_mut(to)[to_row * cols..(to_row + rows) * cols].copy_from_slice(source);
    }

    fn fill(&self, to: &mut Tensor, value: f32) {
        let value = keeper(to.dtype())(value);
        cells_mut(to).fill(value);
    }

    fn is_finite(&self, x: &Tensor) -> bool {
        cells(x).iter().all(|x| x.is_finite())
    }
}

/// What becomes of a value that is kept in a number format.
fn keeper(dtype: Dtype) -> fn(f32) -> f32 {
    match dtype {
        Dtype::F32 => |value| value,
        Dtype::Bf16 => |value| convert::from_bf16(convert::to_bf16(value)),
    }
}
