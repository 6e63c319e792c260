//! Tensors as memory of a driver, and what crosses to the host.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use wels_device::host::convert;
use wels_device::{Buffers, Dtype, Ids, Memory, Rotary, Tensor};

use crate::Cuda;
use crate::launch::words::{self, Word};
use crate::launch::{Buffer, Driver, Fault};
use crate::pieces::{RowGroups, pieces};

/// What the traits of a device cannot report ends the program: memory that is used up, or a lost card.
pub(crate) fn done<T>(result: Result<T, Fault>) -> T {
    result.unwrap_or_else(|fault| panic!("{fault}"))
}

/// The memory of a tensor.
pub(crate) struct Numbers {
    pub buffer: Buffer,
    pub dtype: Dtype,
    /// The same rounded to bf16, for products that have asked for it since these were written.
    rounded: OnceLock<Buffer>,
}

impl Numbers {
    /// These numbers.
    pub fn of(dtype: Dtype, buffer: Buffer) -> Numbers {
        Numbers { buffer, dtype, rounded: OnceLock::new() }
    }

    /// The numbers rounded to bf16, kept until they change; `round` makes them of f32.
    pub fn rounded(&self, round: impl FnOnce(&Buffer) -> Buffer) -> &Buffer {
        match self.dtype {
            Dtype::Bf16 => &self.buffer,
            Dtype::F32 => self.rounded.get_or_init(|| round(&self.buffer)),
        }
    }
}

const FOREIGN: &str = "a tensor of a CUDA device's memory";

pub(crate) fn numbers(tensor: &Tensor) -> &Numbers {
    tensor.memory().downcast_ref().expect(FOREIGN)
}

pub(crate) fn numbers_mut(tensor: &mut Tensor) -> &mut Numbers {
    let numbers: &mut Numbers = tensor.memory_mut().downcast_mut().expect(FOREIGN);
    numbers.rounded.take();
    numbers
}

/// The memory of an f32 tensor.
///
/// # Panics
/// If it is another device's, or of another number format.
pub(crate) fn f32s(tensor: &Tensor) -> &Buffer {
    let numbers = numbers(tensor);
    assert_eq!(numbers.dtype, Dtype::F32, "{tensor:?} where f32 is computed with");
    &numbers.buffer
}

/// As [`f32s`].
///
/// # Panics
/// Likewise, and if the tensor shares its memory.
pub(crate) fn f32s_mut(tensor: &mut Tensor) -> &mut Buffer {
    let numbers = numbers_mut(tensor);
    assert_eq!(numbers.dtype, Dtype::F32, "a tensor where f32 is computed with");
    &mut numbers.buffer
}

/// The memory of a bf16 tensor.
///
/// # Panics
/// As [`f32s`].
pub(crate) fn bf16s(tensor: &Tensor) -> &Buffer {
    let numbers = numbers(tensor);
    assert_eq!(numbers.dtype, Dtype::Bf16, "{tensor:?} where bf16 is computed with");
    &numbers.buffer
}

/// As [`bf16s`].
///
/// # Panics
/// Likewise, and if the tensor shares its memory.
pub(crate) fn bf16s_mut(tensor: &mut Tensor) -> &mut Buffer {
    let numbers = numbers_mut(tensor);
    assert_eq!(numbers.dtype, Dtype::Bf16, "a tensor where bf16 is computed with");
    &mut numbers.buffer
}

impl Cuda {
    /// bf16 as f32.
    pub(crate) fn wide(&self, x: &Buffer, elements: usize) -> Buffer {
        let mut wide = self.temporary(elements);
        self.launch("widen").over(elements).read(x).write(&mut wide).long(elements).run();
        wide
    }

    /// A bf16 tensor in f32.
    pub(crate) fn widened(&self, x: &Tensor) -> Tensor {
        let mut wide = self.wide_like(x);
        self.launch("widen").over(x.len()).read(bf16s(x)).write(f32s_mut(&mut wide)).long(x.len()).run();
        wide
    }

    /// A tensor in f32 of the same shape, with arbitrary contents.
    pub(crate) fn wide_like(&self, x: &Tensor) -> Tensor {
        Tensor::new(x.device(), Dtype::F32, x.rows(), x.cols())
    }

    /// Rounds an f32 tensor into one of bf16.
    pub(crate) fn narrow(&self, wide: &Tensor, to: &mut Tensor) {
        assert_eq!(wide.len(), to.len(), "{wide:?} into {to:?}");
        let (rows, cols) = (to.rows(), to.cols());
        self.round_to(f32s(wide), rows, cols, bf16s_mut(to));
    }

    /// Memory for `len` numbers of 32 bits, for as long as one operation takes.
    pub(crate) fn temporary(&self, len: usize) -> Buffer {
        done(Buffer::new(&self.driver, len * 4))
    }

    /// Numbers of the host in memory of the driver.
    pub(crate) fn upload<T: Word>(&self, values: &[T]) -> Buffer {
        upload(&self.driver, values)
    }

    /// The device's copy of a list.
    pub(crate) fn ids<'a>(&self, ids: &'a Ids) -> &'a Listed {
        let make = || -> Memory {
            let (derived, groups) = (OnceLock::new(), OnceLock::new());
            Box::new(Listed { list: self.upload(&ids[..]), max: ids.iter().copied().max(), derived, groups })
        };
        ids.uploaded().get_or_init(make).downcast_ref().expect("a list that a CUDA device uploaded")
    }

    /// The device's cosines and sines.
    pub(crate) fn rotary<'a>(&self, rotary: &'a Rotary) -> &'a [Buffer; 2] {
        let make = || -> Memory {
            let table = rotary.table();
            let (mut cosines, mut sines) = (Vec::new(), Vec::new());
            for position in 0..table.max_positions() {
                let (cos, sin) = table.at(position as u32);
                cosines.extend_from_slice(cos);
                sines.extend_from_slice(sin);
            }
            Box::new([self.upload(&cosines), self.upload(&sines)])
        };
        rotary.uploaded().get_or_init(make).downcast_ref().expect("a table that a CUDA device uploaded")
    }
}

pub(crate) fn upload<T: Word>(driver: &Arc<dyn Driver>, values: &[T]) -> Buffer {
    done(Buffer::of(driver, words::bytes(values)))
}

/// The first `len` numbers of a buffer, on the host.
pub(crate) fn download<T: Word + Default>(buffer: &Buffer, len: usize) -> Vec<T> {
    let mut values = vec![T::default(); len];
    done(buffer.copy_out(0, words::bytes_mut(&mut values)));
    values
}

/// A list of whole numbers, and what an operation has derived from it on the host.
pub(crate) struct Listed {
    pub list: Buffer,
    max: Option<u32>,
    derived: OnceLock<Memory>,
    groups: OnceLock<RowGroups>,
}

impl Listed {
    /// Sees to it that a kernel finds what the numbers stand for.
    ///
    /// # Panics
    /// If one of them is not below `count`.
    pub fn assert_below(&self, count: usize, what: &str) {
        assert!(self.max.is_none_or(|max| (max as usize) < count), "{what} {:?} of {count}", self.max);
    }

    /// What `make` derives from the list, made once: a list has one use.
    pub fn derived<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> T) -> &T {
        let made = self.derived.get_or_init(|| Box::new(make()));
        made.downcast_ref().expect("a list that has one use")
    }

    /// Groups of the rows of sequences, made once.
    pub fn groups(&self, make: impl FnOnce() -> RowGroups) -> &RowGroups {
        self.groups.get_or_init(make)
    }
}

impl Buffers for Cuda {
    fn alloc(&self, dtype: Dtype, len: usize) -> Memory {
        Box::new(Numbers::of(dtype, done(Buffer::new(&self.driver, len * dtype.bytes()))))
    }

    fn reused(&self, memory: &mut Memory) {
        let numbers = memory.downcast_mut::<Numbers>().expect("memory of a CUDA device");
        numbers.rounded.take();
        numbers.buffer.poison();
    }

    fn read<'a>(&self, from: &'a Tensor) -> Cow<'a, [f32]> {
        let Numbers { buffer, dtype, .. } = numbers(from);
        Cow::Owned(match dtype {
            Dtype::F32 => download(buffer, from.len()),
            Dtype::Bf16 => {
                let mut values = vec![0.0; from.len()];
                convert::from_bf16s(&download(buffer, from.len()), &mut values);
                values
            }
        })
    }

    fn write(&self, to: &mut Tensor, first: usize, values: &[f32]) {
        assert!(first + values.len() <= to.len(), "{first} + {} elements of {to:?}", values.len());
        let Numbers { buffer, dtype, .. } = numbers_mut(to);
        done(match dtype {
            Dtype::F32 => buffer.copy_in(first * 4, words::bytes(values)),
            Dtype::Bf16 => {
                let mut bits = vec![0; values.len()];
                convert::to_bf16s(values, &mut bits);
                buffer.copy_in(first * 2, words::bytes(&bits))
            }
        });
    }

    fn copy_rows(&self, from: &Tensor, from_row: usize, to: &mut Tensor, to_row: usize, rows: usize) {
        let (cols, dtype) = (from.cols(), from.dtype());
        assert_eq!((cols, dtype), (to.cols(), to.dtype()), "a copy of {from:?} to {to:?}");
        assert!(from_row + rows <= from.rows() && to_row + rows <= to.rows(), "{rows} rows of {from:?} to {to:?}");
        let row = cols * dtype.bytes();
        let target = &mut numbers_mut(to).buffer;
        done(target.copy_from(to_row * row, &numbers(from).buffer, from_row * row, rows * row));
    }

    fn fill(&self, to: &mut Tensor, value: f32) {
        let len = to.len();
        let Numbers { buffer, dtype, .. } = numbers_mut(to);
        match dtype {
            Dtype::F32 => done(buffer.fill(value.to_bits(), len)),
            Dtype::Bf16 if len.is_multiple_of(2) => {
                let bits = u32::from(convert::to_bf16(value));
                done(buffer.fill(bits << 16 | bits, len / 2));
            }
            Dtype::Bf16 => {
                let bits = convert::to_bf16(value);
                self.launch("fill_bf16").over(len).write(buffer).int(bits.into()).long(len).run();
            }
        }
    }

    fn is_finite(&self, x: &Tensor) -> bool {
        let mut found = self.upload(&[0u32]);
        let Numbers { buffer, dtype, .. } = numbers(x);
        let launch = match dtype {
            Dtype::F32 => self.launch("find_non_finite").over(x.len()),
            Dtype::Bf16 => self.launch("find_non_finite_bf16").over(pieces(1, x.len())),
        };
        launch.read(buffer).write(&mut found).long(x.len()).run();
        download::<u32>(&found, 1) == [0]
    }
}
