//! `wels plan [MODEL] --eplb loads.json --replicas N --nodes N --gpus N`: where replicas of experts stand so that
//! devices are loaded evenly.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;
use wels_model::config::ModelConfig;
use wels_model::eplb::{Placement, Room, place};
use wels_model::traffic::groups;
use wels_pipeline::refusal::refuse;
use wels_pipeline::words::short;

use crate::output;

/// The balancer, as the command line asks for it.
#[derive(clap::Args)]
pub struct Args {
    /// Place replicas of experts by their loads: JSON, one list of loads a layer
    #[arg(long, value_name = "FILE", requires = "replicas", conflicts_with_all = ["claim", "prices", "cluster"])]
    eplb: Option<PathBuf>,
    /// Experts and replicas of a layer, in all
    #[arg(long, value_name = "N", requires = "eplb")]
    replicas: Option<usize>,
    /// Nodes that they are placed on
    #[arg(long, value_name = "N", default_value_t = 1, requires = "eplb")]
    nodes: usize,
    /// Devices of all nodes together
    #[arg(long, value_name = "N", default_value_t = 8, requires = "eplb")]
    gpus: usize,
    /// Groups of experts that routing is limited to; if left out, the model's
    #[arg(long, value_name = "N", requires = "eplb")]
    groups: Option<usize>,
}

/// Where a layer's experts stand.
#[derive(Serialize)]
struct Layer {
    /// The expert of each slot, device by device.
    experts: Vec<usize>,
    /// The slots of each expert.
    slots: Vec<Vec<usize>>,
    device_loads: Vec<f64>,
    /// The most loaded device over the mean.
    imbalance: f64,
    /// Without a replica, experts in order; `null` where the devices do not divide them.
    imbalance_in_order: Option<f64>,
}

impl Args {
    pub fn is_asked(&self) -> bool {
        self.eplb.is_some()
    }

    /// Places and prints; of a model its groups are known, and how many experts a layer has.
    pub fn place(&self, config: Option<&ModelConfig>, json: bool) -> Result<()> {
        let file = self.eplb.as_ref().expect("asked for");
        let named = file.display();
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {named}"))?;
        let layers: Vec<Vec<f64>> = serde_json::from_str(&text).map_err(|error| {
            refuse(format!("{named} is no list of layers' loads: {error}"), "write it as in [[90, 132], [20, 107]]")
        })?;
        let moe = config.and_then(|config| config.moe.as_ref());
        if let Some((layer, moe)) = layers.iter().zip(moe).find(|(loads, moe)| loads.len() != moe.experts) {
            let message =
                format!("{named} has {} loads in a layer, and the model {} experts", layer.len(), moe.experts);
            return Err(refuse(message, "give one load for each routed expert"));
        }
        let room = Room {
            replicas: self.replicas.expect("required"),
            groups: self.groups.or(moe.map(|moe| groups(moe).0)).unwrap_or(1),
            nodes: self.nodes,
            devices: self.gpus,
        };
        let placed = layers.iter().map(|loads| self.layer(loads, room)).collect::<Result<Vec<_>>>()?;
        if json { Ok(output::json(&placed)?) } else { Ok(self.print(&placed)?) }
    }

    fn layer(&self, loads: &[f64], room: Room) -> Result<Layer> {
        let placed = place(loads, room).map_err(|error| {
            refuse(error.to_string(), "--gpus divides --replicas, --nodes divides --gpus, and no expert goes without")
        })?;
        let in_order = || {
            let slots = (0..loads.len()).map(|expert| vec![expert]).collect();
            Placement { experts: (0..loads.len()).collect(), slots }.imbalance(loads, room.devices)
        };
        Ok(Layer {
            device_loads: placed.device_loads(loads, room.devices),
            imbalance: placed.imbalance(loads, room.devices),
            imbalance_in_order: loads.len().is_multiple_of(room.devices).then(in_order),
            experts: placed.experts,
            slots: placed.slots,
        })
    }

    fn print(&self, layers: &[Layer]) -> std::io::Result<()> {
        for (number, layer) in layers.iter().enumerate() {
            let before = layer.imbalance_in_order.map_or(String::new(), |before| format!(", {before:.4} in order"));
            output::line(&format!("layer {number}: most loaded device {:.4} of the mean{before}", layer.imbalance))?;
            let per_device = layer.experts.len() / self.gpus;
            for (device, experts) in layer.experts.chunks(per_device).enumerate() {
                let node = device / (self.gpus / self.nodes);
                let experts: Vec<_> = experts.iter().map(usize::to_string).collect();
                let load = short(layer.device_loads[device]);
                output::line(&format!(
                    "  node {node} device {device:<4} load {load:>7}  experts {}",
                    experts.join(" ")
                ))?;
            }
        }
        Ok(())
    }
}
