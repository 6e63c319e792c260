//! The counter of a card's energy, by NVIDIA's management library, which comes with the driver. A machine without it, or
//! a card that does not count, has no figure, and that is no error.

use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr;

use libloading::Library;

const LIBRARY: &str = "libnvidia-ml.so.1";
const SUCCESS: c_int = 0;

type Device = *mut c_void;
type Init = unsafe extern "C" fn() -> c_int;
type ByBusId = unsafe extern "C" fn(*const c_char, *mut Device) -> c_int;
type TotalEnergy = unsafe extern "C" fn(Device, *mut u64) -> c_int;

/// A card's counter.
pub struct Meter {
    device: Device,
    energy: TotalEnergy,
    /// Has the code that `energy` points to.
    _library: Library,
}

// SAFETY: the library may be called from any thread, and the device is a handle of the process.
unsafe impl Send for Meter {}
// SAFETY: as above.
unsafe impl Sync for Meter {}

impl Meter {
    /// The counter of the card on this bus, `0000:1b:00.0`, if there is one.
    pub fn open(bus_id: &str) -> Option<Meter> {
        Meter::of(LIBRARY, bus_id)
    }

    fn of(library: &str, bus_id: &str) -> Option<Meter> {
        let bus_id = CString::new(bus_id).ok()?;
        // SAFETY: loading NVIDIA's library runs its initialisers, which are written for that.
        let library = unsafe { Library::new(library) }.ok()?;
        // SAFETY: the symbols have these types in nvml.h, of every version since 11; the library is kept as long as
        // they are called. Initialising twice is counted, and the process never ends it.
        unsafe {
            let init = *library.get::<Init>(b"nvmlInit_v2\0").ok()?;
            let by_bus_id = *library.get::<ByBusId>(b"nvmlDeviceGetHandleByPciBusId_v2\0").ok()?;
            let energy = *library.get::<TotalEnergy>(b"nvmlDeviceGetTotalEnergyConsumption\0").ok()?;
            let mut device = ptr::null_mut();
            let found = init() == SUCCESS && by_bus_id(bus_id.as_ptr(), &mut device) == SUCCESS;
            let meter = Meter { device, energy, _library: library };
            found.then_some(meter).filter(|meter| meter.joules().is_some())
        }
    }

    /// Joules since the driver was loaded, of all that the card does, whoever asks for it.
    pub fn joules(&self) -> Option<f64> {
        let mut millijoules = 0;
        // SAFETY: the handle was given by the library, and the number is written to its place.
        let result = unsafe { (self.energy)(self.device, &mut millijoules) };
        (result == SUCCESS).then_some(millijoules as f64 / 1e3)
    }
}

/// Room for a bus, as the driver writes it.
pub(super) const BUS_ID_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_or_another_one_counts_nothing() {
        assert!(Meter::of("libnothing-of-this-name.so.1", "0000:00:00.0").is_none());
        assert!(Meter::of("libc.so.6", "0000:00:00.0").is_none());
        assert!(Meter::of("libc.so.6", "a\0b").is_none());
    }
}
