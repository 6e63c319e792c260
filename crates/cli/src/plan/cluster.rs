//! `wels plan MODEL --cluster …`: the same training on a cluster, by a layout or by the best of all.

use anyhow::Result;
use serde::Serialize;
use wels_model::config::ModelConfig;
use wels_model::count;
use wels_pipeline::words::short;
use wels_runs::plan::cluster::schedule::Schedule;
use wels_runs::plan::cluster::{self, Cluster, ClusterPlan, Layout, Parallel, Training, Unit, Units, usual_batch};
use wels_runs::plan::devices::ProductFormat;

use super::money;
use crate::output;

/// What is said otherwise of a cluster, or of something else.
const ALONE: [&str; 6] = ["what_if", "device", "devices", "utilisation", "claim", "prices"];

/// The cluster, as the command line says it.
#[derive(clap::Args)]
pub struct Args {
    /// Plan for a cluster: nodes=256,gpus=8,device=h800,ib=50,nvlink=160 (links in 1e9 bytes a second and direction);
    /// device=cpu takes measured flops= (1e9 a second), memory= and bandwidth= (1e9 bytes)
    #[arg(long, value_name = "KEY=VALUE,…", conflicts_with_all = ALONE)]
    cluster: Option<String>,
    /// How a model is spread over the cluster: pp=16,ep=64,dp=128 with schedule= (1f1b, zb1p or dualpipe), batch= and
    /// micro= (sequences); or search for the fastest layouts that fit
    #[arg(long, value_name = "KEY=VALUE,…", default_value = "search", requires = "cluster")]
    parallel: String,
    /// What a device costs an hour; if left out, the price of the device's row
    #[arg(long, value_name = "USD", requires = "cluster")]
    gpu_hour_price: Option<f64>,
}

impl Args {
    pub fn is_asked(&self) -> bool {
        self.cluster.is_some()
    }
}

/// What is said of a cluster.
#[derive(Serialize)]
pub struct Plans {
    model: String,
    plans: Vec<ClusterPlan>,
    /// The first layout with each schedule that holds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    schedules: Vec<OfSchedule>,
    /// Of the device's nodes, serving.
    #[serde(skip_serializing_if = "Option::is_none")]
    serving: Option<Units>,
}

#[derive(Serialize)]
struct OfSchedule {
    schedule: Schedule,
    step_seconds: f64,
    bubble_seconds: f64,
    parameters: f64,
    micro_batches_in_flight: usize,
    memory_bytes: f64,
}

/// How many layouts of a search are shown.
const SHOWN: usize = 5;

impl Plans {
    /// Plans for `config`, called `model`, if there is a cluster.
    pub fn of(
        model: &str,
        config: &ModelConfig,
        context: usize,
        args: &Args,
        money: &money::Args,
    ) -> Result<Option<Plans>> {
        let Some(cluster) = &args.cluster else { return Ok(None) };
        let cluster = Cluster::parse(cluster, &money.device_table()?)?;
        let usual = match (&cluster.device, config.family.is_deepseek()) {
            (device, _) if device.name == "cpu" => ProductFormat::F32,
            (device, true) if device.tflops_fp8.is_some() => ProductFormat::Fp8,
            _ => ProductFormat::Bf16,
        };
        let training = Training {
            tokens: money.tokens(model, config)?,
            sequence_length: context,
            precision: money.precision()?.unwrap_or(usual),
            usd_per_device_hour: match args.gpu_hour_price {
                Some(price) => money::positive("--gpu-hour-price", price)?,
                None => cluster.device.usd_per_hour,
            },
        };
        let batch = usual_batch(model, &cluster);
        let plans = match Parallel::parse(&args.parallel, &cluster, batch)? {
            Parallel::Given(layout) => vec![cluster::plan(config, &cluster, &layout, &training)?],
            Parallel::Search { batch } => {
                let mut plans = cluster::search(config, &cluster, batch, &training)?;
                plans.truncate(SHOWN);
                plans
            }
        };
        let schedules = schedules(config, &cluster, &plans[0].layout, &training);
        let serving = Units::of(config, &cluster, context);
        Ok(Some(Plans { model: model.to_string(), plans, schedules, serving }))
    }

    /// Writes them.
    pub fn print(&self, json: bool) -> std::io::Result<()> {
        if json {
            return output::json(self);
        }
        let first = &self.plans[0];
        for (name, value) in rows(first) {
            output::line(format!("{name:<48} {value:>20}").trim_end())?;
        }
        if self.schedules.len() > 1 {
            output::line("")?;
            let head = ["step", "bubble", "parameters", "in flight", "memory"];
            output::line(&table("the same by schedule", &head.map(String::from)))?;
            for of in &self.schedules {
                let cells = [
                    seconds(of.step_seconds),
                    seconds(of.bubble_seconds),
                    short(of.parameters),
                    of.micro_batches_in_flight.to_string(),
                    bytes(of.memory_bytes),
                ];
                output::line(&table(&format!("  {}", of.schedule.name()), &cells))?;
            }
        }
        if self.plans.len() > 1 {
            output::line("")?;
            let head = ["step", "bubble", "exposed", "days", "memory"];
            output::line(&table("the fastest layouts that fit", &head.map(String::from)))?;
            for plan in &self.plans {
                let cells = [
                    seconds(plan.step.total),
                    seconds(plan.step.pipeline.bubble),
                    seconds(plan.step.pipeline.exchange_exposed),
                    format!("{:.1}", plan.days),
                    bytes(plan.memory.total),
                ];
                output::line(&table(&format!("  {}", plan.layout.text()), &cells))?;
            }
        }
        self.serving.as_ref().map_or(Ok(()), |units| {
            output::line("")?;
            let head = ["experts", "weights", "caches", "streams", "tokens/s"];
            output::line(&table("serving, a node", &head.map(String::from)))?;
            units.all().iter().try_for_each(|unit| output::line(&of_unit(unit)))
        })
    }
}

fn table(name: &str, cells: &[String]) -> String {
    let cells: String = cells.iter().map(|cell| format!(" {cell:>11}")).collect();
    format!("{name:<60}{cells}")
}

fn of_unit(unit: &Unit) -> String {
    let cells = [
        unit.experts_per_device.to_string(),
        bytes(unit.weights_bytes),
        bytes(unit.cache_bytes),
        unit.streams_per_device.map_or(String::new(), |streams| format!("{streams:.0}")),
        short(unit.tokens_per_second_per_node),
    ];
    table(&format!("  {} on {} devices", unit.phase.name(), unit.devices), &cells)
}

/// A layout with every schedule that it allows.
fn schedules(config: &ModelConfig, cluster: &Cluster, layout: &Layout, training: &Training) -> Vec<OfSchedule> {
    let plan = |schedule| cluster::plan(config, cluster, &Layout { schedule, ..layout.clone() }, training).ok();
    let of = |plan: ClusterPlan| OfSchedule {
        schedule: plan.layout.schedule,
        step_seconds: plan.step.total,
        bubble_seconds: plan.step.pipeline.bubble,
        parameters: plan.memory.parameters,
        micro_batches_in_flight: plan.layout.schedule.in_flight(plan.layout.pipeline).min(plan.micro_batches),
        memory_bytes: plan.memory.total,
    };
    match layout.pipeline {
        1 => Vec::new(),
        _ => Schedule::ALL.into_iter().filter_map(plan).map(of).collect(),
    }
}

fn seconds(seconds: f64) -> String {
    if seconds >= 1000.0 { format!("{seconds:.0} s") } else { format!("{seconds:.3} s") }
}

fn bytes(bytes: f64) -> String {
    format!("{}B", short(bytes))
}

fn rows(plan: &ClusterPlan) -> Vec<(String, String)> {
    let ClusterPlan { cluster, layout, training, step, sent, memory, .. } = plan;
    let pipeline = step.pipeline;
    let row = |name: &str, value: String| (name.to_string(), value);
    let mut rows = vec![
        row("training", format!("{} tokens", short(training.tokens))),
        row(
            "  on",
            format!(
                "{} × {} {}, {}",
                cluster.nodes,
                cluster.devices_per_node,
                cluster.device.name,
                training.precision.name()
            ),
        ),
        row("  stages, each expert's ranks, data-parallel", {
            format!("{} × {} of {}", layout.pipeline, layout.experts, layout.data)
        }),
        row("  schedule", layout.schedule.name().to_string()),
        row("  sequences in a step, a micro-batch", format!("{}, {}", layout.batch, layout.micro_batch)),
        row("  micro-batches of a pipeline", plan.micro_batches.to_string()),
        row("a step", seconds(step.total)),
        row("  forward alone", seconds(pipeline.forward)),
        row("  backward alone", seconds(pipeline.backward)),
        row("  gradients of weights alone", seconds(pipeline.weight)),
        row("  forward and backward together", seconds(pipeline.both)),
        row("  bubble", seconds(pipeline.bubble)),
        row("  optimizer", seconds(step.optimizer)),
        row("    sums of gradients", seconds(step.reduce)),
        row("      of it beside the backward pass", seconds(step.reduce_hidden)),
        row("    update", seconds(step.update)),
        row("    gathering of weights", seconds(step.gather)),
        row("  dispatch and combine, all", seconds(pipeline.exchange)),
        row("    of it while nothing is computed", seconds(pipeline.exchange_exposed)),
    ];
    if plan.nodes_visited > 0.0 {
        rows.push(row("  nodes that a token visits", format!("{:.2}", plan.nodes_visited)));
    }
    rows.extend([
        row("a rank sends in a step: experts, between nodes", bytes(sent.experts_between_nodes)),
        row("  experts, inside nodes", bytes(sent.experts_inside_nodes)),
        row("  gradients and weights", bytes(sent.optimizer)),
        row("  from stage to stage", bytes(sent.pipeline)),
        row("memory of the rank that holds most", bytes(memory.total)),
        row("  parameters", short(memory.parameters)),
        row("  weights", bytes(memory.weights)),
        row("  gradients", bytes(memory.gradients)),
        row("  optimizer, its share", bytes(memory.optimizer)),
        row("  activations", bytes(memory.activations)),
        row("  fits", if plan.fits { "yes".into() } else { format!("no: {} GB", cluster.device.memory_gb) }),
        row("a device does", format!("{}FLOP/s", short(plan.flops_per_device_second))),
        row("tokens a day", short(plan.tokens_per_day)),
        row("device-hours of a trillion tokens", whole(plan.device_hours_per_trillion_tokens)),
        row("device-hours", whole(plan.device_hours)),
        row("days", format!("{:.1}", plan.days)),
        row("money", format!("${}", whole(plan.usd))),
    ]);
    rows
}

fn whole(number: f64) -> String {
    count::Params(number.round() as u64).to_string()
}
