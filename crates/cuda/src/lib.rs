//! NVIDIA GPUs as a device.
//!
//! Kernels are CUDA C inside the program (`kernels/`), compiled for the card at first use. [`launch`] is the only
//! module that talks to the driver, and the only one with `unsafe`. Everything else lays out arguments: shapes are
//! asserted, a kernel is launched, and nothing waits for the card but what the host reads.
//!
//! **Bits.** The kernels compute in f32 in the orders of `wels_kernels::reference`, with its `exp` and `log` and
//! without contraction, so their results have the processor's bits. A faster kernel may have an order of its own, as
//! long as an element depends on its own operands alone, and weight gradients are chains that micro-batches continue.
//! Activations in bf16 are computed with in f32 and rounded once; sums over rows go by groups that begin with each
//! sequence, so that micro-batches still change no bit.

#![deny(unsafe_code)]

mod attention;
mod experts;
mod head;
pub mod kernels;
#[allow(unsafe_code)]
pub mod launch;
mod memory;
mod paged;
mod parts;
mod pieces;
mod products;
mod quantised;
mod ranks;
mod rows;
mod rows_bf16;
mod tensor_cores;
mod weights;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use wels_device::{Device, DeviceMemory, Dtype, KernelTime, Link, Precision};

use launch::card::Card;
use launch::{Driver, Launch};
pub use ranks::Ranks;

/// A card, or what stands for one.
pub struct Cuda {
    driver: Arc<dyn Driver>,
    last_plan: Mutex<Option<Arc<paged::Plan>>>,
    counts: quantised::Counts,
    equal_parts: tensor_cores::EqualParts,
    /// Other cards of a run that this one, its first rank's, speaks for.
    others: Vec<Arc<dyn Driver>>,
    link: Option<ranks::Linked>,
}

/// Why there is no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The library of NVIDIA's driver is missing.
    #[error("there is no NVIDIA driver: the system's loader does not find libcuda.so.1")]
    Driver,
    /// The driver is older than what is called.
    #[error("the NVIDIA driver is for CUDA {}.{}, and at least {}.{} is needed", has.0, has.1, least.0, least.1)]
    OldDriver {
        /// The newest CUDA that it runs.
        has: (i32, i32),
        /// What is needed.
        least: (i32, i32),
    },
    /// The driver has no card to show.
    #[error("the NVIDIA driver has no card for this program: {reason}")]
    NoCard {
        /// Its words.
        reason: String,
    },
    /// The card is older than what kernels are written for.
    #[error("{name} has compute capability {}.{}, and at least 8.0 is needed", capability.0, capability.1)]
    OldCard {
        /// As the driver says it.
        name: String,
        /// Major and minor version.
        capability: (u32, u32),
    },
    /// The compiler is missing.
    #[error(
        "NVIDIA's compiler NVRTC (libnvrtc.so.12 or .13) is neither in {} nor where the system's loader looks",
        places(looked)
    )]
    Nvrtc {
        /// Directories that were looked into.
        looked: Vec<PathBuf>,
    },
    /// The program was built without the emulator, or where it could not be built.
    #[error(
        "the emulator of CUDA kernels is not in this program: it takes x86-64 Linux and a C++20 compiler at build time"
    )]
    Emulator,
    /// Something else went wrong while the card was opened.
    #[error("the card cannot be opened: {reason}")]
    Failed {
        /// The driver's words.
        reason: String,
    },
}

fn places(looked: &[PathBuf]) -> String {
    match looked {
        [] => format!("any directory of {} (which names none)", launch::libraries::VARIABLE),
        looked => looked.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", "),
    }
}

impl Cuda {
    /// The first card. All callers share one device.
    pub fn open() -> Result<Arc<dyn Device>, Unavailable> {
        static DEVICE: OnceLock<Result<Arc<Cuda>, Unavailable>> = OnceLock::new();
        let opened = DEVICE.get_or_init(|| Ok(Cuda::on(Cuda::open_card(0)?)));
        opened.clone().map(|cuda| cuda as Arc<dyn Device>)
    }

    /// A card, opened once.
    fn open_card(ordinal: usize) -> Result<Arc<Card>, Unavailable> {
        static CARDS: Mutex<BTreeMap<usize, Result<Arc<Card>, Unavailable>>> = Mutex::new(BTreeMap::new());
        let mut cards = CARDS.lock().unwrap_or_else(PoisonError::into_inner);
        cards.entry(ordinal).or_insert_with(|| Card::open(ordinal)).clone()
    }

    /// On a driver of one's own.
    pub fn on(driver: Arc<dyn Driver>) -> Arc<Cuda> {
        Cuda::of(driver, Vec::new(), None)
    }

    fn of(driver: Arc<dyn Driver>, others: Vec<Arc<dyn Driver>>, link: Option<ranks::Linked>) -> Arc<Cuda> {
        let (last_plan, counts, equal_parts) = Default::default();
        Arc::new(Cuda { driver, last_plan, counts, equal_parts, others, link })
    }

    /// The sum of a figure over the cards that this one speaks for.
    fn of_all(&self, figure: impl Fn(&dyn Driver) -> Option<f64>) -> Option<f64> {
        let others = self.others.iter().map(|driver| figure(&**driver));
        others.fold(figure(&*self.driver), |sum, other| Some(sum? + other?))
    }

    fn launch(&self, kernel: &str) -> Launch<'_> {
        Launch::new(&self.driver, kernel)
    }
}

/// Until this is dropped launches may wait for each other.
struct Begun<'a>(&'a dyn Driver);

impl<'a> Begun<'a> {
    fn of(driver: &'a dyn Driver) -> Begun<'a> {
        driver.begin();
        Begun(driver)
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let ended = self.0.end();
        if !std::thread::panicking() {
            memory::done(ended);
        }
    }
}

impl Device for Cuda {
    fn name(&self) -> &str {
        "cuda"
    }

    fn activations(&self, precision: Precision) -> Dtype {
        if precision == Precision::Bf16 { Dtype::Bf16 } else { Dtype::F32 }
    }

    fn together(&self, work: &mut dyn FnMut()) {
        let _ends = Begun::of(&*self.driver);
        work();
        // No other step has the same, and the next one's is to lie where this did.
        self.last_plan.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn keeps_steps(&self) -> bool {
        true
    }

    fn in_words(&self) -> String {
        let (major, minor) = self.driver.capability();
        format!("{}, compute capability {major}.{minor}", self.driver.name())
    }

    fn peak_flops(&self, precision: Precision) -> Option<f64> {
        self.of_all(|driver| {
            let rates = driver.rates()?;
            Some(if precision == Precision::F32 { rates.f32_flops } else { rates.half_flops })
        })
    }

    fn peak_bytes_per_second(&self) -> Option<f64> {
        Some(self.driver.rates()?.bytes)
    }

    fn memory(&self) -> Option<DeviceMemory> {
        self.driver.memory()
    }

    fn profile(&self) -> Vec<KernelTime> {
        self.driver.profile()
    }

    fn energy_joules(&self) -> Option<f64> {
        self.of_all(|driver| driver.energy_joules())
    }

    fn link(&self) -> Option<&dyn Link> {
        self.link.as_ref().map(|link| link as &dyn Link)
    }
}
