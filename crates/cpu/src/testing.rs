//! What tests of models use: the device that they run on, and tensors as the host sees them.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use wels_device::{Device, Tensor};

/// Which device tests run on: `cpu`, `naive` for [`Naive`](crate::naive::Naive), or with the feature `emulator` that
/// of CUDA kernels, `emulator:7` with 7 as the seed of the order in which it steps, and `cuda` for a card.
pub const VARIABLE: &str = "WELS_TEST_DEVICE";

/// The device that [`VARIABLE`] names; the processor if it is not set. All tests of a process share it.
///
/// # Panics
/// If there is no such device.
pub fn device() -> Arc<dyn Device> {
    static DEVICE: OnceLock<Arc<dyn Device>> = OnceLock::new();
    let make = || match std::env::var(VARIABLE).as_deref() {
        Err(_) | Ok("cpu") => crate::device(),
        Ok("naive") => crate::naive::Naive::new(),
        #[cfg(feature = "emulator")]
        Ok(name) if name.starts_with("emulator") => {
            let seed = name.split_once(':').map_or(1, |(_, seed)| seed.parse().expect("a whole number as its seed"));
            emulator(seed).expect("the emulator")
        }
        #[cfg(feature = "emulator")]
        Ok("cuda") => wels_cuda::Cuda::open().unwrap_or_else(|why| panic!("{why}")),
        Ok(other) => panic!("{VARIABLE}={other}: there are cpu, naive, emulator and cuda"),
    };
    DEVICE.get_or_init(make).clone()
}

/// Whether [`device`] steps through the kernels for cards, which takes long.
pub fn is_emulated() -> bool {
    std::env::var(VARIABLE).is_ok_and(|name| name.starts_with("emulator"))
}

/// A device of its own that runs the kernels for cards on the processor, in an order that `seed` chooses; none, and a
/// line that says so, where the emulator could not be built.
#[cfg(feature = "emulator")]
pub fn emulator(seed: u32) -> Option<Arc<dyn Device>> {
    emulator_and_driver(seed).map(|(device, _)| device)
}

/// The same with what it launches kernels by.
#[cfg(feature = "emulator")]
pub fn emulator_and_driver(seed: u32) -> Option<(Arc<dyn Device>, Arc<wels_cuda::launch::emulator::Emulator>)> {
    match wels_cuda::launch::emulator::Emulator::open(seed) {
        Ok(driver) => Some((wels_cuda::Cuda::on(driver.clone()), driver)),
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            None
        }
    }
}

/// Emulated cards of so many ranks, which hand each other numbers; none as for [`emulator`].
#[cfg(feature = "emulator")]
pub fn emulators(ranks: u32) -> Option<Vec<Arc<dyn Device>>> {
    let driver = |rank| emulator_and_driver(1 + rank).map(|(_, driver)| driver as Arc<dyn wels_cuda::launch::Driver>);
    let drivers = (0..ranks).map(driver).collect::<Option<Vec<_>>>()?;
    Some(wels_cuda::Cuda::linked(&drivers).into_iter().map(|card| card as Arc<dyn Device>).collect())
}

/// A tensor's values, with its rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    values: Vec<f32>,
    cols: usize,
}

impl Host {
    /// Row `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.cols..][..self.cols]
    }
}

impl Deref for Host {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

/// A copy of a tensor.
pub fn host(tensor: &Tensor) -> Host {
    Host { values: tensor.to_host().into_owned(), cols: tensor.cols() }
}

/// Changes a tensor by changing a copy of its values on the host.
pub fn edit(tensor: &mut Tensor, change: impl FnOnce(&mut [f32])) {
    let mut values = tensor.to_host().into_owned();
    change(&mut values);
    tensor.set(0, &values);
}
