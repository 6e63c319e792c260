//! Memory of the host, as slices.

use std::borrow::Cow;

use wels_device::{Buffers, Dtype, Memory, Tensor};
use wels_kernels::memory::Buffer;
use wels_kernels::{convert, optim};

use crate::Cpu;

enum CpuMemory {
    F32(Buffer),
    Bf16(Vec<u16>),
}

/// The values of an f32 tensor.
///
/// # Panics
/// If it is another device's, or of another number format.
pub(crate) fn slice(tensor: &Tensor) -> &[f32] {
    match memory(tensor) {
        CpuMemory::F32(buffer) => &buffer[..tensor.len()],
        CpuMemory::Bf16(_) => panic!("{tensor:?} is bf16 where the processor computes with f32"),
    }
}

/// As [`slice`].
///
/// # Panics
/// Likewise, and if the tensor shares its memory.
pub(crate) fn slice_mut(tensor: &mut Tensor) -> &mut [f32] {
    let len = tensor.len();
    match memory_mut(tensor) {
        CpuMemory::F32(buffer) => &mut buffer[..len],
        CpuMemory::Bf16(_) => panic!("a bf16 tensor where the processor computes with f32"),
    }
}

const FOREIGN: &str = "a tensor of the processor's memory";

fn memory(tensor: &Tensor) -> &CpuMemory {
    tensor.memory().downcast_ref().expect(FOREIGN)
}

fn memory_mut(tensor: &mut Tensor) -> &mut CpuMemory {
    tensor.memory_mut().downcast_mut().expect(FOREIGN)
}

impl Buffers for Cpu {
    fn alloc(&self, dtype: Dtype, len: usize) -> Memory {
        Box::new(match dtype {
            Dtype::F32 => CpuMemory::F32(Buffer::zeros(len)),
            Dtype::Bf16 => CpuMemory::Bf16(vec![0; len]),
        })
    }

    fn read<'a>(&self, from: &'a Tensor) -> Cow<'a, [f32]> {
        match memory(from) {
            CpuMemory::F32(buffer) => Cow::Borrowed(&buffer[..from.len()]),
            CpuMemory::Bf16(bits) => {
                let mut values = vec![0.0; from.len()];
                convert::from_bf16s(&bits[..from.len()], &mut values);
                Cow::Owned(values)
            }
        }
    }

    fn write(&self, to: &mut Tensor, first: usize, values: &[f32]) {
        let range = first..first + values.len();
        match memory_mut(to) {
            CpuMemory::F32(buffer) => buffer[range].copy_from_slice(values),
            CpuMemory::Bf16(bits) => convert::to_bf16s(values, &mut bits[range]),
        }
    }

    fn copy_rows(&self, from: &Tensor, from_row: usize, to: &mut Tensor, to_row: usize, rows: usize) {
        let cols = from.cols();
        assert_eq!(cols, to.cols(), "columns of {from:?} and {to:?}");
        let (source, target) = (from_row * cols..(from_row + rows) * cols, to_row * cols..(to_row + rows) * cols);
        match (memory(from), memory_mut(to)) {
            (CpuMemory::F32(from), CpuMemory::F32(to)) => to[target].copy_from_slice(&from[source]),
            (CpuMemory::Bf16(from), CpuMemory::Bf16(to)) => to[target].copy_from_slice(&from[source]),
            _ => panic!("a copy between number formats"),
        }
    }

    fn fill(&self, to: &mut Tensor, value: f32) {
        let len = to.len();
        match memory_mut(to) {
            CpuMemory::F32(buffer) => buffer[..len].fill(value),
            CpuMemory::Bf16(bits) => bits[..len].fill(convert::to_bf16(value)),
        }
    }

    fn is_finite(&self, x: &Tensor) -> bool {
        optim::first_non_finite(&self.read(x)).is_none()
    }
}
