//! A card, through the driver's own interface. It is opened once a process and stays open.
//!
//! cudarc panics where a library or a symbol is missing, so libraries are asked for first, the driver's version is held
//! against what is called, and what panics nevertheless becomes [`Unavailable::Failed`].

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int, c_void};
use std::panic::catch_unwind;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard};

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_attribute as Attribute, CUfunction, CUfunction_attribute, CUmemPool_attribute,
    CUmemoryPool, CUmodule, CUresult, CUstream, CUstream_flags,
};

use wels_device::{DeviceMemory, KernelTime};

use super::blocks::{self, Blocks};
use super::cache::Cache;
use super::energy::{BUS_ID_BYTES, Meter};
use super::graph::{self, Graph};
use super::nvrtc::{Nvrtc, Target};
use super::profile::Profile;
use super::queue::{Queue, Sink, Waiting};
use super::rates::{Rates, Units};
use super::staging::Staging;
use super::{Address, Arguments, Driver, Fault, Grid, MapShape, TensorMap, libraries};
use crate::Unavailable;
use crate::kernels::{Kernel, Source};

/// The least driver: that of CUDA 12.0.
const DRIVER_LEAST: i32 = 12_000;
/// The least compute capability: that of the A100.
const CAPABILITY_LEAST: (u32, u32) = (8, 0);
/// Shared memory that a kernel has without asking.
const SHARED_UNASKED: usize = 48 << 10;

/// The driver of a card.
pub struct Card {
    /// Its place among those that the driver shows.
    ordinal: c_int,
    device: CUdevice,
    name: String,
    capability: (u32, u32),
    processors: usize,
    rates: Rates,
    energy: Option<Meter>,
    /// Where its memory comes from.
    pool: CUmemoryPool,
    context: CUcontext,
    stream: CUstream,
    nvrtc: Nvrtc,
    cache: Cache,
    kernels: Mutex<Kernels>,
    staging: Mutex<Staging>,
    profile: Option<Profile>,
    /// Locked before any other.
    queue: Mutex<Queue<Graph>>,
    blocks: Mutex<Blocks>,
}

// SAFETY: contexts, streams, modules and functions belong to the process and not to a thread, and the driver may be
// called from any; `bind` makes the context current on the calling one. What is not safe to share is behind mutexes.
unsafe impl Send for Card {}
// SAFETY: as above.
unsafe impl Sync for Card {}

/// What is loaded.
#[derive(Default)]
struct Kernels {
    modules: HashMap<&'static str, CUmodule>,
    functions: HashMap<&'static str, Function>,
}

#[derive(Clone, Copy)]
struct Function {
    function: CUfunction,
    /// The most shared memory that it was launched with, if that was more than [`SHARED_UNASKED`].
    shared: usize,
}

/// An error of the driver's as a [`Fault`].
pub(super) fn check(call: &'static str, result: CUresult) -> Result<(), Fault> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = ptr::null();
    // SAFETY: the driver writes a string of its own that stays, or null.
    let known = unsafe { sys::cuGetErrorString(result, &mut text) } == CUresult::CUDA_SUCCESS && !text.is_null();
    let reason = match known {
        // SAFETY: the driver's strings end with zeros.
        true => format!("{} ({result:?})", unsafe { CStr::from_ptr(text) }.to_string_lossy()),
        false => format!("{result:?}"),
    };
    Err(Fault::Call { call, reason })
}

fn failed(fault: Fault) -> Unavailable {
    Unavailable::Failed { reason: fault.to_string() }
}

impl Card {
    /// The card that the driver shows at this place, of [`count`]; `CUDA_VISIBLE_DEVICES` chooses among several.
    pub fn open(ordinal: usize) -> Result<Arc<Card>, Unavailable> {
        of_library(|| Card::open_at(ordinal as c_int, Cache::of_user()))
    }

    fn open_at(ordinal: c_int, cache: Cache) -> Result<Arc<Card>, Unavailable> {
        let shown = driver_shows()?;
        assert!(ordinal < shown, "card {ordinal} of {shown}");
        let mut device = 0;
        // SAFETY: the driver is initialised, and there is such a device.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal) }).map_err(failed)?;
        let (name, capability) = (name_of(device).map_err(failed)?, capability_of(device).map_err(failed)?);
        if capability < CAPABILITY_LEAST {
            return Err(Unavailable::OldCard { name, capability });
        }
        let nvrtc = Nvrtc::open()?;
        let (context, stream) = context_of(device).map_err(failed)?;
        let pool = keep_memory(device).map_err(failed)?;
        let processors = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).map_err(failed)?;
        let processors = usize::try_from(processors).unwrap_or(0).max(1);
        let rates = rates_of(device, &name, capability).map_err(failed)?;
        let energy = bus_id_of(device).and_then(|bus_id| Meter::open(&bus_id));
        let staging = Mutex::new(Staging::new().map_err(failed)?);
        let profile = Profile::open().map_err(failed)?;
        // What is timed is launched one by one.
        let queue = Mutex::new(Queue::new(graph::wanted() && profile.is_none()));
        let (kernels, blocks) = (Mutex::default(), Mutex::default());
        Ok(Arc::new(Card {
            ordinal,
            device,
            name,
            capability,
            processors,
            rates,
            energy,
            pool,
            context,
            stream,
            nvrtc,
            cache,
            kernels,
            staging,
            profile,
            queue,
            blocks,
        }))
    }

    fn bind(&self) -> Result<(), Fault> {
        // SAFETY: the context was retained when the card was opened, and is never released.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    fn target(&self) -> Target {
        Target { capability: self.capability }
    }

    /// A kernel, to be launched with so much shared memory; its file is compiled or read from the cache at first use.
    fn function(&self, kernel: &'static Kernel, shared: usize) -> Result<CUfunction, Fault> {
        let mut kernels = lock(&self.kernels);
        let name = kernel.signature.name.as_str();
        let known = kernels.functions.get(name).copied();
        let mut known = match known {
            Some(function) => function,
            None => Function { function: self.find(&mut kernels, kernel)?, shared: SHARED_UNASKED },
        };
        if shared > known.shared {
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // In percent of what a processor has, so that as many blocks share one as it has room for.
            let share = CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            for (attribute, value) in [(most, shared as c_int), (share, 100)] {
                // SAFETY: the function was given by the driver and stays.
                let set = unsafe { sys::cuFuncSetAttribute(known.function, attribute, value) };
                check("cuFuncSetAttribute", set)?;
            }
            known.shared = shared;
        }
        kernels.functions.insert(name, known);
        Ok(known.function)
    }

    fn find(&self, kernels: &mut Kernels, kernel: &'static Kernel) -> Result<CUfunction, Fault> {
        let source = kernel.source;
        let module = match kernels.modules.get(source.path) {
            Some(module) => *module,
            None => {
                let module =
                    self.load(source).map_err(|reason| Fault::Kernel { kernel: source.path.into(), reason })?;
                kernels.modules.insert(source.path, module);
                module
            }
        };
        let name = CString::new(kernel.signature.name.as_str()).expect("a name without zeros");
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded and never unloaded; the name ends with a zero.
        let result = unsafe { sys::cuModuleGetFunction(&mut function, module, name.as_ptr()) };
        check("cuModuleGetFunction", result).map(|()| function)
    }

    fn load(&self, source: &'static Source) -> Result<CUmodule, String> {
        let (target, version) = (self.target(), self.nvrtc.version);
        if let Some(cubin) = self.cache.load(source, target, version)
            && let Ok(module) = load_module(&cubin)
        {
            return Ok(module);
        }
        let compiled = self.nvrtc.compile(source, target, false)?;
        let module = load_module(&compiled.cubin).map_err(|fault| fault.to_string())?;
        // Without a place to keep it, it is compiled again next time.
        let _ = self.cache.store(source, target, version, &compiled.cubin);
        Ok(module)
    }

    fn memory_fault(&self, bytes: usize) -> Fault {
        match memory_info() {
            Ok((free, total)) => Fault::Memory { bytes, free, total },
            Err(fault) => fault,
        }
    }

    /// Its place among those that the driver shows.
    pub(super) fn ordinal(&self) -> c_int {
        self.ordinal
    }

    /// Its stream, behind all that it was asked for, to queue more there; the context is current.
    pub(super) fn stream_for_more(&self) -> Result<CUstream, Fault> {
        self.flush().map(|()| self.stream)
    }

    /// Lets another card read and write this one's memory where the machine can do that.
    pub(super) fn share_memory_with(&self, other: &Card) -> Result<(), Fault> {
        let mut can = 0;
        // SAFETY: both devices were given by the driver, and the answer is written to its place.
        let asked = unsafe { sys::cuDeviceCanAccessPeer(&mut can, other.device, self.device) };
        check("cuDeviceCanAccessPeer", asked)?;
        if can == 0 {
            return Ok(());
        }
        let access = sys::CUmemAccessDesc {
            location: sys::CUmemLocation {
                type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
                id: other.device,
            },
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: the pool is the card's and stays, and there is one description.
        check("cuMemPoolSetAccess", unsafe { sys::cuMemPoolSetAccess(self.pool, &access, 1) })
    }

    /// Has launches that wait go before what is asked for next; the context is current.
    fn flush(&self) -> Result<(), Fault> {
        self.bind()?;
        lock(&self.queue).flush(self)
    }

    fn take(&self, bytes: usize) -> Result<Address, Fault> {
        let mut at = 0;
        // SAFETY: the stream is the card's own; the address is written to its place.
        match unsafe { sys::cuMemAllocAsync(&mut at, bytes, self.stream) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(self.memory_fault(bytes)),
            result => check("cuMemAllocAsync", result).map(|()| Address(at)),
        }
    }

    /// Gives memory back to the driver's pool.
    fn give_back(&self, at: u64) {
        // SAFETY: `take` gave the address, and nobody has it any more; what was queued before goes first.
        let _ = unsafe { sys::cuMemFreeAsync(at, self.stream) };
    }

    /// A number of bytes that the pool knows of itself.
    fn of_pool(&self, attribute: CUmemPool_attribute) -> Result<u64, Fault> {
        let mut bytes: u64 = 0;
        // SAFETY: the pool is the device's and stays; attributes of bytes are numbers of 64 bits.
        let result = unsafe { sys::cuMemPoolGetAttribute(self.pool, attribute, (&raw mut bytes).cast()) };
        check("cuMemPoolGetAttribute", result).map(|()| bytes)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn version_of(number: i32) -> (i32, i32) {
    (number / 1000, number % 1000 / 10)
}

fn driver_version() -> Result<i32, Unavailable> {
    let mut version = 0;
    // SAFETY: the driver's library is there; this may be asked before it is initialised.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) }).map_err(failed)?;
    Ok(version)
}

/// How many cards the driver shows, at least one.
pub fn count() -> Result<usize, Unavailable> {
    of_library(|| driver_shows().map(|count| count as usize))
}

/// What panics where a library or a symbol is missing.
fn of_library<T>(work: impl FnOnce() -> Result<T, Unavailable> + std::panic::UnwindSafe) -> Result<T, Unavailable> {
    catch_unwind(work).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(Unavailable::Failed { reason: text.unwrap_or_else(|| "the driver's library panicked".to_string()) })
    })
}

fn driver_shows() -> Result<c_int, Unavailable> {
    if !libraries::driver_is_present() {
        return Err(Unavailable::Driver);
    }
    let version = driver_version()?;
    if version < DRIVER_LEAST {
        let (has, least) = (version_of(version), version_of(DRIVER_LEAST));
        return Err(Unavailable::OldDriver { has, least });
    }
    // SAFETY: the driver's library is there; it may be initialised again.
    check("cuInit", unsafe { sys::cuInit(0) }).map_err(|fault| Unavailable::NoCard { reason: fault.to_string() })?;
    let mut count = 0;
    // SAFETY: the driver is initialised.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) }).map_err(failed)?;
    match count {
        0 => Err(Unavailable::NoCard { reason: "the driver shows none".to_string() }),
        count => Ok(count),
    }
}

fn name_of(device: CUdevice) -> Result<String, Fault> {
    let mut name = [0; 256];
    // SAFETY: there is room for as many bytes as is said, and the driver ends the name with a zero.
    unsafe {
        check("cuDeviceGetName", sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device))?;
        Ok(CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned())
    }
}

fn attribute(device: CUdevice, attribute: Attribute) -> Result<i32, Fault> {
    let mut value = 0;
    // SAFETY: the device was given by the driver, and the value is written to its place.
    let result = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) };
    check("cuDeviceGetAttribute", result).map(|()| value)
}

fn capability_of(device: CUdevice) -> Result<(u32, u32), Fault> {
    let major = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok((major as u32, minor as u32))
}

fn rates_of(device: CUdevice, name: &str, capability: (u32, u32)) -> Result<Rates, Fault> {
    let kilohertz = |of| attribute(device, of).map(|value| f64::from(value) * 1e3);
    let number = |of| attribute(device, of).map(|value| value as u32);
    Ok(Rates::of(&Units {
        name,
        capability,
        processors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        clock_hz: kilohertz(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?,
        memory_clock_hz: kilohertz(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?,
        bus_bits: number(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
    }))
}

/// The card's place, by which NVIDIA's management library finds it.
fn bus_id_of(device: CUdevice) -> Option<String> {
    let mut id = [0; BUS_ID_BYTES];
    // SAFETY: there is room for as many bytes as is said, and the driver ends the text with a zero.
    unsafe {
        check("cuDeviceGetPCIBusId", sys::cuDeviceGetPCIBusId(id.as_mut_ptr(), id.len() as c_int, device)).ok()?;
        Some(CStr::from_ptr(id.as_ptr()).to_string_lossy().into_owned())
    }
}

/// The device's context, current on this thread, and a stream of its own.
fn context_of(device: CUdevice) -> Result<(CUcontext, CUstream), Fault> {
    let (mut context, mut stream) = (ptr::null_mut(), ptr::null_mut());
    let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
    // SAFETY: the device was given by the driver; the context is current when the stream is made.
    unsafe {
        check("cuDevicePrimaryCtxRetain", sys::cuDevicePrimaryCtxRetain(&mut context, device))?;
        check("cuCtxSetCurrent", sys::cuCtxSetCurrent(context))?;
        check("cuStreamCreate", sys::cuStreamCreate(&mut stream, flags))?;
    }
    Ok((context, stream))
}

/// Has the driver keep memory that is given back, so that taking it again costs nothing.
fn keep_memory(device: CUdevice) -> Result<CUmemoryPool, Fault> {
    let (mut pool, mut all) = (ptr::null_mut(), u64::MAX);
    let threshold = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device was given by the driver, and the attribute is a number of 64 bits.
    unsafe {
        check("cuDeviceGetDefaultMemPool", sys::cuDeviceGetDefaultMemPool(&mut pool, device))?;
        check("cuMemPoolSetAttribute", sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut all).cast()))?;
    }
    Ok(pool)
}

/// Free bytes of the card whose context is current, and all of them.
fn memory_info() -> Result<(usize, usize), Fault> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: both numbers are written to their places.
    let result = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
    check("cuMemGetInfo", result).map(|()| (free, total))
}

fn load_module(cubin: &[u8]) -> Result<CUmodule, Fault> {
    let mut module = ptr::null_mut();
    // SAFETY: a context is current; the cubin has its own size in its header, and is a compiler's or has its hash.
    check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&mut module, cubin.as_ptr().cast()) })?;
    Ok(module)
}

impl Driver for Card {
    fn name(&self) -> &str {
        &self.name
    }

    fn capability(&self) -> (u32, u32) {
        self.capability
    }

    fn processors(&self) -> usize {
        self.processors
    }

    fn rates(&self) -> Option<Rates> {
        Some(self.rates)
    }

    fn memory(&self) -> Option<DeviceMemory> {
        self.bind().ok()?;
        let (free, total) = memory_info().ok()?;
        let of_pool = |attribute| self.of_pool(attribute).unwrap_or(0);
        // What the pool keeps without anybody holding it can be taken again.
        let reserved = of_pool(CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT);
        let kept = reserved.saturating_sub(of_pool(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT))
            + lock(&self.blocks).bytes() as u64;
        let peak = of_pool(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH);
        Some(DeviceMemory { total: total as u64, free: free as u64 + kept, peak })
    }

    fn profile(&self) -> Vec<KernelTime> {
        self.profile.as_ref().map(Profile::take).unwrap_or_default()
    }

    fn energy_joules(&self) -> Option<f64> {
        self.energy.as_ref()?.joules()
    }

    fn allocate(&self, bytes: usize) -> Result<Address, Fault> {
        self.bind()?;
        if let Some(at) = lock(&self.blocks).take(bytes) {
            return Ok(Address(at));
        }
        match self.take(blocks::size_of(bytes)) {
            Err(Fault::Memory { .. }) => {}
            taken => return taken,
        }
        self.flush()?;
        let kept = lock(&self.blocks).take_all();
        kept.into_iter().for_each(|(at, _)| self.give_back(at));
        self.take(blocks::size_of(bytes))
    }

    fn free(&self, at: Address, bytes: usize) {
        if lock(&self.blocks).keep(at.0, bytes) {
            return;
        }
        // A card that is lost has nothing to give back.
        if self.bind().is_ok() {
            lock(&self.queue).free(self, at, bytes);
        }
    }

    fn copy_in(&self, to: Address, from: &[u8]) -> Result<(), Fault> {
        self.flush()?;
        lock(&self.staging).copy_in(self.stream, to.0, from)
    }

    fn copy_out(&self, from: Address, to: &mut [u8]) -> Result<(), Fault> {
        self.flush()?;
        lock(&self.staging).copy_out(self.stream, from.0, to)
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), Fault> {
        self.flush()?;
        // SAFETY: `Buffer` asks for ranges inside of what it allocated.
        check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(to.0, from.0, bytes, self.stream) })
    }

    fn fill(&self, at: Address, word: u32, words: usize) -> Result<(), Fault> {
        self.flush()?;
        // SAFETY: as in `copy`; memory is aligned to 256 bytes and `Buffer` fills from its beginning.
        check("cuMemsetD32Async", unsafe { sys::cuMemsetD32Async(at.0, word, words, self.stream) })
    }

    fn tensor_map(&self, at: Address, shape: MapShape) -> Result<TensorMap, Fault> {
        self.bind()?;
        let mut map = TensorMap([0; 16]);
        let sizes = [u64::from(shape.cols), u64::from(shape.rows)];
        let (strides, boxes) = ([u64::from(shape.stride) * 2], [shape.box_cols, shape.box_rows]);
        // SAFETY: the map has the size and the alignment of the driver's; the lists have as many numbers as a matrix
        // has dimensions, one less for the strides. Drivers since CUDA 12.0 have the call.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                at.0 as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                [1, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check("cuTensorMapEncodeTiled", result).map(|()| map)
    }

    fn launch(&self, kernel: &'static Kernel, grid: Grid, arguments: Arguments) -> Result<(), Fault> {
        self.bind()?;
        lock(&self.queue).launch(self, Waiting { kernel, grid, arguments })
    }

    fn begin(&self) {
        lock(&self.queue).begin();
    }

    fn end(&self) -> Result<(), Fault> {
        self.bind()?;
        lock(&self.queue).end(self)
    }

    fn synchronize(&self) -> Result<(), Fault> {
        self.flush()?;
        // SAFETY: the stream is the card's own and stays.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }
}

/// The context is current whenever a queue is asked for something.
impl Sink for Card {
    type Graph = Graph;

    fn start(&self, Waiting { kernel, grid, arguments }: &mut Waiting) -> Result<(), Fault> {
        let function = self.function(kernel, grid.shared)?;
        let ([bx, by, bz], [tx, ty, tz], shared) = (grid.blocks, grid.threads, grid.shared as u32);
        let mut pointers = arguments.pointers();
        // SAFETY: `Launch::run` has held the arguments against the kernel's parameters; the driver copies them before
        // it returns, and the memory they point to is given back behind the kernel in the same stream.
        let mut launch = || unsafe {
            let arguments = pointers.as_mut_ptr();
            let stream = self.stream;
            let done =
                sys::cuLaunchKernel(function, bx, by, bz, tx, ty, tz, shared, stream, arguments, ptr::null_mut());
            check("cuLaunchKernel", done)
        };
        match &self.profile {
            None => launch(),
            Some(profile) => profile.time(&kernel.signature.name, self.stream, launch),
        }
    }

    fn build(&self, launches: &mut [Waiting]) -> Result<Graph, Fault> {
        let functions = launches.iter().map(|launch| self.function(launch.kernel, launch.grid.shared));
        let functions = functions.collect::<Result<Vec<_>, _>>()?;
        Graph::of(functions.into_iter().zip(launches))
    }

    fn set(&self, graph: &mut Graph, node: usize, launch: &mut Waiting) -> Result<(), Fault> {
        graph.set(node, self.function(launch.kernel, launch.grid.shared)?, launch)
    }

    fn run(&self, graph: &mut Graph) -> Result<(), Fault> {
        graph.run(self.stream)
    }

    fn release(&self, at: Address, _bytes: usize) {
        self.give_back(at.0);
    }
}
