//! How a pass computes: on which devices, in which numbers, and what it keeps.

use crate::placement::{Place, Placement};
use std::sync::Arc;
use wels_device::{Device, Pool, Precision};

/// How to compute, whatever is computed.
#[derive(Clone)]
pub struct Execution {
    /// Where tensors come from.
    pub pool: Pool,
    /// Arithmetic of linear and expert products. Everything else (embedding, router, norms, attention) is f32, where
    /// the device does not keep activations in bf16 ([`Device::activations`]).
    pub precision: Precision,
    /// Layers (MTP layers counting on from the last) of which only the input is kept, to be run again in the backward
    /// pass.
    pub recompute: Recompute,
    /// How the other device of a [`Placement`] computes, if there is one.
    pub other: Option<Box<Execution>>,
}

/// Which layers to run again in the backward pass instead of keeping what they computed. Changes no bit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// Keep everything.
    #[default]
    None,
    /// These layers.
    Layers(Vec<usize>),
    /// All layers.
    All,
}

impl Recompute {
    /// Whether layer `layer` is run again.
    pub fn includes(&self, layer: usize) -> bool {
        match self {
            Recompute::None => false,
            Recompute::Layers(layers) => layers.contains(&layer),
            Recompute::All => true,
        }
    }
}

impl Execution {
    /// On `device`, in f32, keeping everything that a backward pass needs.
    pub fn new(device: Arc<dyn Device>) -> Self {
        Execution { pool: Pool::new(device), precision: Precision::F32, recompute: Recompute::None, other: None }
    }

    /// For inference on the devices of `placement`, products of the main one in `main`, those of the other in `other`.
    pub fn placed(placement: &Placement, main: Precision, other: Precision) -> Self {
        let on = |device: &Arc<dyn Device>, precision| Execution { precision, ..Execution::new(device.clone()) };
        let other = placement.other().map(|device| Box::new(on(device, other)));
        Execution { other, ..on(placement.main(), main) }
    }

    /// How a place computes: as the main one does where there is no other.
    pub fn at(&self, place: Place) -> &Execution {
        match (place, &self.other) {
            (Place::Other, Some(other)) => other,
            _ => self,
        }
    }

    /// What computes.
    pub fn device(&self) -> &Arc<dyn Device> {
        self.pool.device()
    }
}
