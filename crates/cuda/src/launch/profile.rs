//! How long each kernel takes, where [`VARIABLE`] asks for it. Every launch is then waited for, so the whole is slower
//! than without; what is not in any kernel's time is copies, memory and the host.

use std::collections::HashMap;
use std::env;
use std::ptr;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys::{self, CUevent, CUstream};
use wels_device::KernelTime;

use super::Fault;
use super::card::check;

/// Asks for it, with any value that is not empty.
pub const VARIABLE: &str = "WELS_CUDA_PROFILE";

/// Launches and seconds of each kernel.
pub(super) struct Profile {
    events: [CUevent; 2],
    totals: Mutex<HashMap<&'static str, (u64, f64)>>,
}

// SAFETY: events belong to the process, not to a thread; between `begin` and `end` a launch holds the lock.
unsafe impl Send for Profile {}
// SAFETY: as above.
unsafe impl Sync for Profile {}

impl Profile {
    /// If it is asked for; a context is current.
    pub fn open() -> Result<Option<Profile>, Fault> {
        if env::var_os(VARIABLE).is_none_or(|value| value.is_empty()) {
            return Ok(None);
        }
        let mut events = [ptr::null_mut(); 2];
        for event in &mut events {
            // SAFETY: a context is current, and the event is written to its place.
            check("cuEventCreate", unsafe { sys::cuEventCreate(event, 0) })?;
        }
        Ok(Some(Profile { events, totals: Mutex::default() }))
    }

    /// Does a launch, waits for it and counts its time.
    pub fn time(
        &self,
        kernel: &'static str,
        stream: CUstream,
        launch: impl FnOnce() -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let [begin, end] = self.events;
        // SAFETY: the events and the stream are there as long as the process.
        check("cuEventRecord", unsafe { sys::cuEventRecord(begin, stream) })?;
        launch()?;
        let mut milliseconds = 0.0;
        // SAFETY: as above; the time is written to its place when both events have passed.
        unsafe {
            check("cuEventRecord", sys::cuEventRecord(end, stream))?;
            check("cuEventSynchronize", sys::cuEventSynchronize(end))?;
            check("cuEventElapsedTime", sys::cuEventElapsedTime_v2(&mut milliseconds, begin, end))?;
        }
        let (launches, seconds) = totals.entry(kernel).or_default();
        *launches += 1;
        *seconds += f64::from(milliseconds) / 1e3;
        Ok(())
    }

    /// What was counted since it was last asked for, the longest first.
    pub fn take(&self) -> Vec<KernelTime> {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let of =
            |(kernel, (launches, seconds)): (&str, (u64, f64))| KernelTime { kernel: kernel.into(), launches, seconds };
        let mut times: Vec<KernelTime> = totals.drain().map(of).collect();
        times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        times
    }
}
