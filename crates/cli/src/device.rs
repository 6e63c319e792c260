//! `--device`: what a verb computes with.

use std::sync::Arc;

use anyhow::Result;
use wels_cuda::Cuda;
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
    /// What to compute with. Another device than the one that began a run may give other bits
    #[arg(long, value_enum, value_name = "DEVICE", default_value_t)]
    device: DeviceKind,
}

impl DeviceArgs {
    /// The device, as [`DeviceKind::open`] does.
    pub fn open(self) -> Result<Arc<dyn Device>> {
        self.device.open()
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
