//! The kernels on the processor, a block of threads as fibers: `kernels/shim.h` says how.
//!
//! Memory is the host's, poisoned when it is taken and given back, and between fences that are looked at when it is
//! given back; what is small is handed out again as a card's is.
//! Launches run at once, on the thread that asks, or where they wait for each other as graphs: copies of launches, as
//! a card has them, of which each run is from what was copied.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libloading::Library;

use super::blocks::{self, Blocks};
use super::queue::{Counts, Queue, Sink, Waiting};
use super::{Address, Arguments, Driver, Fault, Grid, MapShape, TensorMap};
use crate::Unavailable;
use crate::kernels::Kernel;

/// `wels_emu_launch` of `kernels/emulator.cpp`.
type Call = unsafe extern "C" fn(
    name: *const c_char,
    dims: *const u32,
    shared: usize,
    seed: u32,
    args: *mut *mut c_void,
    message: *mut c_char,
    len: usize,
) -> c_int;

#[cfg(emulator)]
unsafe extern "C" {
    fn wels_emu_launch(
        name: *const c_char,
        dims: *const u32,
        shared: usize,
        seed: u32,
        args: *mut *mut c_void,
        message: *mut c_char,
        len: usize,
    ) -> c_int;
}

#[cfg(emulator)]
const LINKED: Option<Call> = Some(wels_emu_launch);
#[cfg(not(emulator))]
const LINKED: Option<Call> = None;
/// What a [`Call`] gives for a kernel that it does not have.
const NO_SUCH_KERNEL: c_int = 2;

/// Bytes before and behind memory that nobody may write to: a block of 256 threads too far is inside.
const FENCE: usize = 2048;
const FENCED: u8 = 0xa5;
/// As of a small card, so that blocks have many tiles each.
const PROCESSORS: usize = 4;
/// NaN with a payload, as f32 and as bf16; −1 as a whole number.
const POISON: u8 = 0xff;

/// The driver.
pub struct Emulator {
    seed: AtomicU32,
    launches: AtomicU64,
    /// 10·major + minor.
    capability: AtomicU32,
    /// Kernels that are taken instead of the program's own.
    other: Option<Call>,
    queue: Mutex<Queue<Vec<Waiting>>>,
    /// Memory that is not given back: where it begins, and bytes.
    live: Mutex<BTreeMap<u64, usize>>,
    blocks: Mutex<Blocks>,
}

impl Emulator {
    /// One that steps blocks, warps and lanes as `seed` says.
    pub fn open(seed: u32) -> Result<Arc<Emulator>, Unavailable> {
        match LINKED {
            Some(_) => Ok(Arc::new(Emulator::of(seed, None))),
            None => Err(Unavailable::Emulator),
        }
    }

    /// One that takes kernels out of a shared library, and the program's own where it has none of a name: for tests of
    /// the tests, which change kernels.
    pub fn with_kernels_of(library: &Path, seed: u32) -> Result<Arc<Emulator>, Unavailable> {
        let failed = |error: libloading::Error| Unavailable::Failed { reason: error.to_string() };
        // SAFETY: the library is the emulator with other kernels, built by the caller for this call.
        let library = unsafe { Library::new(library) }.map_err(failed)?;
        // SAFETY: the symbol is that of `kernels/emulator.cpp`, which has this type.
        let call = unsafe { library.get::<Call>(b"wels_emu_launch") }.map(|call| *call).map_err(failed)?;
        std::mem::forget(library); // fibers and what ends with a thread may lie in it
        Ok(Arc::new(Emulator::of(seed, Some(call))))
    }

    fn of(seed: u32, other: Option<Call>) -> Emulator {
        let (seed, launches, capability) = (AtomicU32::new(seed), AtomicU64::new(0), AtomicU32::new(90));
        let (queue, live, blocks) = (Mutex::new(Queue::new(true)), Mutex::default(), Mutex::default());
        Emulator { seed, launches, capability, other, queue, live, blocks }
    }

    /// Whether launches are put into graphs where they may be, as they are at first.
    pub fn set_graphs(&self, wanted: bool) {
        lock(&self.queue).uses_graphs = wanted;
    }

    /// How launches have gone so far.
    pub fn counts(&self) -> Counts {
        lock(&self.queue).counts
    }

    fn flush(&self) -> Result<(), Fault> {
        lock(&self.queue).flush(self)
    }

    /// The first argument's place that is in no memory, or in such as was given back.
    fn lost(&self, launch: &Waiting) -> Option<Address> {
        let live = lock(&self.live);
        let inside =
            |at: &Address| live.range(..=at.0).next_back().is_some_and(|(from, len)| at.0 <= from + *len as u64);
        launch.arguments.places(&launch.kernel.signature.parameters).find(|at| !inside(at))
    }

    /// Stands for a card of another compute capability from now on; at first it is 9.0.
    pub fn set_capability(&self, major: u32, minor: u32) {
        self.capability.store(10 * major + minor, Ordering::Relaxed);
    }

    /// Another order from the next launch on.
    pub fn set_seed(&self, seed: u32) {
        self.seed.store(seed, Ordering::Relaxed);
    }

    /// Kernels launched so far.
    pub fn launches(&self) -> u64 {
        self.launches.load(Ordering::Relaxed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Emulator {
    fn drop(&mut self) {
        for (at, bytes) in lock(&self.blocks).take_all() {
            // SAFETY: `allocate` made memory of this layout there, and nobody has it.
            unsafe { dealloc((at - FENCE as u64) as *mut u8, layout(bytes)) };
        }
    }
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(blocks::size_of(bytes).next_multiple_of(4) + 2 * FENCE, 256)
        .expect("a size that fits the address space")
}

impl Driver for Emulator {
    fn name(&self) -> &str {
        "the emulator"
    }

    fn capability(&self) -> (u32, u32) {
        let capability = self.capability.load(Ordering::Relaxed);
        (capability / 10, capability % 10)
    }

    fn processors(&self) -> usize {
        PROCESSORS
    }

    fn allocate(&self, bytes: usize) -> Result<Address, Fault> {
        let layout = layout(bytes);
        let kept = lock(&self.blocks).take(bytes);
        let start = match kept {
            Some(at) => (at - FENCE as u64) as *mut u8,
            // SAFETY: the layout is not empty, as it has the fences.
            None => unsafe { alloc(layout) },
        };
        if start.is_null() {
            return Err(Fault::Memory { bytes, free: 0, total: 0 });
        }
        // SAFETY: the three ranges are the memory's: a fence, the bytes, the rest up to its end.
        unsafe {
            start.write_bytes(FENCED, FENCE);
            start.add(FENCE).write_bytes(POISON, bytes);
            start.add(FENCE + bytes).write_bytes(FENCED, layout.size() - FENCE - bytes);
        }
        let at = start as u64 + FENCE as u64;
        lock(&self.live).insert(at, bytes);
        Ok(Address(at))
    }

    fn free(&self, at: Address, bytes: usize) {
        lock(&self.queue).free(self, at, bytes);
    }

    fn copy_in(&self, to: Address, from: &[u8]) -> Result<(), Fault> {
        self.flush()?;
        // SAFETY: `Buffer` asks for ranges inside of what it allocated, which is the host's memory.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.0 as *mut u8, from.len()) };
        Ok(())
    }

    fn copy_out(&self, from: Address, to: &mut [u8]) -> Result<(), Fault> {
        self.flush()?;
        // SAFETY: as in `copy_in`.
        unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), Fault> {
        self.flush()?;
        // SAFETY: as in `copy_in`, and `Buffer` sees to it that ranges of one buffer do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, to.0 as *mut u8, bytes) };
        Ok(())
    }

    fn fill(&self, at: Address, word: u32, words: usize) -> Result<(), Fault> {
        self.flush()?;
        // SAFETY: as in `copy_in`; the memory is aligned to 256 bytes and `Buffer` fills from its beginning.
        unsafe { std::slice::from_raw_parts_mut(at.0 as *mut u32, words) }.fill(word);
        Ok(())
    }

    fn poison(&self, at: Address, bytes: usize) {
        // Those that wait may be about to read it.
        if lock(&self.queue).is_waiting() {
            return;
        }
        // SAFETY: as in `copy_in`.
        unsafe { (at.0 as *mut u8).write_bytes(POISON, bytes) };
    }

    fn tensor_map(&self, at: Address, shape: MapShape) -> Result<TensorMap, Fault> {
        // The struct of `prelude.cuh`: a pointer, then five numbers of 32 bits.
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let mut words = [0; 16];
        words[0] = at.0;
        words[1] = pair(shape.cols, shape.rows);
        words[2] = pair(shape.stride, shape.box_cols);
        words[3] = u64::from(shape.box_rows);
        Ok(TensorMap(words))
    }

    fn launch(&self, kernel: &'static Kernel, grid: Grid, arguments: Arguments) -> Result<(), Fault> {
        lock(&self.queue).launch(self, Waiting { kernel, grid, arguments })
    }

    fn begin(&self) {
        lock(&self.queue).begin();
    }

    fn end(&self) -> Result<(), Fault> {
        lock(&self.queue).end(self)
    }

    fn synchronize(&self) -> Result<(), Fault> {
        self.flush()
    }
}

impl Sink for Emulator {
    /// Copies of the launches.
    type Graph = Vec<Waiting>;

    fn start(&self, launch: &mut Waiting) -> Result<(), Fault> {
        let name = &launch.kernel.signature.name;
        if let Some(Address(at)) = self.lost(launch) {
            let reason = format!("an argument points to {at:#x}, where there is no memory or it was given back");
            return Err(Fault::Kernel { kernel: name.clone(), reason });
        }
        let number = self.launches.fetch_add(1, Ordering::Relaxed) as u32;
        let seed = self.seed.load(Ordering::Relaxed).wrapping_mul(0x9e37_79b9) ^ number.wrapping_mul(0x85eb_ca6b);
        let calls = self.other.into_iter().chain(LINKED);
        let mut failure = (NO_SUCH_KERNEL, Unavailable::Emulator.to_string());
        for call in calls {
            match run(call, launch.kernel, launch.grid, seed, &mut launch.arguments.pointers()) {
                Ok(()) => return Ok(()),
                Err(error) => failure = error,
            }
            if failure.0 != NO_SUCH_KERNEL {
                break;
            }
        }
        Err(Fault::Kernel { kernel: name.clone(), reason: failure.1 })
    }

    fn build(&self, launches: &mut [Waiting]) -> Result<Vec<Waiting>, Fault> {
        Ok(launches.to_vec())
    }

    fn set(&self, graph: &mut Vec<Waiting>, node: usize, launch: &mut Waiting) -> Result<(), Fault> {
        graph[node].clone_from(launch);
        Ok(())
    }

    fn run(&self, graph: &mut Vec<Waiting>) -> Result<(), Fault> {
        // No queue is to go on without graphs because of what one of them has wrong.
        graph.iter_mut().for_each(|launch| self.start(launch).unwrap_or_else(|fault| panic!("in a graph: {fault}")));
        Ok(())
    }

    fn release(&self, at: Address, bytes: usize) {
        lock(&self.live).remove(&at.0);
        let layout = layout(bytes);
        let start = (at.0 - FENCE as u64) as *mut u8;
        // SAFETY: `allocate` made memory of this layout there, with a fence before and one behind `bytes`.
        let (before, behind) = unsafe {
            let behind = std::slice::from_raw_parts(start.add(FENCE + bytes), layout.size() - FENCE - bytes);
            (std::slice::from_raw_parts(start, FENCE), behind)
        };
        let whole = before.iter().chain(behind).all(|byte| *byte == FENCED);
        // SAFETY: as above, and the slices are not used any more.
        unsafe { start.add(FENCE).write_bytes(POISON, bytes) };
        if !lock(&self.blocks).keep(at.0, bytes) {
            // SAFETY: as above.
            unsafe { dealloc(start, layout) };
        }
        assert!(whole || std::thread::panicking(), "a kernel wrote outside of a buffer of {bytes} bytes");
    }
}

/// Runs a kernel; the error is the emulator's number and its words.
fn run(call: Call, kernel: &Kernel, grid: Grid, seed: u32, args: &mut [*mut c_void]) -> Result<(), (c_int, String)> {
    let name = CString::new(kernel.signature.name.as_str()).expect("a name without zeros");
    let ([bx, by, bz], [tx, ty, tz]) = (grid.blocks, grid.threads);
    let dims = [bx, by, bz, tx, ty, tz];
    let mut message = [0 as c_char; 1024];
    let (dims, args, len) = (dims.as_ptr(), args.as_mut_ptr(), message.len());
    // SAFETY: `Launch::run` has held the arguments against the kernel's parameters; they and the message outlive the
    // call, and the kernel runs to its end inside of it.
    let failed = unsafe { call(name.as_ptr(), dims, grid.shared, seed, args, message.as_mut_ptr(), len) };
    if failed == 0 {
        return Ok(());
    }
    // SAFETY: the emulator ends its message with a zero, and there is one anyway where it writes nothing.
    Err((failed, unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy().into_owned()))
}
