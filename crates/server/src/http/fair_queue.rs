//! Whose turn it is to have a body read and a prompt planned: one key's requests never wait for another key's clients,
//! and all of them together take bounded memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::wire::ApiError;

/// Bodies of one key that may arrive at once; more wait for these.
const OF_KEY_MAX: usize = 4;
/// Bodies of the greatest size that fit into what all keys' bodies may take together.
const BODIES_MAX: usize = 32;
/// Bytes of a body that is small.
const SMALL_BYTES: usize = 64 << 10;
/// Keys for which there is a queue, before queues of keys without requests are given up.
const KEYS_MAX: usize = 1024;

/// The queues of all keys.
pub(super) struct FairQueue {
    keys: Mutex<HashMap<i64, Weak<KeyQueue>>>,
    /// Bytes of bodies that have arrived and are not yet planned.
    buffered: Arc<AtomicUsize>,
    buffered_max: usize,
    /// For planning small bodies.
    small: Arc<Semaphore>,
    /// For planning larger ones, one at a time: encoding takes up to 200 bytes of memory for each of a text's.
    large: Arc<Semaphore>,
}

/// The requests of one key.
pub(super) struct KeyQueue {
    reading: Arc<Semaphore>,
    /// One: however many a key sends, it plans one at a time.
    planning: Arc<Semaphore>,
}

/// Held while something is done; given back when dropped.
pub(super) struct Permit {
    _key: Arc<KeyQueue>,
    _permits: [Option<OwnedSemaphorePermit>; 2],
}

/// Bytes that count as buffered until this is dropped.
pub(super) struct Buffered {
    total: Arc<AtomicUsize>,
    bytes: usize,
    max: usize,
}

impl FairQueue {
    /// For bodies of at most so many bytes.
    pub fn new(body_bytes_max: usize) -> FairQueue {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        FairQueue {
            keys: Mutex::default(),
            buffered: Arc::default(),
            buffered_max: BODIES_MAX * body_bytes_max,
            small: Arc::new(Semaphore::new(threads.clamp(2, 8))),
            large: Arc::new(Semaphore::new(1)),
        }
    }

    /// The queue of a key. It is kept as long as somebody has it.
    pub fn of(&self, key: i64) -> Arc<KeyQueue> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key_queue) = keys.get(&key).and_then(Weak::upgrade) {
            return key_queue;
        }
        if keys.len() >= KEYS_MAX {
            keys.retain(|_, key_queue| key_queue.strong_count() > 0);
        }
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        let key_queue = Arc::new(KeyQueue { reading: semaphore(OF_KEY_MAX), planning: semaphore(1) });
        keys.insert(key, Arc::downgrade(&key_queue));
        key_queue
    }

    /// What counts the bytes of a body while they arrive.
    pub fn buffered(&self) -> Buffered {
        Buffered { total: Arc::clone(&self.buffered), bytes: 0, max: self.buffered_max }
    }

    /// A permit to plan a body of so many bytes, to be held where the work is done.
    pub async fn plan(&self, key_queue: &Arc<KeyQueue>, bytes: usize) -> Result<Permit, ApiError> {
        let lane = if bytes <= SMALL_BYTES { &self.small } else { &self.large };
        // The key's own first: a key that waits for itself holds nobody's lane.
        let own = take(&key_queue.planning).await?;
        Ok(Permit { _key: Arc::clone(key_queue), _permits: [Some(own), Some(take(lane).await?)] })
    }
}

impl KeyQueue {
    /// A permit to have a body read.
    ///
    /// # Errors
    /// 429 where other bodies of the key have not arrived within `timeout`.
    pub async fn read(self: &Arc<KeyQueue>, timeout: Duration) -> Result<Permit, ApiError> {
        let busy = || {
            let message = format!("The bodies of {OF_KEY_MAX} other requests of this key have not arrived yet.");
            ApiError::rate_limit(message, Some(1))
        };
        let permit = tokio::time::timeout(timeout, take(&self.reading)).await.map_err(|_| busy())??;
        Ok(Permit { _key: Arc::clone(self), _permits: [Some(permit), None] })
    }
}

async fn take(semaphore: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ApiError> {
    Arc::clone(semaphore).acquire_owned().await.map_err(|_| ApiError::internal("The server has ended."))
}

impl Buffered {
    /// Those that were added.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts bytes that have arrived.
    ///
    /// # Errors
    /// 503 if all bodies together are too many bytes.
    pub fn add(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.bytes += bytes;
        match self.total.fetch_add(bytes, Relaxed) + bytes > self.max {
            true => Err(ApiError::overloaded("Too many large requests arrive at once.", 1)),
            false => Ok(()),
        }
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Relaxed);
    }
}
