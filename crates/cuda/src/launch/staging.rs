//! Pinned memory of the host, through which copies go.

use std::ptr;

use cudarc::driver::sys::{self, CUdeviceptr, CUevent, CUevent_flags, CUstream};

use super::Fault;
use super::card::check;

/// Bytes of a slot, and how many.
const SLOT: usize = 256 << 10;
const SLOTS: usize = 32;

/// Slots that are used in turn; each has an event that is recorded behind its copy.
pub(super) struct Staging {
    memory: *mut u8,
    events: Vec<CUevent>,
    next: usize,
}

// SAFETY: the memory and the events belong to the process, not to a thread; the context that they are used in is made
// current before every call.
unsafe impl Send for Staging {}

impl Staging {
    /// Takes the memory; the context is current.
    pub fn new() -> Result<Staging, Fault> {
        let mut memory = ptr::null_mut();
        // SAFETY: a context is current, and the address is written to its place.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut memory, SLOT * SLOTS, 0) })?;
        let mut events = Vec::new();
        for _ in 0..SLOTS {
            let mut event = ptr::null_mut();
            let flags = CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
            // SAFETY: as above.
            check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, flags) })?;
            events.push(event);
        }
        Ok(Staging { memory: memory.cast(), events, next: 0 })
    }

    /// Queues a copy to the card; `from` may be changed afterwards.
    pub fn copy_in(&mut self, stream: CUstream, to: CUdeviceptr, from: &[u8]) -> Result<(), Fault> {
        for (part, bytes) in from.chunks(SLOT).enumerate() {
            let (slot, event) = (self.slot(), self.events[self.next]);
            let to = to + (part * SLOT) as CUdeviceptr;
            // SAFETY: the event behind the slot's last copy has passed, so the slot's memory is free; it has room for
            // `bytes`, and the caller owns as many at `to`.
            unsafe {
                check("cuEventSynchronize", sys::cuEventSynchronize(event))?;
                ptr::copy_nonoverlapping(bytes.as_ptr(), slot, bytes.len());
                check("cuMemcpyHtoDAsync", sys::cuMemcpyHtoDAsync_v2(to, slot.cast(), bytes.len(), stream))?;
                check("cuEventRecord", sys::cuEventRecord(event, stream))?;
            }
            self.next = (self.next + 1) % SLOTS;
        }
        Ok(())
    }

    /// Copies to the host, and waits for everything queued before.
    pub fn copy_out(&mut self, stream: CUstream, from: CUdeviceptr, to: &mut [u8]) -> Result<(), Fault> {
        // All slots at a time, as nothing is queued behind a copy that is waited for.
        for (part, bytes) in to.chunks_mut(SLOT * SLOTS).enumerate() {
            let from = from + (part * SLOT * SLOTS) as CUdeviceptr;
            // SAFETY: the stream is waited for before the slots are written to and again before they are read; they
            // have room for `bytes`, and the caller owns as many at `from`.
            unsafe {
                check("cuStreamSynchronize", sys::cuStreamSynchronize(stream))?;
                check("cuMemcpyDtoHAsync", sys::cuMemcpyDtoHAsync_v2(self.memory.cast(), from, bytes.len(), stream))?;
                check("cuStreamSynchronize", sys::cuStreamSynchronize(stream))?;
                ptr::copy_nonoverlapping(self.memory, bytes.as_mut_ptr(), bytes.len());
            }
        }
        Ok(())
    }

    fn slot(&self) -> *mut u8 {
        // SAFETY: `next` is below the number of slots.
        unsafe { self.memory.add(self.next * SLOT) }
    }
}
