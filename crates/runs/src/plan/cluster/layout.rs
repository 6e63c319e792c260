//! Clusters and layouts as the command line says them, which layouts hold, and the best of those that fit.

use std::collections::HashSet;

use serde::Serialize;
use wels_model::config::ModelConfig;

use super::schedule::Schedule;
use super::{Cluster, ClusterPlan, Training, planned};
use crate::plan::PlanError;
use crate::plan::devices::{Device, Devices};

/// How a training is spread over ranks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// Stages of the pipeline.
    pub pipeline: usize,
    /// Ranks that share the experts of a layer.
    pub experts: usize,
    /// Ranks of one stage, each with sequences of its own.
    pub data: usize,
    pub schedule: Schedule,
    /// Sequences of a step.
    pub batch: usize,
    /// Sequences of a micro-batch.
    pub micro_batch: usize,
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parallel {
    Given(Layout),
    /// The best that fits, with this batch.
    Search {
        batch: usize,
    },
}

const CLUSTER_KEYS: [&str; 8] = ["nodes", "gpus", "device", "ib", "nvlink", "flops", "memory", "bandwidth"];
const LAYOUT_KEYS: [&str; 6] = ["pp", "ep", "dp", "schedule", "batch", "micro"];

/// `key=value,…`, each key once and known.
fn pairs<'a>(option: &'static str, text: &'a str, known: &[&str]) -> Result<Vec<(&'a str, &'a str)>, PlanError> {
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| {
            PlanError::refused(format!("{option}: {pair} has no '='"), format!("its keys are: {}", known.join(", ")))
        })?;
        let (key, value) = (key.trim(), value.trim());
        if !known.contains(&key) {
            return Err(PlanError::unknown("key", key, known.iter().copied()));
        }
        if pairs.iter().any(|(other, _)| *other == key) {
            return Err(PlanError::refused(format!("{option} has {key} twice"), "say it once"));
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

fn whole(option: &str, key: &str, value: &str) -> Result<usize, PlanError> {
    let number = value.parse::<usize>().ok().filter(|number| (1..=1 << 24).contains(number));
    number.ok_or_else(|| {
        let message = format!("{option}: {key}={value} is not a whole number from 1 to {}", 1 << 24);
        PlanError::refused(message, "check the value")
    })
}

fn above_0(option: &str, key: &str, value: &str) -> Result<f64, PlanError> {
    let number = value.parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| {
        PlanError::refused(format!("{option}: {key}={value} is not a number above 0"), "check the value")
    })
}

impl Cluster {
    /// Reads `nodes=256,gpus=8,device=h800,ib=50,nvlink=160`; of `device=cpu` also `flops`, `memory`, `bandwidth`.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn parse(text: &str, devices: &Devices) -> Result<Cluster, PlanError> {
        const OPTION: &str = "--cluster";
        let pairs = pairs(OPTION, text, &CLUSTER_KEYS)?;
        let get = |key: &str| pairs.iter().find(|(known, _)| *known == key).map(|(_, value)| *value);
        let count = |key: &str| get(key).map_or(Ok(1), |value| whole(OPTION, key, value)).map(|count| count as u64);
        let rate = |key: &str| get(key).map(|value| above_0(OPTION, key, value)).transpose();
        let (nodes, devices_per_node) = (count("nodes")?, count("gpus")?);
        let name = get("device").unwrap_or("h800");
        let measured = name == "cpu";
        let missing = |key: &str, what: &str| {
            PlanError::refused(format!("{OPTION} lacks {key}, {what}"), format!("add {key}=… to it"))
        };
        let device = match measured {
            true => {
                let flops = rate("flops")?.ok_or_else(|| missing("flops", "measured operations a second, 1e9"))?;
                of_cpu(flops, rate("memory")?.unwrap_or(16.0), rate("bandwidth")?.unwrap_or(20.0))
            }
            false => {
                if let Some(key) = ["flops", "memory", "bandwidth"].into_iter().find(|key| get(key).is_some()) {
                    let message = format!("{OPTION}: {key} is for device=cpu");
                    return Err(PlanError::refused(message, "other devices have rows: --device-table FILE"));
                }
                devices.get(name)?.clone()
            }
        };
        let link = |key: &str, needed: bool, between: &str| match (rate(key)?, needed) {
            (None, true) => Err(missing(key, &format!("1e9 bytes a second in a direction between {between}"))),
            (rate, _) => Ok(1e9 * rate.unwrap_or(1.0)),
        };
        Ok(Cluster {
            nodes,
            devices_per_node,
            device,
            ib: link("ib", nodes > 1, "nodes")?,
            nvlink: link("nvlink", devices_per_node > 1, "devices of a node")?,
            measured,
        })
    }
}

/// A processor with a measured rate.
fn of_cpu(gflops: f64, memory_gb: f64, bandwidth_gb_s: f64) -> Device {
    Device {
        name: "cpu".into(),
        title: "a processor".into(),
        memory_gb,
        bandwidth_gb_s,
        tflops_f32: gflops / 1e3,
        tflops_bf16: gflops / 1e3,
        tflops_fp8: None,
        usd_per_hour: 0.0,
        date: String::new(),
        source: "measured by whoever plans".into(),
    }
}

impl Parallel {
    /// Reads `pp=16,ep=64,dp=128` with `schedule`, `batch` and `micro`, or `search` with `batch`. What is left out: one
    /// stage, no expert parallelism, all other ranks as data parallel; DualPipe where it can be; `usual_batch`.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn parse(text: &str, cluster: &Cluster, usual_batch: usize) -> Result<Parallel, PlanError> {
        const OPTION: &str = "--parallel";
        let searched = text == "search" || text.starts_with("search,");
        let pairs = pairs(OPTION, text.strip_prefix("search").unwrap_or(text), &LAYOUT_KEYS)?;
        let get = |key: &str| pairs.iter().find(|(known, _)| *known == key).map(|(_, value)| *value);
        let count = |key: &str, other: usize| get(key).map_or(Ok(other), |value| whole(OPTION, key, value));
        let batch = count("batch", usual_batch)?;
        if searched {
            return match pairs.iter().find(|(key, _)| *key != "batch") {
                Some((key, _)) => Err(PlanError::refused(
                    format!("{OPTION}: search finds {key} itself"),
                    "write search, or search,batch=SEQUENCES",
                )),
                None => Ok(Parallel::Search { batch }),
            };
        }
        let (pipeline, world) = (count("pp", 1)?, cluster.devices() as usize);
        let data = count("dp", (world / pipeline).max(1))?;
        let mut layout = Layout {
            pipeline,
            experts: count("ep", 1)?,
            data,
            schedule: Schedule::OneForwardOneBackward,
            batch,
            micro_batch: count("micro", 1)?,
        };
        layout.schedule = match get("schedule") {
            Some(name) => Schedule::ALL
                .into_iter()
                .find(|schedule| schedule.name() == name)
                .ok_or_else(|| PlanError::unknown("schedule", name, Schedule::ALL.iter().map(|known| known.name())))?,
            None if Schedule::DualPipe.refuses(pipeline, layout.micro_batches()).is_none() => Schedule::DualPipe,
            None => Schedule::OneForwardOneBackward,
        };
        Ok(Parallel::Given(layout))
    }
}

impl Layout {
    /// Micro-batches of a step, on each pipeline.
    pub fn micro_batches(&self) -> usize {
        self.batch / (self.data * self.micro_batch)
    }

    /// `pp=16,ep=64,dp=128,schedule=dualpipe,batch=15360,micro=1`, as the command line takes it.
    pub fn text(&self) -> String {
        let Layout { pipeline, experts, data, schedule, batch, micro_batch } = self;
        let schedule = schedule.name();
        format!("pp={pipeline},ep={experts},dp={data},schedule={schedule},batch={batch},micro={micro_batch}")
    }

    /// What is wrong with it.
    fn wrong(&self, config: &ModelConfig, cluster: &Cluster) -> Option<String> {
        let Layout { pipeline, experts, data, batch, micro_batch, .. } = self;
        let world = cluster.devices() as usize;
        if pipeline.saturating_mul(*data) != world {
            return Some(format!(
                "pp={pipeline} × dp={data} is {} ranks, and there are {world} devices",
                pipeline.saturating_mul(*data)
            ));
        }
        let layers = config.layers + config.mtp_depth;
        if *pipeline > layers {
            return Some(format!("pp={pipeline} is more stages than the model's {layers} layers"));
        }
        if !data.is_multiple_of(*experts) {
            return Some(format!(
                "ep={experts} does not divide dp={data}: experts are spread over data-parallel ranks"
            ));
        }
        let routed = config.moe.as_ref().map_or(1, |moe| moe.experts);
        if !routed.is_multiple_of(*experts) {
            return Some(match routed {
                1 => format!("ep={experts}, and the model has no experts"),
                _ => format!("ep={experts} does not divide the {routed} experts of a layer"),
            });
        }
        if !batch.is_multiple_of(data * micro_batch) {
            return Some(format!(
                "a batch of {batch} sequences is no whole number of micro-batches of {micro_batch} on dp={data} ranks"
            ));
        }
        self.schedule.refuses(*pipeline, self.micro_batches())
    }

    /// Whether the model can be trained so on the cluster.
    ///
    /// # Errors
    /// [`PlanError::Refused`], naming the nearest layouts that hold.
    pub fn check(&self, config: &ModelConfig, cluster: &Cluster) -> Result<(), PlanError> {
        let Some(message) = self.wrong(config, cluster) else { return Ok(()) };
        let far = |other: &Layout| {
            let ratio = |a: usize, b: usize| (a as f64 / b as f64).ln().abs();
            ratio(other.pipeline, self.pipeline)
                + ratio(other.data, self.data)
                + ratio(other.experts, self.experts)
                + ratio(other.micro_batch, self.micro_batch)
                + if other.schedule == self.schedule { 0.0 } else { 0.5 }
        };
        let mut near = all(config, cluster, self.batch);
        near.sort_by(|a, b| far(a).total_cmp(&far(b)));
        // Of each layout the nearest schedule.
        let mut seen = HashSet::new();
        near.retain(|layout| seen.insert((layout.pipeline, layout.experts, layout.micro_batch)));
        let named: Vec<_> = near.iter().take(3).map(Layout::text).collect();
        let hint = match named.is_empty() {
            true => format!("no layout holds a batch of {} sequences: give --parallel another batch=…", self.batch),
            false => format!("the nearest that hold: {}", named.join("; ")),
        };
        Err(PlanError::refused(message, hint))
    }
}

fn divisors(number: usize) -> Vec<usize> {
    (1..=number).filter(|divisor| number.is_multiple_of(*divisor)).collect()
}

/// All layouts that hold, with micro-batches of up to four sequences.
fn all(config: &ModelConfig, cluster: &Cluster, batch: usize) -> Vec<Layout> {
    let world = cluster.devices() as usize;
    let routed = config.moe.as_ref().map_or(1, |moe| moe.experts);
    let mut layouts = Vec::new();
    for pipeline in divisors(world) {
        for experts in divisors(routed) {
            for micro_batch in [1, 2, 4] {
                for schedule in Schedule::ALL {
                    let data = world / pipeline;
                    // One stage has no schedule to choose.
                    let chosen = pipeline > 1 || schedule == Schedule::OneForwardOneBackward;
                    let layout = Layout { pipeline, experts, data, schedule, batch, micro_batch };
                    if chosen && layout.wrong(config, cluster).is_none() {
                        layouts.push(layout);
                    }
                }
            }
        }
    }
    layouts
}

/// Plans of the layouts that fit into the devices, the fastest first.
///
/// # Errors
/// [`PlanError::Refused`] if none holds or none fits, naming what the smallest takes.
pub fn search(
    config: &ModelConfig,
    cluster: &Cluster,
    batch: usize,
    training: &Training,
) -> Result<Vec<ClusterPlan>, PlanError> {
    let plans: Vec<_> =
        all(config, cluster, batch).iter().map(|layout| planned(config, cluster, layout, training)).collect();
    let least = plans.iter().min_by(|a, b| a.memory.total.total_cmp(&b.memory.total));
    let least = least.map(|plan| (plan.layout.text(), plan.memory.total));
    let mut fitting: Vec<_> = plans.into_iter().filter(|plan| plan.fits).collect();
    fitting.sort_by(|a, b| a.step.total.total_cmp(&b.step.total));
    match (fitting.is_empty(), least) {
        (false, _) => Ok(fitting),
        (true, Some((layout, bytes))) => Err(PlanError::refused(
            format!("no layout fits {} GB a device", cluster.device.memory_gb),
            format!("{layout} takes least, {:.1} GB: more devices, or shorter sequences", bytes / 1e9),
        )),
        (true, None) => {
            let message = format!("no layout of {} devices holds a batch of {batch} sequences", cluster.devices());
            Err(PlanError::refused(message, "give another with --parallel search,batch=SEQUENCES"))
        }
    }
}

/// Sequences of a step that a published model was trained with; for others sixteen micro-batches of one a device.
pub fn usual_batch(model: &str, cluster: &Cluster) -> usize {
    const PUBLISHED: [(&str, usize); 4] =
        [("deepseek-v3", 15_360), ("deepseek-r1", 15_360), ("deepseek-v2", 9_216), ("deepseek-v2-lite", 4_608)];
    let published = PUBLISHED.iter().find(|(name, _)| name.eq_ignore_ascii_case(model));
    published.map_or(16 * cluster.devices() as usize, |(_, batch)| *batch)
}
