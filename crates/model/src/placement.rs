//! Which of two devices has which part of a model that answers: a card that is too small has as much of it as fits, and
//! the processor the rest.
//!
//! A placement is given with the weights ([`Params`](crate::params::Params)). A pass computes where the parameters of
//! the part under way are; the keys and values of a layer are where its attention is, and states cross at the borders
//! (`ops::bring`).

use std::ops::Range;
use std::sync::Arc;

use crate::config::ModelConfig;
use crate::names::{ParamKind, ParamSpec};
use wels_device::Device;

/// One of the devices of a [`Placement`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Where final norm, head and MTP are, and what nothing else is said of.
    #[default]
    Main,
    /// Where what [`Elsewhere`] names is.
    Other,
}

/// What of a model is on the other device, besides an embedding that is no head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere {
    /// The first so many decoder layers, with their keys and values.
    pub layers: usize,
    /// The routed experts, with their choice, of the first so many layers, MTP layers counting on from the last.
    pub experts: usize,
}

/// Which device has which part of a model.
#[derive(Clone, Debug)]
pub struct Placement {
    main: Arc<dyn Device>,
    other: Option<(Arc<dyn Device>, Elsewhere)>,
}

impl From<&Arc<dyn Device>> for Placement {
    fn from(device: &Arc<dyn Device>) -> Self {
        Placement { main: device.clone(), other: None }
    }
}

impl From<&Placement> for Placement {
    fn from(placement: &Placement) -> Self {
        placement.clone()
    }
}

impl Placement {
    /// On `main`, but for what is on `other`.
    pub fn split(main: &Arc<dyn Device>, other: &Arc<dyn Device>, elsewhere: Elsewhere) -> Self {
        let any = elsewhere != Elsewhere::default();
        Placement { main: main.clone(), other: any.then(|| (other.clone(), elsewhere)) }
    }

    /// What computes the final norm and the head.
    pub fn main(&self) -> &Arc<dyn Device> {
        &self.main
    }

    /// The other device, if something is there.
    pub fn other(&self) -> Option<&Arc<dyn Device>> {
        self.other.as_ref().map(|(device, _)| device)
    }

    /// What is on it.
    pub fn elsewhere(&self) -> Elsewhere {
        self.other.as_ref().map_or(Elsewhere::default(), |(_, elsewhere)| *elsewhere)
    }

    /// The device of a place; the main one where there is no other.
    pub fn device(&self, place: Place) -> &Arc<dyn Device> {
        match place {
            Place::Main => &self.main,
            Place::Other => self.other().unwrap_or(&self.main),
        }
    }

    /// Where a parameter is.
    pub fn of(&self, config: &ModelConfig, spec: &ParamSpec) -> Place {
        let Some((_, elsewhere)) = &self.other else { return Place::Main };
        let there = match (spec.layer(), spec.kind) {
            (Some(layer), _) if layer < elsewhere.layers.min(config.layers) => true,
            (
                Some(layer),
                ParamKind::Experts(_) | ParamKind::ExpertBiases(_) | ParamKind::RouterBias | ParamKind::Table,
            ) => layer < elsewhere.experts,
            (None, ParamKind::Embedding) => !config.tied_head,
            _ => false,
        };
        if there { Place::Other } else { Place::Main }
    }

    /// Layers whose keys and values are at a place, MTP layers counting on from the last.
    pub fn cached_layers(&self, config: &ModelConfig, place: Place) -> Range<usize> {
        let others = self.other.as_ref().map_or(0, |(_, elsewhere)| elsewhere.layers.min(config.layers));
        match place {
            Place::Main => others..config.layers + config.mtp_depth,
            Place::Other => 0..others,
        }
    }
}
