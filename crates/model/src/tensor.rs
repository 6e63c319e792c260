//! Contiguous row-major matrices of `f32` in buffers that are used again.
//!
//! A training step needs the same buffers every time. A [`Pool`] keeps those that were given back, by size, and hands
//! out the one given back last, which is likeliest to be in a cache still; so in a steady state no memory is taken from
//! the system and no page is touched for the first time. Where lengths vary, as those of answers do, a buffer up to
//! twice as large as asked for is used again before a new one is taken. A new tensor's contents are whatever its buffer
//! held: whoever asks for one writes all of it. Only operations look into tensors; layers pass them on.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard};
use wels_kernels::memory;

/// Buffers given back, and the account of all of them. Clones share one account.
#[derive(Clone, Default)]
pub struct Pool(Arc<Mutex<Buffers>>);

#[derive(Default)]
struct Buffers {
    free: BTreeMap<usize, Vec<memory::Buffer>>,
    usage: Usage,
}

/// What a [`Pool`] holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in tensors that are alive.
    pub live_bytes: usize,
    /// The most that `live_bytes` has been.
    pub live_bytes_max: usize,
    /// Bytes taken from the system, alive or waiting to be used again.
    pub held_bytes: usize,
}

impl Pool {
    /// An empty pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// A tensor of `rows` × `cols` with arbitrary contents.
    pub fn tensor(&self, rows: usize, cols: usize) -> Tensor {
        let data = self.take(rows * cols);
        Tensor { rows, cols, buffer: Arc::new(Buffer { data, pool: self.clone() }) }
    }

    /// A tensor with a copy of `values`.
    pub fn copy_of(&self, rows: usize, cols: usize, values: &[f32]) -> Tensor {
        let mut tensor = self.tensor(rows, cols);
        tensor.copy_from_slice(values);
        tensor
    }

    /// How much memory is in use, and has been.
    pub fn usage(&self) -> Usage {
        self.lock().usage
    }

    /// Gives the buffers that wait to be used again back to the system.
    pub fn trim(&self) {
        let mut buffers = self.lock();
        buffers.free.clear();
        buffers.usage.held_bytes = buffers.usage.live_bytes;
    }

    fn take(&self, len: usize) -> memory::Buffer {
        let size = buffer_size(len);
        let mut buffers = self.lock();
        let free = buffers.free.range_mut(size..=2 * size).find_map(|(_, free)| free.pop());
        let taken = free.as_ref().map_or(size, |buffer| buffer.len()) * size_of::<f32>();
        let usage = &mut buffers.usage;
        usage.live_bytes += taken;
        usage.live_bytes_max = usage.live_bytes_max.max(usage.live_bytes);
        free.unwrap_or_else(|| {
            usage.held_bytes += taken;
            memory::Buffer::zeros(size)
        })
    }

    fn give_back(&self, buffer: memory::Buffer) {
        let mut buffers = self.lock();
        buffers.usage.live_bytes -= buffer.len() * size_of::<f32>();
        buffers.free.entry(buffer.len()).or_default().push(buffer);
    }

    fn lock(&self) -> MutexGuard<'_, Buffers> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The size of the buffer for `len` elements: up to an eighth more, so that lengths that vary (a server's batches)
/// share buffers.
fn buffer_size(len: usize) -> usize {
    let step = (len.next_power_of_two() / 8).max(64);
    len.next_multiple_of(step)
}

/// The memory of a tensor; goes back to its pool when the last tensor that shares it is gone.
struct Buffer {
    data: memory::Buffer,
    pool: Pool,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::replace(&mut self.data, memory::Buffer::zeros(0)));
    }
}

/// A matrix, row-major, without gaps. Clones share the buffer; only one that is not shared can be written to.
#[derive(Clone)]
pub struct Tensor {
    rows: usize,
    cols: usize,
    buffer: Arc<Buffer>,
}

impl Tensor {
    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self[i * self.cols..(i + 1) * self.cols]
    }

    /// The same contents in a buffer of its own: this one, unless it is shared.
    pub fn into_unshared(mut self) -> Tensor {
        if Arc::get_mut(&mut self.buffer).is_some() {
            return self;
        }
        self.buffer.pool.copy_of(self.rows, self.cols, &self)
    }
}

impl Deref for Tensor {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.buffer.data[..self.rows * self.cols]
    }
}

impl DerefMut for Tensor {
    /// # Panics
    /// If another tensor shares the buffer.
    fn deref_mut(&mut self) -> &mut [f32] {
        let len = self.rows * self.cols;
        let (rows, cols) = (self.rows, self.cols);
        let buffer = Arc::get_mut(&mut self.buffer);
        &mut buffer.unwrap_or_else(|| panic!("a shared [{rows}, {cols}] tensor is written to")).data[..len]
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor[{}, {}]", self.rows, self.cols)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_last_in_first_out() {
        let pool = Pool::new();
        let a = pool.tensor(10, 100);
        let b = pool.tensor(10, 100);
        let place = b.as_ptr();
        drop(a);
        drop(b);
        assert_eq!(pool.tensor(10, 100).as_ptr(), place);
        let usage = pool.usage();
        assert_eq!((usage.live_bytes, usage.live_bytes_max, usage.held_bytes), (0, 2 * 4 * 1024, 2 * 4 * 1024));
        pool.trim();
        assert_eq!(pool.usage().held_bytes, 0);
    }

    #[test]
    fn lengths_that_vary_share_buffers() {
        let pool = Pool::new();
        for rows in [1000, 600, 900, 777, 501, 1000] {
            let tensors = [pool.tensor(rows, 64), pool.tensor(rows, 64)];
            assert!(tensors.iter().all(|tensor| tensor.len() == rows * 64));
        }
        assert_eq!(pool.usage().held_bytes, 2 * 4 * 65536);
        drop(pool.tensor(100, 64)); // a tenth: one of its own
        assert!(pool.usage().held_bytes > 2 * 4 * 65536);
    }

    #[test]
    fn a_shared_tensor_is_copied_before_it_is_changed() {
        let pool = Pool::new();
        let a = pool.copy_of(1, 3, &[1.0, 2.0, 3.0]);
        let mut b = a.clone().into_unshared();
        b[0] = 9.0;
        assert_eq!((&a[..], &b[..]), (&[1.0, 2.0, 3.0][..], &[9.0, 2.0, 3.0][..]));
        drop(b);
        let place = a.as_ptr();
        assert_eq!(a.into_unshared().as_ptr(), place);
    }

    #[test]
    #[should_panic(expected = "a shared [1, 2] tensor is written to")]
    fn writing_to_a_shared_tensor_is_a_bug() {
        let mut a = Pool::new().copy_of(1, 2, &[1.0, 2.0]);
        let _b = a.clone();
        a[0] = 0.0;
    }
}
