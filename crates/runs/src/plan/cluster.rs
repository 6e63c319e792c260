//! Training on a cluster: memory of a rank, seconds of a step with their parts, tokens a day, hours and money, for a
//! layout of pipeline, expert and data parallelism, or for the best of all layouts.
//!
//! A rank is a device. Ranks of one stage are neighbours, so that a node's devices share a stage; of the `dp` ranks of
//! a stage each `ep` neighbours share its experts. The optimizer's state is spread over whoever has the same parameters
//! (ZeRO-1, Rajbhandari et al. 2019). `docs/cluster-plan.md` has the formulas, and what they give beside what was
//! published.

pub mod layout;

pub mod schedule;

pub mod serving;

mod stages;

use serde::Serialize;
use wels_model::config::ModelConfig;

use super::PlanError;
use super::devices::{Device, ProductFormat};
use super::training::FILLED;
pub use layout::{Layout, Parallel, search, usual_batch};
use schedule::{PipelineTime, Schedule, simulate};
pub use serving::{Unit, Units};
use stages::Stages;

/// What measurements give and first principles do not. One set for all plans.
pub mod constants {
    /// Part of the bf16 peak that products reach while a stage computes, all its other work in it, where products are
    /// in FP8 (of which the FP8 peak is twice as much). **Fitted**: to the whole step of DeepSeek-V3, 19.926 s
    /// (Insights into DeepSeek-V3, arXiv 2505.09343, table 4), and to none of its parts.
    pub const FP8_OF_BF16_PEAK: f64 = 0.51;
    /// Likewise where products are in bf16 or f32, of that format's peak: the most that Llama 3.1 405B reached, of
    /// which its communication is a part (arXiv 2407.21783, table 4).
    pub const OF_PEAK: f64 = 0.43;
    /// Operations of attention's core backward for one forward: scores once more, and four products
    /// (FlashAttention-2, arXiv 2307.08691, §4.1).
    pub const CORE_BACKWARD: f64 = 2.5;
    /// Part of its links' rate that sums and gathers over data-parallel ranks reach, where the rate is a nominal one.
    /// **Fitted** to one figure alone, the 0.29 s of DeepSeek-V3's optimizer.
    pub const COLLECTIVE: f64 = 0.7;
    /// Part of the rate of products that a service reaches over a day, with batches and experts as uneven as they are.
    /// **Fitted** to two figures at once, a node's tokens read and written a second (open-infra-index, day 6).
    pub const SERVED: f64 = 0.62;
}

/// Devices in nodes, and the links between them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cluster {
    pub nodes: u64,
    pub devices_per_node: u64,
    pub device: Device,
    /// Bytes a second that a device sends to other nodes.
    pub ib: f64,
    /// Bytes a second that a device sends inside its node.
    pub nvlink: f64,
    /// Whether rates of products and links are measured ones, of which all is reached.
    pub measured: bool,
}

impl Cluster {
    pub fn devices(&self) -> u64 {
        self.nodes * self.devices_per_node
    }

    /// Operations a second that a device reaches.
    fn rate(&self, format: ProductFormat) -> f64 {
        match format {
            _ if self.measured => self.device.peak_flops(format),
            ProductFormat::Fp8 => constants::FP8_OF_BF16_PEAK * self.device.peak_flops(ProductFormat::Bf16),
            format => constants::OF_PEAK * self.device.peak_flops(format),
        }
    }

    /// The part of the links' rate that sums over ranks reach.
    fn collective(&self) -> f64 {
        if self.measured { 1.0 } else { constants::COLLECTIVE }
    }
}

/// What is trained.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Training {
    pub tokens: f64,
    pub sequence_length: usize,
    pub precision: ProductFormat,
    pub usd_per_device_hour: f64,
}

/// Bytes of one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct RankMemory {
    pub rank: usize,
    pub parameters: f64,
    pub weights: f64,
    pub gradients: f64,
    /// Its share of master weights and means.
    pub optimizer: f64,
    /// Of all micro-batches that are under way at once.
    pub activations: f64,
    pub total: f64,
}

/// Seconds of one step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepTime {
    pub pipeline: PipelineTime,
    /// Sums of gradients over the ranks that share parameters, on the rank that takes longest.
    pub reduce: f64,
    /// What of it goes on beside the backward pass.
    pub reduce_hidden: f64,
    pub update: f64,
    /// The others' weights.
    pub gather: f64,
    /// All of the above that takes time of its own.
    pub optimizer: f64,
    pub total: f64,
}

/// Bytes that a rank sends in one step, the mean over all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StepBytes {
    /// Dispatch and combine, there and back.
    pub experts_between_nodes: f64,
    pub experts_inside_nodes: f64,
    /// Sums of gradients and gathering of weights.
    pub optimizer: f64,
    /// Hidden states and their gradients, from stage to stage.
    pub pipeline: f64,
}

/// What a training takes on a cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClusterPlan {
    pub cluster: Cluster,
    pub layout: Layout,
    pub training: Training,
    pub micro_batches: usize,
    /// Decoder layers of each stage, MTP's included.
    pub layers: Vec<usize>,
    /// Nodes that a token's experts are on, on average.
    pub nodes_visited: f64,
    pub step: StepTime,
    pub sent: StepBytes,
    /// Of the rank that holds most.
    pub memory: RankMemory,
    pub fits: bool,
    /// Operations of a step, forward and twice that backward, MTP included, by the seconds and the devices.
    pub flops_per_device_second: f64,
    pub tokens_per_day: f64,
    pub device_hours_per_trillion_tokens: f64,
    pub device_hours: f64,
    pub days: f64,
    pub usd: f64,
}

/// Plans `training` of `config`.
///
/// # Errors
/// [`PlanError::Refused`] for a layout that does not hold, with the nearest that do.
pub fn plan(
    config: &ModelConfig,
    cluster: &Cluster,
    layout: &Layout,
    training: &Training,
) -> Result<ClusterPlan, PlanError> {
    layout.check(config, cluster)?;
    Ok(planned(config, cluster, layout, training))
}

fn planned(config: &ModelConfig, cluster: &Cluster, layout: &Layout, training: &Training) -> ClusterPlan {
    let format = training.precision;
    let stages = Stages::of(config, cluster, layout, training.sequence_length, format);
    let micro_batches = layout.micro_batches();
    let pipeline = simulate(layout.schedule, &stages.times, micro_batches, stages.hop);
    let held: Vec<Held> = (0..layout.pipeline).map(|rank| Held::of(&stages, layout, rank)).collect();
    let backward = if is_reduced_by_layer(cluster, layout) { stages.times[0].backward() } else { 0.0 };
    let optimizer = held.iter().map(|held| held.optimizer(cluster, layout, format, backward));
    let slowest = optimizer.max_by(|a, b| a.sum().total_cmp(&b.sum())).expect("a pipeline has ranks");
    let step = StepTime {
        pipeline,
        reduce: slowest.reduce,
        reduce_hidden: slowest.reduce_hidden,
        update: slowest.update,
        gather: slowest.gather,
        optimizer: slowest.sum(),
        total: pipeline.total + slowest.sum(),
    };
    let tokens_per_micro_batch = (layout.micro_batch * training.sequence_length) as f64;
    let memories = held.iter().map(|held| held.memory(layout, format, tokens_per_micro_batch, stages.working));
    let memory = memories.max_by(|a, b| a.total.total_cmp(&b.total)).expect("a pipeline has ranks");
    let tokens = (layout.batch * training.sequence_length) as f64;
    let flops = wels_model::count::forward_flops(
        config,
        wels_model::count::Context::Causal { tokens: training.sequence_length },
    );
    let devices = cluster.devices() as f64;
    let tokens_per_day = tokens / step.total * 86_400.0;
    let device_hours = training.tokens / tokens * step.total * devices / 3600.0;
    ClusterPlan {
        cluster: cluster.clone(),
        layout: layout.clone(),
        training: training.clone(),
        micro_batches,
        layers: stages.layers.clone(),
        nodes_visited: stages.visits.nodes,
        sent: sent(&stages, &held, config, layout, format, tokens / devices),
        step,
        memory,
        fits: memory.total <= FILLED * cluster.device.memory_bytes(),
        flops_per_device_second: flops.training().0 as f64 * tokens / step.total / devices,
        tokens_per_day,
        device_hours_per_trillion_tokens: 1e12 / training.tokens * device_hours,
        device_hours,
        days: device_hours / devices / 24.0,
        usd: device_hours * training.usd_per_device_hour,
    }
}

/// The parameters of a rank.
struct Held {
    rank: usize,
    dense: f64,
    experts: f64,
    tables: f64,
    /// Bytes of activations of a token, the mean over its stages.
    kept: f64,
    /// Ranks with the same parameters.
    dense_replicas: f64,
    expert_replicas: f64,
}

/// Whether a layer's gradients go to their owners as soon as the backward pass of the last micro-batch has left it, as
/// those of Wels' own ranks do.
fn is_reduced_by_layer(cluster: &Cluster, layout: &Layout) -> bool {
    cluster.measured && (layout.pipeline, layout.experts) == (1, 1)
}

/// Seconds of the optimizer's parts.
struct OptimizerTime {
    reduce: f64,
    reduce_hidden: f64,
    update: f64,
    gather: f64,
}

impl OptimizerTime {
    fn sum(&self) -> f64 {
        self.reduce - self.reduce_hidden + self.update + self.gather
    }
}

/// Bytes of a parameter's two means: bf16 where DeepSeek-V3's formats are used (report, §3.3.3).
fn means(format: ProductFormat) -> f64 {
    if format == ProductFormat::Fp8 { 4.0 } else { 8.0 }
}

/// Bytes of a weight that products read; in f32 it is the master weight itself.
fn working(format: ProductFormat) -> f64 {
    format.bytes() as f64
}

impl Held {
    fn of(stages: &Stages, layout: &Layout, rank: usize) -> Held {
        let other = layout.pipeline - 1 - rank;
        let ranks = if layout.schedule == Schedule::DualPipe { vec![rank, other] } else { vec![rank] };
        let copies = layout.schedule.copies() as f64;
        let sum = |of: fn(&stages::Part) -> f64| ranks.iter().map(|stage| of(&stages.stages[*stage])).sum::<f64>();
        Held {
            rank,
            dense: sum(|part| part.dense),
            experts: sum(|part| part.experts) / layout.experts as f64,
            tables: sum(|part| part.tables),
            kept: sum(|part| part.kept) / ranks.len() as f64,
            dense_replicas: copies * layout.data as f64,
            expert_replicas: copies * (layout.data / layout.experts) as f64,
        }
    }

    /// Parameters of which this rank has the optimizer's state.
    fn owned(&self) -> f64 {
        self.dense / self.dense_replicas + self.experts / self.expert_replicas
    }

    fn memory(&self, layout: &Layout, format: ProductFormat, tokens: f64, widest: f64) -> RankMemory {
        let parameters = self.dense + self.experts;
        let master = if format == ProductFormat::F32 { 0.0 } else { 4.0 };
        let in_flight = match layout.schedule {
            // The first W comes sooner the farther a rank is from the end.
            Schedule::OneForwardOneBackward => layout.pipeline - self.rank,
            schedule => schedule.in_flight(layout.pipeline),
        };
        let in_flight = in_flight.min(layout.micro_batches()) as f64;
        let weights = parameters * working(format) + self.tables * (working(format).max(2.0) - working(format));
        let gradients = parameters * 4.0;
        let optimizer = self.owned() * (master + means(format));
        let activations = tokens * (in_flight * self.kept + widest);
        let total = weights + gradients + optimizer + activations;
        RankMemory { rank: self.rank, parameters, weights, gradients, optimizer, activations, total }
    }

    /// First the ranks of a node among themselves, then each with its part the ranks of other nodes.
    fn exchange(&self, cluster: &Cluster, layout: &Layout, bytes: f64) -> f64 {
        let per_node = cluster.devices_per_node as f64;
        let over = |parameters: f64, replicas: f64, here: f64| {
            let here = here.max(1.0).min(replicas);
            let (others, bytes) = (replicas / here, parameters * bytes);
            let inside = if here > 1.0 { bytes * (1.0 - 1.0 / here) / cluster.nvlink } else { 0.0 };
            let between = if others > 1.0 { bytes / here * (1.0 - 1.0 / others) / cluster.ib } else { 0.0 };
            inside + between
        };
        let dense = over(self.dense, self.dense_replicas, per_node.min(layout.data as f64));
        let experts_here = (per_node.min(layout.data as f64) / layout.experts as f64).floor();
        let experts = over(self.experts, self.expert_replicas, experts_here);
        (dense + experts) / cluster.collective()
    }

    /// `backward`: seconds in which gradients of layers can go, all but those of embedding and head.
    fn optimizer(&self, cluster: &Cluster, layout: &Layout, format: ProductFormat, backward: f64) -> OptimizerTime {
        let reduce = self.exchange(cluster, layout, 4.0);
        let in_layers = 1.0 - self.tables / (self.dense + self.experts);
        // Reads gradient, master weight and means, writes the last two and the weight.
        let moved = 4.0 + 2.0 * (4.0 + means(format)) + working(format);
        OptimizerTime {
            reduce,
            reduce_hidden: (reduce * in_layers).min(backward),
            update: self.owned() * moved / cluster.device.bandwidth(),
            gather: self.exchange(cluster, layout, working(format)),
        }
    }

    /// Bytes that this rank sends for sums and weights: of each parameter all but its own part, once each.
    fn optimizer_bytes(&self, format: ProductFormat) -> f64 {
        let others = |parameters: f64, replicas: f64| parameters * (1.0 - 1.0 / replicas);
        let parameters = others(self.dense, self.dense_replicas) + others(self.experts, self.expert_replicas);
        parameters * (4.0 + working(format))
    }
}

fn sent(
    stages: &Stages,
    held: &[Held],
    config: &ModelConfig,
    layout: &Layout,
    format: ProductFormat,
    tokens_per_device: f64,
) -> StepBytes {
    let layers: f64 = stages.stages.iter().map(|part| part.exchanges).sum();
    // A stage's ranks see its tokens, which are all tokens of a pipeline.
    let tokens = tokens_per_device * layout.pipeline as f64;
    let times = 2.0 * tokens * layers / layout.pipeline as f64;
    let hops = if layout.pipeline > 1 { 2.0 * (layout.pipeline - 1) as f64 / layout.pipeline as f64 } else { 0.0 };
    StepBytes {
        experts_between_nodes: times * (stages.dispatch.between_nodes + stages.combine.between_nodes),
        experts_inside_nodes: times * (stages.dispatch.inside_nodes + stages.combine.inside_nodes),
        optimizer: held.iter().map(|held| held.optimizer_bytes(format)).sum::<f64>() / held.len() as f64,
        pipeline: hops * tokens * config.hidden_size as f64 * format.bytes().max(2) as f64,
    }
}
