//! NVIDIA's library for several cards, of which only sending and receiving is used: its sums have no fixed order.
//!
//! It is looked for where the compiler is ([`libraries`]); a machine without it has no such world, and is told why.

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::sys::CUstream;
use libloading::Library;

use super::card::Card;
use super::transport::{Piece, Pieces, Transport};
use super::{Fault, libraries};

const LIBRARY: &str = "libnccl.so.2";
const SUCCESS: c_int = 0;
/// `ncclInt8`.
const BYTES: c_int = 0;

type Handle = *mut c_void;
type InitAll = unsafe extern "C" fn(*mut Handle, c_int, *const c_int) -> c_int;
type Group = unsafe extern "C" fn() -> c_int;
type SendTo = unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Handle, CUstream) -> c_int;
type ReceiveFrom = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Handle, CUstream) -> c_int;
type Abort = unsafe extern "C" fn(Handle) -> c_int;
type Version = unsafe extern "C" fn(*mut c_int) -> c_int;
type Words = unsafe extern "C" fn(c_int) -> *const c_char;

/// The functions that are called, of any version 2.7 or newer.
struct Nccl {
    init_all: InitAll,
    group_start: Group,
    group_end: Group,
    send: SendTo,
    receive: ReceiveFrom,
    abort: Abort,
    words: Words,
    version: c_int,
    /// Has the code that the others point to.
    _library: Library,
}

/// A function of a library.
///
/// # Safety
/// It is of this type, and not called when the library is gone.
unsafe fn symbol<T: Copy>(library: &Library, name: &str) -> Result<T, String> {
    // SAFETY: the caller's.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found.map(|symbol| *symbol).map_err(|_| format!("the NCCL ({LIBRARY}) that was found has no {name}"))
}

impl Nccl {
    /// The library, loaded once for the process, or why it is not.
    fn get() -> Result<&'static Nccl, String> {
        static NCCL: OnceLock<Result<Nccl, String>> = OnceLock::new();
        NCCL.get_or_init(|| {
            let search = libraries::nccl();
            let file = search.found.as_deref().unwrap_or(LIBRARY.as_ref());
            Nccl::of(file.as_os_str())
        })
        .as_ref()
        .map_err(String::clone)
    }

    fn of(file: &OsStr) -> Result<Nccl, String> {
        // SAFETY: loading NVIDIA's library runs its initialisers, which are written for that.
        let library = unsafe { Library::new(file) }.map_err(|_| {
            format!("NCCL ({LIBRARY}) is neither beside NVIDIA's compiler nor where the system's loader looks")
        })?;
        // SAFETY: the symbols have these types in nccl.h, of every version since 2.7; the library is kept as long as
        // they are called.
        unsafe {
            let mut version = 0;
            symbol::<Version>(&library, "ncclGetVersion")?(&mut version);
            Ok(Nccl {
                init_all: symbol(&library, "ncclCommInitAll")?,
                group_start: symbol(&library, "ncclGroupStart")?,
                group_end: symbol(&library, "ncclGroupEnd")?,
                send: symbol(&library, "ncclSend")?,
                receive: symbol(&library, "ncclRecv")?,
                abort: symbol(&library, "ncclCommAbort")?,
                words: symbol(&library, "ncclGetErrorString")?,
                version,
                _library: library,
            })
        }
    }

    fn check(&self, call: &'static str, result: c_int) -> Result<(), Fault> {
        if result == SUCCESS {
            return Ok(());
        }
        // SAFETY: the library gives a string of its own, which ends with a zero and stays, or null.
        let text = unsafe { (self.words)(result) };
        let reason = match text.is_null() {
            true => format!("error {result}"),
            // SAFETY: as above.
            false => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
        };
        Err(Fault::Call { call, reason })
    }
}

/// The handles of all ranks; none once one of them has failed.
struct World {
    nccl: &'static Nccl,
    handles: Mutex<Vec<Handle>>,
    count: usize,
}

// SAFETY: handles belong to the process. Each is used by its rank's thread, and by whichever aborts, which the library
// allows while it is used.
unsafe impl Send for World {}
// SAFETY: as above.
unsafe impl Sync for World {}

impl World {
    fn handle(&self, rank: usize) -> Result<Handle, Fault> {
        let handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = || Fault::Call { call: "NCCL", reason: "another rank's call failed".to_string() };
        handles.get(rank).copied().ok_or_else(lost)
    }

    /// Ends what ranks are waiting for, and all that would come.
    fn abort(&self) {
        let handles = std::mem::take(&mut *self.handles.lock().unwrap_or_else(PoisonError::into_inner));
        for handle in handles {
            // SAFETY: the library gave the handle, and nobody finds it any more.
            unsafe { (self.nccl.abort)(handle) };
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.abort();
    }
}

/// A rank whose card is its own.
pub struct Rank {
    rank: usize,
    card: Arc<Card>,
    world: Arc<World>,
}

/// The version of NCCL that was loaded, as `2.27.3`.
pub fn version() -> Option<String> {
    let version = Nccl::get().ok()?.version;
    Some(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
}

/// A world with a rank for each of these cards, no two the same.
///
/// # Errors
/// Why there is none: the library is missing, or it or the driver cannot connect the cards.
pub fn between(cards: &[Arc<Card>]) -> Result<Vec<Rank>, String> {
    let nccl = Nccl::get()?;
    // The library reads from memory of one card and writes to another's.
    for card in cards {
        for other in cards.iter().filter(|other| !Arc::ptr_eq(card, other)) {
            card.share_memory_with(other).map_err(|fault| fault.to_string())?;
        }
    }
    let ordinals: Vec<c_int> = cards.iter().map(|card| card.ordinal()).collect();
    let mut handles = vec![ptr::null_mut(); cards.len()];
    // SAFETY: there is room for as many handles as there are cards, and as many places of cards.
    let made = unsafe { (nccl.init_all)(handles.as_mut_ptr(), cards.len() as c_int, ordinals.as_ptr()) };
    nccl.check("ncclCommInitAll", made).map_err(|fault| fault.to_string())?;
    let world = Arc::new(World { nccl, handles: Mutex::new(handles), count: cards.len() });
    let rank = |(rank, card): (usize, &Arc<Card>)| Rank { rank, card: card.clone(), world: world.clone() };
    Ok(cards.iter().enumerate().map(rank).collect())
}

impl Rank {
    fn queue(&self, pieces: &Pieces) -> Result<(), Fault> {
        let (nccl, handle, stream) = (self.world.nccl, self.world.handle(self.rank)?, self.card.stream_for_more()?);
        let some =
            |pieces: &[Piece]| -> Vec<Piece> { pieces.iter().copied().filter(|piece| piece.bytes > 0).collect() };
        // SAFETY: a group begins and ends on this thread. Pieces are inside of buffers of this rank's card, which are
        // given back behind what is queued here, in the same stream.
        unsafe {
            nccl.check("ncclGroupStart", (nccl.group_start)())?;
            let mut queued = Ok(());
            for Piece { rank, at, bytes } in some(&pieces.sent) {
                let result = (nccl.send)(at.0 as *const c_void, bytes, BYTES, rank as c_int, handle, stream);
                queued = queued.and(nccl.check("ncclSend", result));
            }
            for Piece { rank, at, bytes } in some(&pieces.received) {
                let result = (nccl.receive)(at.0 as *mut c_void, bytes, BYTES, rank as c_int, handle, stream);
                queued = queued.and(nccl.check("ncclRecv", result));
            }
            // Also where something failed, as the group is this thread's until it ends.
            let ended = nccl.check("ncclGroupEnd", (nccl.group_end)());
            queued.and(ended)
        }
    }
}

impl Transport for Rank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world.count
    }

    fn exchange(&self, pieces: Pieces) -> Result<(), Fault> {
        let queued = self.queue(&pieces);
        if queued.is_err() {
            self.world.abort();
        }
        queued
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_or_another_one_is_said_in_a_sentence() {
        let missing = Nccl::of("libnothing-of-this-name.so.1".as_ref()).err().unwrap();
        assert!(missing.starts_with("NCCL (libnccl.so.2) is neither"), "{missing}");
        let other = Nccl::of("libc.so.6".as_ref()).err().unwrap();
        assert_eq!(other, "the NCCL (libnccl.so.2) that was found has no ncclGetVersion");
    }
}
