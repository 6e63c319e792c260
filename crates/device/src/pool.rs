//! A pool of memory for tensors, used again from step to step.
//!
//! A training step needs the same buffers every time. A [`Pool`] keeps those that were given back, by size, and hands
//! out the one given back last, which is likeliest to be in a cache still; so in a steady state no memory is taken from
//! the system and no page is touched for the first time. Where lengths vary, as those of answers do, a buffer up to
//! twice as large as asked for is used again before a new one is taken.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::{Device, Dtype, Memory, Tensor};

/// Memory given back to be used again, and the account of all of it. Clones share one account.
#[derive(Clone)]
pub struct Pool {
    device: Arc<dyn Device>,
    buffers: Arc<Mutex<Buffers>>,
}

#[derive(Default)]
struct Buffers {
    /// By their number format and length.
    free: BTreeMap<(Dtype, usize), Vec<Memory>>,
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
    /// An empty pool of a device's memory.
    pub fn new(device: Arc<dyn Device>) -> Self {
        Pool { device, buffers: Arc::default() }
    }

    /// Whose memory it is.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// An f32 tensor of `rows` × `cols` with arbitrary contents.
    pub fn tensor(&self, rows: usize, cols: usize) -> Tensor {
        Tensor::in_storage(rows, cols, self.take(Dtype::F32, rows * cols))
    }

    /// How much memory is in use, and has been.
    pub fn usage(&self) -> Usage {
        self.lock().usage
    }

    /// Gives the memory that waits to be used again back to the system.
    pub fn trim(&self) {
        let mut buffers = self.lock();
        buffers.free.clear();
        buffers.usage.held_bytes = buffers.usage.live_bytes;
    }

    fn take(&self, dtype: Dtype, len: usize) -> Storage {
        let size = buffer_size(len);
        let mut buffers = self.lock();
        let range = (dtype, size)..=(dtype, 2 * size);
        let free = buffers.free.range_mut(range).find_map(|((_, size), free)| Some((*size, free.pop()?)));
        let len = free.as_ref().map_or(size, |(len, _)| *len);
        let bytes = len * dtype.bytes();
        let usage = &mut buffers.usage;
        usage.live_bytes += bytes;
        usage.live_bytes_max = usage.live_bytes_max.max(usage.live_bytes);
        if free.is_none() {
            usage.held_bytes += bytes;
        }
        drop(buffers);
        let memory = match free {
            None => self.device.alloc(dtype, len),
            Some((_, mut memory)) => {
                self.device.reused(&mut memory);
                memory
            }
        };
        Storage { memory: Some(memory), dtype, len, device: self.device.clone(), pool: Some(self.clone()) }
    }

    fn give_back(&self, dtype: Dtype, len: usize, memory: Memory) {
        let mut buffers = self.lock();
        buffers.usage.live_bytes -= len * dtype.bytes();
        buffers.free.entry((dtype, len)).or_default().push(memory);
    }

    fn lock(&self) -> MutexGuard<'_, Buffers> {
        self.buffers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The size of the buffer for `len` elements: up to an eighth more, so that lengths that vary (a server's batches)
/// share buffers.
fn buffer_size(len: usize) -> usize {
    let step = (len.next_power_of_two() / 8).max(64);
    len.next_multiple_of(step)
}

/// The memory of a tensor; goes back to its pool, if it has one, when the last tensor that shares it is gone.
pub(crate) struct Storage {
    /// There until it is dropped.
    memory: Option<Memory>,
    pub dtype: Dtype,
    len: usize,
    pub device: Arc<dyn Device>,
    pool: Option<Pool>,
}

impl Storage {
    /// Of exactly `len` elements, and of no pool.
    pub fn own(device: &Arc<dyn Device>, dtype: Dtype, len: usize) -> Storage {
        Storage { memory: Some(device.alloc(dtype, len)), dtype, len, device: device.clone(), pool: None }
    }

    /// Other memory of the same size, from the same place.
    pub fn like(&self) -> Storage {
        match &self.pool {
            Some(pool) => pool.take(self.dtype, self.len),
            None => Storage::own(&self.device, self.dtype, self.len),
        }
    }

    pub fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("there until it is dropped")
    }

    pub fn memory_mut(&mut self) -> &mut Memory {
        self.memory.as_mut().expect("there until it is dropped")
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let (Some(pool), Some(memory)) = (&self.pool, self.memory.take()) {
            pool.give_back(self.dtype, self.len, memory);
        }
    }
}
