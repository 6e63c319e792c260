//! Memory of a card, copies, and launches: what everything else of this crate asks a [`Driver`] for.
//!
//! There are two drivers: the [card], and the `emulator` that runs the same kernels on the processor,
//! for tests. All work of a driver is one queue: what was asked for first is done first, so memory can be given back
//! while kernels that use it wait.
//!
//! **Why a launch is safe to call.** A kernel is part of this crate, as a function with raw pointers would be, and its
//! arguments come from [`Buffer`]s that are borrowed until it is queued: shared where the kernel's text says `const`,
//! alone where not. [`Launch::run`] holds their number and types against the kernel's text. What is left to the callers
//! is that sizes fit, and every operation asserts the shapes from which it computes them.

mod blocks;
pub mod cache;
pub mod card;
#[cfg(feature = "emulator")]
pub mod emulator;
mod energy;
mod graph;
pub mod libraries;
pub mod nccl;
pub mod nvrtc;
pub mod profile;
mod queue;
pub mod rates;
pub mod signature;
mod staging;
pub mod transport;
pub mod words;

use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;

use wels_device::{DeviceMemory, KernelTime};

use crate::kernels::{self, Kernel};
pub use queue::Counts;
use rates::Rates;
use signature::Parameter;

/// Why a driver could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Memory is used up.
    #[error("the card has no {bytes} bytes left ({free} of {total} are free)")]
    Memory {
        /// Asked for.
        bytes: usize,
        /// What the card still has.
        free: usize,
        /// What the card has when nobody uses it.
        total: usize,
    },
    /// A call of the driver failed.
    #[error("{call} failed: {reason}")]
    Call {
        /// Which.
        call: &'static str,
        /// What the driver says of it.
        reason: String,
    },
    /// A kernel cannot be compiled, loaded or launched.
    #[error("kernel {kernel}: {reason}")]
    Kernel {
        /// Which.
        kernel: String,
        /// The compiler's or the driver's words.
        reason: String,
    },
}

/// A place in a driver's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub(crate) u64);

/// How many blocks, of how many threads, with how many bytes of shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Along x, y, z.
    pub blocks: [u32; 3],
    /// Along x, y, z.
    pub threads: [u32; 3],
    /// Bytes that a block has.
    pub shared: usize,
}

/// A matrix of bf16 of which TMA copies boxes, as the hardware takes it.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct TensorMap(pub(crate) [u64; 16]);

/// What a [`TensorMap`] stands for: `[rows, cols]` with `stride` from row to row, in boxes of `box_rows` × `box_cols`,
/// swizzled over 128 bytes.
#[derive(Clone, Copy, Debug)]
pub struct MapShape {
    /// Of the matrix.
    pub rows: u32,
    /// Columns.
    pub cols: u32,
    /// Elements from one row to the next.
    pub stride: u32,
    /// Of what is copied at a time.
    pub box_rows: u32,
    /// Columns of a box, at most 64.
    pub box_cols: u32,
}

/// Something that has memory and runs kernels, in the order in which it is asked.
///
/// Implemented in this module alone.
pub trait Driver: Send + Sync {
    /// What it is, for people.
    fn name(&self) -> &str;

    /// Compute capability: (9, 0) for Hopper.
    fn capability(&self) -> (u32, u32);

    /// Multiprocessors.
    fn processors(&self) -> usize;

    /// What it does at most; `None` where nobody may rely on it, as on what stands for a card.
    fn rates(&self) -> Option<Rates> {
        None
    }

    /// A card's memory.
    fn memory(&self) -> Option<DeviceMemory> {
        None
    }

    /// What each kernel has taken, where that is measured.
    fn profile(&self) -> Vec<KernelTime> {
        Vec::new()
    }

    /// A card's energy since its driver was loaded, where it is counted.
    fn energy_joules(&self) -> Option<f64> {
        None
    }

    /// Memory with arbitrary contents, aligned to 256 bytes.
    fn allocate(&self, bytes: usize) -> Result<Address, Fault>;

    /// Gives memory back when what was asked for before is done.
    fn free(&self, at: Address, bytes: usize);

    /// Copies from the host, whose memory is free to be changed afterwards.
    fn copy_in(&self, to: Address, from: &[u8]) -> Result<(), Fault>;

    /// Copies to the host when everything before is done, and waits for it.
    fn copy_out(&self, from: Address, to: &mut [u8]) -> Result<(), Fault>;

    /// Copies inside the memory; the two may not overlap.
    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), Fault>;

    /// Sets words of 32 bits.
    fn fill(&self, at: Address, word: u32, words: usize) -> Result<(), Fault>;

    /// Fills memory with what nobody may read, where a driver is for tests.
    fn poison(&self, _at: Address, _bytes: usize) {}

    /// Describes a matrix to TMA.
    fn tensor_map(&self, at: Address, shape: MapShape) -> Result<TensorMap, Fault>;

    /// Queues a kernel. The arguments fit the kernel's [`signature`], as [`Launch::run`] makes them.
    #[doc(hidden)]
    fn launch(&self, kernel: &'static Kernel, grid: Grid, arguments: Arguments) -> Result<(), Fault>;

    /// From here on launches may wait for each other, to go to the card together: before whatever else is asked for,
    /// and at [`Driver::end`]. On any thread; what has begun several times ends as often.
    fn begin(&self);

    /// Launches what waits.
    fn end(&self) -> Result<(), Fault>;

    /// Waits until everything is done.
    fn synchronize(&self) -> Result<(), Fault>;
}

/// Memory of a driver, given back when dropped.
pub struct Buffer {
    driver: Arc<dyn Driver>,
    address: Address,
    bytes: usize,
}

impl Buffer {
    /// With arbitrary contents.
    pub fn new(driver: &Arc<dyn Driver>, bytes: usize) -> Result<Buffer, Fault> {
        // Kernels that have nothing to do are not launched, but an empty buffer has an address.
        let bytes = bytes.max(4);
        Ok(Buffer { driver: driver.clone(), address: driver.allocate(bytes)?, bytes })
    }

    /// With these bytes.
    pub fn of(driver: &Arc<dyn Driver>, bytes: &[u8]) -> Result<Buffer, Fault> {
        let mut buffer = Buffer::new(driver, bytes.len())?;
        buffer.copy_in(0, bytes)?;
        Ok(buffer)
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The place `offset` bytes behind its beginning.
    ///
    /// # Panics
    /// If `bytes` from there on are not inside.
    fn at(&self, offset: usize, bytes: usize) -> Address {
        assert!(offset + bytes <= self.bytes, "{bytes} bytes at {offset} of a buffer of {}", self.bytes);
        Address(self.address.0 + offset as u64)
    }

    /// As a matrix of bf16 for TMA.
    ///
    /// # Panics
    /// If the matrix is larger.
    pub fn map(&self, shape: MapShape) -> Result<TensorMap, Fault> {
        let elements = (shape.rows as usize).saturating_sub(1) * shape.stride as usize + shape.cols as usize;
        self.driver.tensor_map(self.at(0, elements * 2), shape)
    }

    /// Copies from the host to `offset`.
    pub fn copy_in(&mut self, offset: usize, from: &[u8]) -> Result<(), Fault> {
        if from.is_empty() { Ok(()) } else { self.driver.copy_in(self.at(offset, from.len()), from) }
    }

    /// Copies to the host from `offset`, and waits for it.
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) -> Result<(), Fault> {
        if to.is_empty() { Ok(()) } else { self.driver.copy_out(self.at(offset, to.len()), to) }
    }

    /// Copies `bytes` from another buffer.
    pub fn copy_from(&mut self, offset: usize, from: &Buffer, from_offset: usize, bytes: usize) -> Result<(), Fault> {
        if bytes == 0 {
            return Ok(());
        }
        self.driver.copy(from.at(from_offset, bytes), self.at(offset, bytes), bytes)
    }

    /// Copies inside the buffer.
    ///
    /// # Panics
    /// If the two ranges overlap.
    pub fn copy_within(&mut self, from: usize, to: usize, bytes: usize) -> Result<(), Fault> {
        assert!(from + bytes <= to || to + bytes <= from || bytes == 0, "{bytes} bytes at {from} and {to} overlap");
        if bytes == 0 { Ok(()) } else { self.driver.copy(self.at(from, bytes), self.at(to, bytes), bytes) }
    }

    /// Sets the first words of 32 bits.
    pub fn fill(&mut self, word: u32, words: usize) -> Result<(), Fault> {
        if words == 0 { Ok(()) } else { self.driver.fill(self.at(0, words * 4), word, words) }
    }

    /// Makes its contents such that whoever reads them is found out, where the driver is for tests.
    pub fn poison(&mut self) {
        self.driver.poison(self.address, self.bytes);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.driver.free(self.address, self.bytes);
    }
}

/// The arguments of a launch: cells that hold them, and how many there are.
#[derive(Clone)]
pub struct Arguments {
    cells: Vec<Cell>,
}

/// One argument, where a pointer to it is wanted.
#[derive(Clone, Copy)]
#[repr(C)]
union Cell {
    map: TensorMap,
    long: i64,
    int: i32,
    float: f32,
}

impl Arguments {
    /// Pointers to the arguments, as cuLaunchKernel takes them; they hold while this is borrowed.
    pub(crate) fn pointers(&mut self) -> Vec<*mut c_void> {
        self.cells.iter_mut().map(|cell| (&raw mut *cell).cast()).collect()
    }

    /// Whether these are the same, both being arguments for such `parameters`.
    fn are_as(&self, other: &Arguments, parameters: &[Parameter]) -> bool {
        let pairs = self.cells.iter().zip(&other.cells).zip(parameters);
        self.cells.len() == other.cells.len() && { pairs }.all(|((one, other), kind)| one.is_as(other, *kind))
    }

    /// Where those arguments point to that are places in memory or maps of it, null left out.
    #[cfg(feature = "emulator")]
    fn places(&self, parameters: &[Parameter]) -> impl Iterator<Item = Address> {
        let place = |(cell, kind): (&Cell, &Parameter)| match kind {
            // SAFETY: `Launch::run` has held what cells hold against the parameters.
            Parameter::Read | Parameter::Write => Some(unsafe { cell.long } as u64),
            // SAFETY: as above. The emulator's maps begin with the place.
            Parameter::Map => Some(unsafe { cell.map }.0[0]),
            _ => None,
        };
        self.cells.iter().zip(parameters).filter_map(place).filter(|place| *place != 0).map(Address)
    }
}

impl Cell {
    /// Whether the two hold the same, both being of this kind.
    fn is_as(&self, other: &Cell, kind: Parameter) -> bool {
        // SAFETY: `Launch::run` has held what cells hold against the parameters, and any bits are numbers.
        unsafe {
            match kind {
                Parameter::Read | Parameter::Write | Parameter::Long => self.long == other.long,
                Parameter::Int | Parameter::Unsigned => self.int == other.int,
                Parameter::Float => self.float.to_bits() == other.float.to_bits(),
                Parameter::Map => self.map.0 == other.map.0,
            }
        }
    }
}

/// A launch that is being put together: arguments in the order of the kernel's parameters, then [`Launch::run`].
pub struct Launch<'a> {
    driver: &'a Arc<dyn Driver>,
    kernel: &'static Kernel,
    grid: Grid,
    arguments: Arguments,
    kinds: Vec<Parameter>,
    buffers: PhantomData<&'a mut Buffer>,
}

impl<'a> Launch<'a> {
    /// Of the kernel of that name, as one block of 256 threads without shared memory.
    ///
    /// # Panics
    /// If there is no such kernel.
    pub fn new(driver: &'a Arc<dyn Driver>, kernel: &str) -> Launch<'a> {
        let kernel = kernels::find(kernel).unwrap_or_else(|| panic!("there is no kernel {kernel}"));
        let grid = Grid { blocks: [1, 1, 1], threads: [256, 1, 1], shared: 0 };
        let arguments = Arguments { cells: Vec::with_capacity(kernel.signature.parameters.len()) };
        Launch { driver, kernel, grid, arguments, kinds: Vec::new(), buffers: PhantomData }
    }

    /// At least as many threads as there are elements, in blocks along x.
    pub fn over(self, elements: usize) -> Self {
        let threads = self.grid.threads[0] as usize;
        self.blocks(elements.div_ceil(threads), 1, 1)
    }

    /// How many blocks.
    ///
    /// # Panics
    /// If they are more than a card takes.
    pub fn blocks(mut self, x: usize, y: usize, z: usize) -> Self {
        let fits = x <= i32::MAX as usize && y <= 65_535 && z <= 65_535;
        assert!(fits, "{}: {x} × {y} × {z} blocks", self.kernel.signature.name);
        self.grid.blocks = [x as u32, y as u32, z as u32];
        self
    }

    /// How many threads a block has along x; before [`Launch::over`].
    pub fn threads(mut self, threads: usize) -> Self {
        self.grid.threads = [threads as u32, 1, 1];
        self
    }

    /// How many bytes of shared memory a block has.
    pub fn shared(mut self, bytes: usize) -> Self {
        self.grid.shared = bytes;
        self
    }

    fn push(mut self, kind: Parameter, cell: Cell) -> Self {
        self.kinds.push(kind);
        self.arguments.cells.push(cell);
        self
    }

    /// A buffer that is read.
    pub fn read(self, buffer: &'a Buffer) -> Self {
        self.read_at(buffer, 0)
    }

    /// A buffer that is read, from `offset` bytes on.
    pub fn read_at(self, buffer: &'a Buffer, offset: usize) -> Self {
        let long = buffer.at(offset, 0).0 as i64;
        self.push(Parameter::Read, Cell { long })
    }

    /// A buffer that is read, or null.
    pub fn read_if(self, buffer: Option<&'a Buffer>) -> Self {
        let long = buffer.map_or(0, |buffer| buffer.address.0 as i64);
        self.push(Parameter::Read, Cell { long })
    }

    /// A buffer that is written.
    pub fn write(self, buffer: &'a mut Buffer) -> Self {
        self.write_at(buffer, 0)
    }

    /// A buffer that is written, from `offset` bytes on.
    pub fn write_at(self, buffer: &'a mut Buffer, offset: usize) -> Self {
        let long = buffer.at(offset, 0).0 as i64;
        self.push(Parameter::Write, Cell { long })
    }

    /// Two parts of one buffer that are both written, from these offsets in bytes on.
    pub fn write_both(self, buffer: &'a mut Buffer, offsets: [usize; 2]) -> Self {
        let [first, second] = offsets.map(|offset| buffer.at(offset, 0).0 as i64);
        self.push(Parameter::Write, Cell { long: first }).push(Parameter::Write, Cell { long: second })
    }

    /// Some buffers that are written, from an offset in bytes on each, and null for as many as `count` has more.
    pub fn write_some(self, buffers: impl Iterator<Item = (&'a mut Buffer, usize)>, count: usize) -> Self {
        let mut launch = self;
        let mut missing = count;
        for (buffer, offset) in buffers {
            launch = launch.write_at(buffer, offset);
            missing -= 1;
        }
        (0..missing).fold(launch, |launch, _| launch.push(Parameter::Write, Cell { long: 0 }))
    }

    /// A size or a place that fits 31 bits.
    ///
    /// # Panics
    /// If it does not.
    pub fn int(self, value: usize) -> Self {
        let name = &self.kernel.signature.name;
        let int = i32::try_from(value).unwrap_or_else(|_| panic!("{name}: {value} does not fit 31 bits"));
        self.push(Parameter::Int, Cell { int })
    }

    /// Several of these.
    pub fn ints<const N: usize>(self, values: [usize; N]) -> Self {
        values.into_iter().fold(self, Launch::int)
    }

    /// A size or a place.
    pub fn long(self, value: usize) -> Self {
        self.push(Parameter::Long, Cell { long: value as i64 })
    }

    /// A number.
    pub fn float(self, float: f32) -> Self {
        self.push(Parameter::Float, Cell { float })
    }

    /// A matrix for TMA; the buffer that it describes.
    pub fn map(self, map: TensorMap, _of: &'a Buffer) -> Self {
        self.push(Parameter::Map, Cell { map })
    }

    /// Queues it, unless it has no block.
    ///
    /// # Panics
    /// If the arguments are not those of the kernel, or the driver cannot launch it, which is a bug or a lost card.
    pub fn run(self) {
        let Kernel { signature, .. } = self.kernel;
        assert_eq!(self.kinds, signature.parameters, "arguments of {}", signature.name);
        if self.grid.blocks.contains(&0) {
            return;
        }
        if let Err(fault) = self.driver.launch(self.kernel, self.grid, self.arguments) {
            panic!("{} on {}: {fault}", signature.name, self.driver.name());
        }
    }
}
