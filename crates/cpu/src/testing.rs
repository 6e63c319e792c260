//! What tests of models use: the device that they run on, and tensors as the host sees them.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use wels_device::{Device, Tensor};

/// Which device tests run on: `cpu`, or `naive` for [`Naive`](crate::naive::Naive).
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
        Ok(other) => panic!("{VARIABLE}={other}: there are cpu and naive"),
    };
    DEVICE.get_or_init(make).clone()
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
