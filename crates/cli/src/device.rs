//! `--device`: what a verb computes with.

use std::sync::Arc;

use anyhow::Result;
use wels_cuda::{Cuda, Unavailable};
use wels_device::Device;
use wels_pipeline::refusal::refuse;

/// Where numbers are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceKind {
    /// The processor
    #[default]
    Cpu,
    /// An NVIDIA GPU
    Cuda,
    /// An NVIDIA GPU if one can be used, else the processor
    Auto,
}

/// The choice on the command line.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct DeviceArgs {
    /// What to compute with; if left out, what a run was begun with, else an NVIDIA GPU if one can be used. Another
    /// device than the one that began a run may give other bits
    #[arg(long, value_enum, value_name = "DEVICE")]
    device: Option<DeviceKind>,
}

impl DeviceArgs {
    /// The device that is asked for, or a GPU if one can be used. A machine without a driver for one is not told so.
    ///
    /// # Errors
    /// As [`DeviceKind::open`].
    pub fn open(self) -> Result<Arc<dyn Device>> {
        match self.device {
            None if Cuda::open().is_err_and(|why| why == Unavailable::Driver) => DeviceKind::Cpu.open(),
            device => device.unwrap_or(DeviceKind::Auto).open(),
        }
    }

    /// Whether nothing but a GPU will do.
    pub fn asks_for_gpu(self) -> bool {
        self.device == Some(DeviceKind::Cuda)
    }

    /// The device that is asked for, if one is.
    ///
    /// # Errors
    /// As [`DeviceKind::open`].
    pub fn given(self) -> Result<Option<Arc<dyn Device>>> {
        self.device.map(DeviceKind::open).transpose()
    }

    /// The device that is asked for, or else the one that a run's ledger names.
    ///
    /// # Errors
    /// As [`DeviceKind::open`]; if the run was computed on a GPU, and none can be used.
    pub fn open_for(self, begun: Option<&str>) -> Result<Arc<dyn Device>> {
        match (self.device, begun) {
            (None, Some("cpu")) => DeviceKind::Cpu.open(),
            (None, Some("cuda")) => DeviceKind::Cuda.open().map_err(|error| {
                let hint = "--device cpu computes with the processor, whose bits may differ";
                refuse(format!("the run was computed on a GPU, and {error}"), hint)
            }),
            _ => self.open(),
        }
    }
}

impl DeviceKind {
    /// The device. Where it is a GPU or might have been, says on stderr which it is.
    ///
    /// # Errors
    /// If a GPU is asked for and cannot be used.
    pub fn open(self) -> Result<Arc<dyn Device>> {
        if self == DeviceKind::Cpu {
            return Ok(wels_cpu::device());
        }
        match Cuda::open() {
            Ok(card) => {
                eprintln!("device: {}", card.in_words());
                Ok(card)
            }
            Err(why) if self == DeviceKind::Auto => {
                eprintln!("device: the processor; {why}");
                Ok(wels_cpu::device())
            }
            Err(why) => Err(refuse(why.to_string(), "leave --device out to compute with the processor")),
        }
    }
}

/// A device for each of some ranks, where the first would have this one: of GPUs all that there are, of which stderr
/// says how they are joined; the processor for all.
///
/// # Errors
/// If another GPU than the first cannot be used.
pub fn for_ranks(first: Arc<dyn Device>, ranks: usize) -> Result<Vec<Arc<dyn Device>>> {
    if ranks == 1 || first.name() != "cuda" {
        return Ok(vec![first; ranks]);
    }
    let hint = "CUDA_VISIBLE_DEVICES leaves out a GPU that cannot be used";
    let opened = Cuda::open_ranks(ranks).map_err(|why| refuse(why.to_string(), hint))?;
    eprintln!("device: {}", opened.in_words);
    Ok(opened.devices)
}

/// The device of this name, of which the first rank has told: nothing is said about it.
///
/// # Errors
/// If it cannot be used here.
#[cfg(feature = "mpi")]
pub fn by_name(name: &str) -> Result<Arc<dyn Device>> {
    match name {
        "cuda" => Ok(Cuda::open().map_err(|why| refuse(why.to_string(), "--device cpu computes with the processor"))?),
        _ => Ok(wels_cpu::device()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_goes_on_with_the_device_that_began_it() {
        let left_out = DeviceArgs::default();
        assert_eq!(left_out.open_for(Some("cpu")).unwrap().name(), "cpu");
        if Cuda::open().is_ok() {
            assert_eq!(left_out.open_for(Some("cuda")).unwrap().name(), "cuda");
        } else {
            let refused = left_out.open_for(Some("cuda")).unwrap_err().to_string();
            assert!(refused.starts_with("the run was computed on a GPU, and "), "{refused}");
            assert_eq!(left_out.open_for(None).unwrap().name(), "cpu");
        }
        let given = DeviceArgs { device: Some(DeviceKind::Cpu) };
        assert_eq!(given.open_for(Some("cuda")).unwrap().name(), "cpu");
        assert_eq!(given.given().unwrap().unwrap().name(), "cpu");
        assert!(left_out.given().unwrap().is_none());
    }
}
