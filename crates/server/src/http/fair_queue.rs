//! Whose turn it is to have a body read, a prompt planned, a picture made of its codes: one key's requests never wait
//! for another key's clients, and all of them together take bounded memory and few threads.

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
    /// For making pictures of codes, one at a time: each takes seconds and all cores, and the runtime's few threads are
    /// for planning, too.
    rendering: Arc<Semaphore>,
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
            rendering: Arc::new(Semaphore::new(1)),
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

    /// Makes one picture of its codes, on a thread where that may take its time, when those that were asked for before
    /// are made. Dropped while it waits, it makes none.
    ///
    /// # Errors
    /// What `work` says, or 500 if it fails otherwise.
    pub async fn render<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = take(&self.rendering).await?;
        // The permit is held as long as the work lasts, which a client that leaves does not end.
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        let made = task.await.map_err(|_| ApiError::internal("A picture could not be made."))?;
        made.map_err(ApiError::internal)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_made_one_at_a_time_in_the_order_in_which_they_were_asked_for() {
        let (queue, notes) = (FairQueue::new(1), Arc::new(Mutex::new(Vec::new())));
        let render = |number: usize| {
            let notes = Arc::clone(&notes);
            queue.render(move || {
                notes.lock().unwrap().push((number, "begins"));
                std::thread::sleep(Duration::from_millis(20));
                notes.lock().unwrap().push((number, "ends"));
                if number == 1 { Err("no picture".to_owned()) } else { Ok(number) }
            })
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let made = runtime.block_on(async { tokio::join!(render(0), render(1), render(2)) });
        assert_eq!((made.0.unwrap(), made.1.unwrap_err().status, made.2.unwrap()), (0, 500, 2));
        let expected: Vec<_> = (0..3).flat_map(|number| [(number, "begins"), (number, "ends")]).collect();
        assert_eq!(*notes.lock().unwrap(), expected);
    }
}
