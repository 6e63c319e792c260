//! Contiguous row-major matrices in a device's memory.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::pool::Storage;
use crate::{Device, Memory};

/// How a tensor's numbers are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dtype {
    /// 32-bit floating point.
    #[default]
    F32,
    /// The upper half of an f32.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        }
    }
}

/// A matrix `[rows, cols]`, row-major, without gaps.
///
/// Clones share the memory; only a tensor that does not share it can be written to, see [`Tensor::make_unshared`]. A
/// new one holds whatever its memory held: whoever asks for one writes all of it.
#[derive(Clone)]
pub struct Tensor {
    rows: usize,
    cols: usize,
    storage: Arc<Storage>,
}

impl Tensor {
    /// In memory of its own, of exactly this size; for what lives long.
    pub fn new(device: &Arc<dyn Device>, dtype: Dtype, rows: usize, cols: usize) -> Self {
        Self::in_storage(rows, cols, Storage::own(device, dtype, rows * cols))
    }

    /// All zeros, f32, in memory of its own.
    pub fn zeros(device: &Arc<dyn Device>, rows: usize, cols: usize) -> Self {
        let mut tensor = Self::new(device, Dtype::F32, rows, cols);
        tensor.fill(0.0);
        tensor
    }

    /// These values, row-major, as f32 in memory of its own.
    ///
    /// # Panics
    /// If they are not `rows · cols`.
    pub fn of(device: &Arc<dyn Device>, rows: usize, cols: usize, values: &[f32]) -> Self {
        assert_eq!(values.len(), rows * cols, "values of a [{rows}, {cols}] tensor");
        let mut tensor = Self::new(device, Dtype::F32, rows, cols);
        tensor.set(0, values);
        tensor
    }

    pub(crate) fn in_storage(rows: usize, cols: usize, storage: Storage) -> Self {
        Tensor { rows, cols, storage: Arc::new(storage) }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The number of elements, `rows · cols`.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How its numbers are kept.
    pub fn dtype(&self) -> Dtype {
        self.storage.dtype
    }

    /// Bytes of its elements.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype().bytes()
    }

    /// Where it lies.
    pub fn device(&self) -> &Arc<dyn Device> {
        self.storage.device()
    }

    /// The same memory with other rows and columns.
    ///
    /// # Panics
    /// If these are more or fewer elements.
    pub fn reshaped(self, rows: usize, cols: usize) -> Tensor {
        assert_eq!(rows * cols, self.len(), "elements of {self:?} as [{rows}, {cols}]");
        Tensor { rows, cols, storage: self.storage }
    }

    /// Whether the two share memory.
    pub fn shares_memory(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage)
    }

    /// Its values on the host, as f32; on a device whose memory is the host's nothing is copied. Waits for the device.
    pub fn to_host(&self) -> Cow<'_, [f32]> {
        self.device().read(self)
    }

    /// Sets the elements from `first` on, counted row by row, to values of the host.
    ///
    /// # Panics
    /// If they reach beyond the tensor, or it shares its memory.
    pub fn set(&mut self, first: usize, values: &[f32]) {
        assert!(first + values.len() <= self.len(), "{first} + {} elements of {self:?}", values.len());
        self.device().clone().write(self, first, values);
    }

    /// Sets all elements.
    ///
    /// # Panics
    /// If it shares its memory.
    pub fn fill(&mut self, value: f32) {
        self.device().clone().fill(self, value);
    }

    /// The same contents in memory of its own: this, unless it is shared.
    pub fn into_unshared(mut self) -> Tensor {
        self.make_unshared();
        self
    }

    /// Copies the contents into memory of its own if another tensor shares them, so that it can be written to.
    pub fn make_unshared(&mut self) {
        if Arc::get_mut(&mut self.storage).is_none() {
            let mut copy = Self::in_storage(self.rows, self.cols, self.storage.like());
            self.device().copy_rows(self, 0, &mut copy, 0, self.rows);
            *self = copy;
        }
    }

    /// The memory, for the device.
    #[inline]
    pub fn memory(&self) -> &Memory {
        self.storage.memory()
    }

    /// The memory, for the device.
    ///
    /// # Panics
    /// If another tensor shares it.
    #[inline]
    pub fn memory_mut(&mut self) -> &mut Memory {
        let (rows, cols) = (self.rows, self.cols);
        let storage = Arc::get_mut(&mut self.storage);
        storage.unwrap_or_else(|| panic!("a shared [{rows}, {cols}] tensor is written to")).memory_mut()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor[{}, {}]", self.rows, self.cols)
    }
}
