//! A pool of memory for tensors, used again from step to step.
//!
//! A training step needs the same buffers every time. A [`Pool`] keeps those that were given back, by size, and hands
//! out the one given back last, which is likeliest to be in a cache still; so in a steady state no memory is taken from
//! the system and no page is touched for the first time. A device that keeps steps gets the oldest instead, so that a
//! step that takes and gives back the same as the one before it gets the same. Where lengths vary, as those of answers
//! do, a buffer up to twice as large as asked for is used again before a new one is taken.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::{Device, Dtype, Memory, Tensor};

/// Memory given back to be used again, and the account of all of it. Clones share one account.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    device: Arc<dyn Device>,
    /// Whether the oldest memory is handed out, and not what was given back last.
    oldest: bool,
    buffers: Mutex<Buffers>,
}

#[derive(Default)]
struct Buffers {
    /// How often memory was taken from the device.
    taken: u64,
    /// By size, sorted. Sizes are few and every operation looks for some: a map took twice the instructions.
    free: Vec<Free>,
    usage: Usage,
}

/// What was given back of one size.
struct Free {
    size: Size,
    memory: Vec<Aged>,
}

/// Memory of the device's, and the how manyth it was when it was taken.
struct Aged(u64, Memory);

impl Free {
    fn pop(&mut self, oldest: bool) -> Option<Aged> {
        match oldest {
            false => self.memory.pop(),
            true => {
                let ages = self.memory.iter().enumerate();
                let (place, _) = ages.min_by_key(|(_, Aged(age, _))| *age)?;
                Some(self.memory.swap_remove(place))
            }
        }
    }
}

/// Number format and length.
type Size = (Dtype, usize);

impl Buffers {
    /// Memory for `len` numbers or up to twice as many, and for how many.
    fn pop(&mut self, (dtype, len): Size, oldest: bool) -> Option<(usize, Aged)> {
        let first = self.free.partition_point(|free| free.size < (dtype, len));
        let mut large_enough = self.free[first..].iter_mut().take_while(|free| free.size <= (dtype, 2 * len));
        large_enough.find_map(|free| Some((free.size.1, free.pop(oldest)?)))
    }

    fn push(&mut self, size: Size, memory: Aged) {
        let place = self.free.binary_search_by_key(&size, |free| free.size);
        let place = place.unwrap_or_else(|place| {
            self.free.insert(place, Free { size, memory: Vec::new() });
            place
        });
        self.free[place].memory.push(memory);
    }
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
        Pool(Arc::new(Shared { oldest: device.keeps_steps(), device, buffers: Mutex::default() }))
    }

    /// Whose memory it is.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.0.device
    }

    /// An f32 tensor of `rows` × `cols` with arbitrary contents.
    pub fn tensor(&self, rows: usize, cols: usize) -> Tensor {
        self.tensor_of(Dtype::F32, rows, cols)
    }

    /// A tensor of `rows` × `cols` with arbitrary contents.
    pub fn tensor_of(&self, dtype: Dtype, rows: usize, cols: usize) -> Tensor {
        Tensor::in_storage(rows, cols, self.take(dtype, rows * cols))
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
        let free = buffers.pop((dtype, size), self.0.oldest);
        let len = free.as_ref().map_or(size, |(len, _)| *len);
        let bytes = len * dtype.bytes();
        let usage = &mut buffers.usage;
        usage.live_bytes += bytes;
        usage.live_bytes_max = usage.live_bytes_max.max(usage.live_bytes);
        if free.is_none() {
            usage.held_bytes += bytes;
            buffers.taken += 1;
        }
        let taken = buffers.taken;
        drop(buffers);
        let memory = match free {
            None => Aged(taken, self.device().alloc(dtype, len)),
            Some((_, mut memory)) => {
                self.device().reused(&mut memory.1);
                memory
            }
        };
        Storage { memory: Some(memory), dtype, len, home: Home::Pool(self.clone()) }
    }

    fn give_back(&self, dtype: Dtype, len: usize, memory: Aged) {
        let mut buffers = self.lock();
        buffers.usage.live_bytes -= len * dtype.bytes();
        buffers.push((dtype, len), memory);
    }

    fn lock(&self) -> MutexGuard<'_, Buffers> {
        self.0.buffers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
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
    memory: Option<Aged>,
    pub dtype: Dtype,
    len: usize,
    home: Home,
}

/// Where memory comes from.
enum Home {
    Device(Arc<dyn Device>),
    Pool(Pool),
}

impl Storage {
    /// Of exactly `len` elements, and of no pool.
    pub fn own(device: &Arc<dyn Device>, dtype: Dtype, len: usize) -> Storage {
        Storage { memory: Some(Aged(0, device.alloc(dtype, len))), dtype, len, home: Home::Device(device.clone()) }
    }

    /// Other memory of the same size, from the same place.
    pub fn like(&self) -> Storage {
        match &self.home {
            Home::Device(device) => Storage::own(device, self.dtype, self.len),
            Home::Pool(pool) => pool.take(self.dtype, self.len),
        }
    }

    /// Where it lies.
    pub fn device(&self) -> &Arc<dyn Device> {
        match &self.home {
            Home::Device(device) => device,
            Home::Pool(pool) => pool.device(),
        }
    }

    #[inline]
    pub fn memory(&self) -> &Memory {
        &self.memory.as_ref().expect("there until it is dropped").1
    }

    #[inline]
    pub fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory.as_mut().expect("there until it is dropped").1
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let (Home::Pool(pool), Some(memory)) = (&self.home, self.memory.take()) {
            pool.give_back(self.dtype, self.len, memory);
        }
    }
}
