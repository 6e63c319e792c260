//! `wels plan (MODEL | PRESET | RECIPE)`: parameters, operations, bytes, hours and money, before anything starts.
//! `wels plan MODEL --cluster … --parallel …`: a training spread over a cluster.
//! `wels plan [MODEL] --eplb loads.json`: where replicas of experts stand.
//! `wels plan --claim NAME`: whether a published claim adds up. `wels plan --prices`: quality against price.

mod claim;

mod cluster;

mod eplb;

mod money;

mod prices;

mod ranks;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use wels_device::Device;
use wels_hub::{Name, SHORT_NAMES};
use wels_model::config::{Dtype, ModelConfig};
use wels_model::count::{self, CacheLayout};
use wels_model::janus::config::JanusConfig;
use wels_model::janus::count::{JanusParams, params as janus_params};
use wels_model::janus::presets as janus_presets;
use wels_model::janus::read_config as read_janus;
use wels_model::presets;
use wels_pipeline::forecast::{Rates, forecast};
use wels_pipeline::refusal::refuse;
use wels_pipeline::words::short;
use wels_runs::machine;
use wels_runs::plan::RunPlan;
use wels_runs::recipe::Recipe;

use crate::model::{self, Quant};
use crate::named::{self, For};
use crate::output;
use crate::terminal::Terminal;
use ranks::RanksPlan;

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    /// A recipe (.toml), a directory with config.json, a run, a .gguf file, a preset: deepseek-v3, …, or the
    /// name of a published model, ORG/NAME, of which config.json alone is fetched
    #[arg(value_name = "MODEL, PRESET or RECIPE", required_unless_present_any = ["claim", "prices", "eplb"])]
    what: Option<PathBuf>,
    /// Whether a published claim adds up: deepseek-v3, deepseek-r1, deepseek-serving, … or a file of your own (.toml)
    #[arg(long, value_name = "NAME", conflicts_with = "what")]
    claim: Option<String>,
    /// Quality against price of the models of the price table
    #[arg(long, conflicts_with_all = ["what", "claim"])]
    prices: bool,
    /// Where --prices draws its picture
    #[arg(long, value_name = "FILE", requires = "prices")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    money: money::Args,
    /// Ranks that serve the model together: what each of them needs of memory
    #[arg(long, value_name = "N", conflicts_with_all = ["claim", "prices", "cluster"])]
    ranks: Option<NonZeroUsize>,
    /// With --ranks: number format of the matrices
    #[arg(long, value_enum, default_value_t, requires = "ranks")]
    quant: Quant,
    /// With --ranks: memory for keys and values, in MiB
    #[arg(long, value_name = "MIB", default_value = "1024", requires = "ranks")]
    cache_mib: NonZeroUsize,
    #[command(flatten)]
    cluster: cluster::Args,
    #[command(flatten)]
    eplb: eplb::Args,
    /// Tokens of the sequences for which operations are counted; 4096 if left out
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Of a recipe: do a few steps of each stage, as `wels run` does, where this machine's rates are not known
    #[arg(long)]
    measure: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What a model takes.
#[derive(Serialize)]
struct ModelPlan {
    model: String,
    model_type: &'static str,
    parameters: Parameters,
    flops_per_token: FlopsPerToken,
    bytes: Sizes,
    /// Of a model with images, of which all above is the language model's.
    #[serde(skip_serializing_if = "Option::is_none")]
    janus: Option<JanusParameters>,
}

#[derive(Serialize)]
struct JanusParameters {
    #[serde(flatten)]
    parts: JanusParams,
    /// Without the VQ tokenizer.
    without_vqmodel: u64,
    total: u64,
}

#[derive(Serialize)]
struct WithMoney {
    #[serde(flatten)]
    model: ModelPlan,
    /// With --ranks.
    #[serde(skip_serializing_if = "Option::is_none")]
    ranks: Option<RanksPlan>,
    #[serde(flatten)]
    money: money::Plans,
}

#[derive(Serialize)]
struct Parameters {
    /// Without MTP layers.
    total: u64,
    /// Used by one token: the embedding excluded, the head included.
    activated: u64,
    activated_without_head: u64,
    activated_with_embedding: u64,
    embedding: u64,
    routed_experts: u64,
    mtp: Option<MtpParameters>,
}

#[derive(Serialize)]
struct MtpParameters {
    unique: u64,
    with_embedding_and_head: u64,
    activated_without_head: u64,
    activated: u64,
    activated_with_embedding: u64,
    projection: u64,
}

/// Means over a causal sequence.
#[derive(Serialize)]
struct FlopsPerToken {
    context: u32,
    forward: u64,
    attention_linear: u64,
    attention_core: u64,
    dense_ffn: u64,
    routed_experts: u64,
    shared_experts: u64,
    router: u64,
    head: u64,
    mtp: u64,
    /// Forward and backward, MTP included.
    training: u64,
}

#[derive(Serialize)]
struct Sizes {
    weights_f32: u64,
    weights_bf16: u64,
    /// `null` for families that are not published in FP8.
    weights_fp8: Option<u64>,
    /// AdamW's two means in f32.
    optimizer: u64,
    gradients: u64,
    /// In bf16; the latent for MLA.
    kv_cache_per_token: u64,
    /// In bf16, with keys and values of every head.
    kv_cache_per_token_expanded: u64,
}

/// Plans.
pub fn plan(args: &Args) -> Result<()> {
    if let Some(claim) = &args.claim {
        return claim::claim(claim, &args.money.device_table()?, args.json);
    }
    if args.prices {
        return prices::prices(&args.money.price_table()?, args.svg.as_deref(), args.json);
    }
    let Some(what) = args.what.as_deref() else { return args.eplb.place(None, args.json) };
    if what.extension().is_some_and(|extension| extension == "toml") {
        if args.cluster.is_asked() || args.eplb.is_asked() {
            return Err(refuse("--cluster and --eplb plan a model, and a recipe runs on this machine", "name a model"));
        }
        let said = [(args.ranks.is_some(), "--ranks"), (args.context.is_some(), "--context")];
        let said = said.into_iter().find_map(|(said, flag)| said.then_some(flag));
        if let Some(flag) = said.or(args.money.of_a_model()) {
            return Err(refuse(
                format!("{flag} is of the plan of a model"),
                "change the recipe instead, or name a model",
            ));
        }
        let recipe = named::recipe(what, None, For::Plan)?;
        let rates = if args.measure { Rates::Measured } else { Rates::Known };
        let device = args.money.this_device()?;
        let plan = forecast(&recipe, None, &device, rates, &mut Terminal::new());
        if args.json {
            return Ok(output::json(&plan)?);
        }
        print_recipe(&plan, &*device)?;
        return Ok(of_card(&recipe, &plan, &*device).iter().try_for_each(|line| output::line(line))?);
    }
    if args.measure {
        return Err(refuse("--measure is of the plan of a recipe", "of a model nothing is measured here"));
    }
    let context = args.context.unwrap_or(4096);
    let (name, config, janus) = find(what)?;
    if args.eplb.is_asked() {
        return args.eplb.place(Some(&config), args.json);
    }
    if let Some(plans) = cluster::Plans::of(&name, &config, context as usize, &args.cluster, &args.money)? {
        return Ok(plans.print(args.json)?);
    }
    let money = money::Plans::of(&name, &config, context as usize, &args.money)?;
    let ranks = args.ranks.map(|ranks| RanksPlan::of(what, &config, ranks, args.quant, args.cache_mib)).transpose()?;
    let plan = ModelPlan { janus, ..ModelPlan::of(name, &config, context) };
    if args.json {
        Ok(output::json(&WithMoney { model: plan, ranks, money })?)
    } else {
        plan.print()?;
        if let Some(ranks) = ranks {
            ranks.print()?;
        }
        Ok(money.print()?)
    }
}

/// The configuration that the command line means; of a model with images the language model's, and the counts of all.
fn find(what: &Path) -> Result<(String, ModelConfig, Option<JanusParameters>)> {
    let name = what.display().to_string();
    let known = what.exists() || presets::preset(&name).is_ok() || janus_presets::preset(&name).is_some();
    let fetched = match published(&name).filter(|_| !known) {
        Some(published) => {
            let place = named::config(&published);
            Some(place.with_context(|| format!("there is no path or preset {name}, and as a model's name"))?)
        }
        None => None,
    };
    let what = fetched.as_deref().unwrap_or(what);
    if let Some(config) = find_janus(what)? {
        let parts = janus_params(&config);
        let (without_vqmodel, total) = (parts.without_vq(), parts.total());
        return Ok((name, config.text, Some(JanusParameters { parts, without_vqmodel, total })));
    }
    let is_json = what.extension().is_some_and(|extension| extension == "json");
    let config = match () {
        _ if what.is_file() && is_json => {
            let (config, notes) = model::read_config_file(what)?;
            model::report(&notes);
            config
        }
        _ if what.exists() => {
            let (config, notes) = model::read_config(&model::locate(what)?)?;
            model::report(&notes);
            config
        }
        _ => presets::preset(&name).map_err(|error| {
            let known: Vec<_> = presets::names().chain(janus_presets::names()).collect();
            let message = format!("{name} is neither a file, a preset nor the name of a model: {error}");
            refuse(message, format!("presets: {}", known.join(", ")))
        })?,
    };
    Ok((name, config, None))
}

/// A preset, a `config.json` or a directory of a Janus model.
fn find_janus(what: &Path) -> Result<Option<JanusConfig>> {
    if !what.exists() {
        return Ok(what.to_str().and_then(janus_presets::preset));
    }
    let file = if what.is_dir() { what.join("config.json") } else { what.to_owned() };
    let is_json = file.is_file() && file.extension().is_some_and(|extension| extension == "json");
    let Some((config, notes)) = is_json.then(|| read_janus(&file)).transpose()?.flatten() else {
        return Ok(None);
    };
    model::report(&notes);
    Ok(Some(config))
}

/// The model of that name; of a short name's, the one with a `config.json`.
fn published(name: &str) -> Option<Name> {
    SHORT_NAMES
        .iter()
        .find(|short| short.name.eq_ignore_ascii_case(name))
        .map_or_else(|| Name::parse(name), |short| Name::parse(short.safetensors))
}

impl ModelPlan {
    fn of(model: String, config: &ModelConfig, context: u32) -> ModelPlan {
        let params = count::params(config);
        let flops = count::forward_flops(config, count::Context::Causal { tokens: context as usize });
        let training = count::training_bytes(config);
        let cache = |layout| 2 * count::cache_elements_per_token(config, layout);
        ModelPlan {
            model,
            model_type: config.family.model_type(),
            parameters: Parameters {
                total: params.total.0,
                activated: params.activated.0,
                activated_without_head: params.activated_body.0,
                activated_with_embedding: params.activated_with_embedding.0,
                embedding: params.embedding.0,
                routed_experts: params.routed_experts.0,
                mtp: params.mtp.map(|mtp| MtpParameters {
                    unique: mtp.unique.0,
                    with_embedding_and_head: mtp.with_embedding_and_head.0,
                    activated_without_head: mtp.activated_body.0,
                    activated: mtp.activated.0,
                    activated_with_embedding: mtp.activated_with_embedding.0,
                    projection: mtp.projection.0,
                }),
            },
            flops_per_token: FlopsPerToken {
                context,
                forward: flops.total().0,
                attention_linear: flops.attention_linear.0,
                attention_core: flops.attention_core.0,
                dense_ffn: flops.dense_ffn.0,
                routed_experts: flops.routed_experts.0,
                shared_experts: flops.shared_experts.0,
                router: flops.router.0,
                head: flops.head.0,
                mtp: flops.mtp.0,
                training: flops.training().0,
            },
            bytes: Sizes {
                weights_f32: count::checkpoint(config, Dtype::F32).bytes().0,
                weights_bf16: count::checkpoint(config, Dtype::Bf16).bytes().0,
                weights_fp8: config.family.is_deepseek().then(|| count::checkpoint(config, Dtype::Fp8).bytes().0),
                optimizer: training.optimizer.0,
                gradients: training.gradients.0,
                kv_cache_per_token: cache(CacheLayout::Latent),
                kv_cache_per_token_expanded: cache(CacheLayout::Expanded),
            },
            janus: None,
        }
    }

    fn print(&self) -> std::io::Result<()> {
        let ModelPlan { parameters, flops_per_token: flops, bytes, .. } = self;
        output::line(&format!("{} ({})", self.model, self.model_type))?;
        let rows = [
            ("parameters", count::Params(parameters.total).to_string()),
            ("  activated by a token, with the head", count::Params(parameters.activated).to_string()),
            ("  of routed experts", count::Params(parameters.routed_experts).to_string()),
            (
                "  of MTP layers, besides",
                count::Params(parameters.mtp.as_ref().map_or(0, |mtp| mtp.unique)).to_string(),
            ),
            ("forward, a token", format!("{}FLOP", short(flops.forward as f64))),
            ("  of it attention over the context", format!("{}FLOP", short(flops.attention_core as f64))),
            ("training, a token", format!("{}FLOP", short(flops.training as f64))),
            ("weights in bf16", format!("{}B", short(bytes.weights_bf16 as f64))),
            ("optimizer", format!("{}B", short(bytes.optimizer as f64))),
            ("KV cache in bf16, a token", format!("{}B", short(bytes.kv_cache_per_token as f64))),
        ];
        rows.iter().try_for_each(|(name, value)| output::line(&format!("{name:<38} {value:>20}")))?;
        self.janus.as_ref().map_or(Ok(()), JanusParameters::print)
    }
}

impl JanusParameters {
    fn print(&self) -> std::io::Result<()> {
        let parts = &self.parts;
        let rows = [
            ("with images, parameters in all", self.total),
            ("  of the SigLIP tower", parts.vision_model),
            ("  of its aligner", parts.aligner),
            ("  of the VQ tokenizer", parts.vqmodel),
            ("  of the generation embedding", parts.generation_embeddings),
            ("  of the generation aligner", parts.generation_aligner),
            ("  of the generation head", parts.generation_head),
        ];
        let line = |(name, count): &(&str, u64)| {
            output::line(&format!("{name:<38} {:>20}", count::Params(*count).to_string()))
        };
        rows.iter().try_for_each(line)
    }
}

fn print_recipe(plan: &RunPlan, device: &dyn Device) -> std::io::Result<()> {
    let bytes = |n: u64| format!("{}B", short(n as f64));
    if let Some(pretraining) = &plan.pretraining {
        let memory = pretraining.memory;
        let rows = [
            ("parameters", count::Params(pretraining.parameters).to_string()),
            ("  activated by a token, with the head", count::Params(pretraining.parameters_activated).to_string()),
            ("steps of pretraining", pretraining.steps.to_string()),
            ("memory of pretraining", bytes(memory.total)),
            ("  weights", bytes(memory.weights)),
            ("  gradients", bytes(memory.gradients)),
            ("  optimizer", bytes(memory.optimizer)),
            ("  activations", bytes(memory.activations)),
            ("a checkpoint on disk", bytes(pretraining.checkpoint_bytes)),
        ];
        rows.iter().try_for_each(|(name, value)| output::line(&format!("{name:<38} {value:>20}")))?;
        output::line("")?;
    }
    plan_in_lines(plan, device).iter().try_for_each(|line| output::line(line))
}

/// What a device with memory of its own has, and how long pretraining takes at usual shares of its peak.
fn of_card(recipe: &Recipe, plan: &RunPlan, device: &dyn Device) -> Vec<String> {
    let Some(memory) = device.memory() else { return Vec::new() };
    let bytes = |bytes: u64| format!("{}B", short(bytes as f64));
    let mut lines = vec![format!("{}: {} of {} are free", device.in_words(), bytes(memory.free), bytes(memory.total))];
    let precision = recipe.pretrain.precision;
    if let (Some(peak), Some(pretraining)) = (device.peak_flops(precision), &plan.pretraining) {
        let at = |share: f64| wels_pipeline::words::duration(pretraining.flops / (share * peak));
        lines.push(format!("its peak is {}FLOP/s: pretraining takes {} at half of it", short(peak), at(0.5)));
    }
    lines
}

/// Pretraining on one line.
pub fn pretraining_in_one_line(plan: &RunPlan) -> Option<String> {
    let it = plan.pretraining.as_ref()?;
    Some(format!(
        "{} parameters, {} of them active; {} tokens in {} steps, {}FLOP; {}B of memory",
        short(it.parameters as f64),
        short(it.parameters_activated as f64),
        short(it.tokens as f64),
        it.steps,
        short(it.flops),
        short(it.memory.total as f64),
    ))
}

/// The stages as a table, what is assumed of them, and whether they fit.
pub fn plan_in_lines(plan: &RunPlan, device: &dyn Device) -> Vec<String> {
    let bytes = |n: u64| format!("{}B", short(n as f64));
    let row = |name: &str, kind: &str, cells: [String; 5]| {
        let [tokens, flops, memory, time, money] = cells;
        let line = format!("{name:<20} {kind:<18} {tokens:>8} {flops:>10} {memory:>8} {time:>14} {money:>10}");
        line.trim_end().to_string()
    };
    let time = |seconds: Option<f64>| seconds.map_or("unknown".into(), wels_pipeline::words::duration);
    let money = |usd: Option<f64>| usd.map_or(String::new(), |usd| format!("${usd:.4}"));
    let about = |sign: &str, tokens: u64| format!("{sign}{}", short(tokens as f64));
    let head = ["tokens", "operations", "memory", "time", "money"].map(str::to_string);
    let mut lines = vec![row("stage", "kind", head)];
    for it in &plan.stages {
        lines.push(match &it.unknown {
            Some(_) => row(&it.stage, &it.kind, ["unknown"; 5].map(str::to_string)),
            None => {
                let tokens = about(if it.estimated { "~" } else { "" }, it.tokens);
                let cells = [tokens, short(it.flops), bytes(it.memory_bytes), time(it.seconds), money(it.usd)];
                row(&it.stage, &it.kind, cells)
            }
        });
    }
    let total = &plan.total;
    let unknown = plan.stages.iter().any(|stage| stage.unknown.is_some());
    let sign = match (unknown, total.estimated) {
        (true, _) => "≥",
        (false, true) => "~",
        (false, false) => "",
    };
    let tokens = about(sign, total.tokens);
    let cells = [tokens, short(total.flops), bytes(total.memory_bytes), time(total.seconds), money(total.usd)];
    lines.push(row("all", "", cells));
    for it in &plan.stages {
        lines.extend(it.assumptions.iter().map(|assumption| format!("{}: assumes {assumption}", it.stage)));
        lines.extend(it.unknown.iter().map(|unknown| format!("{}: {unknown}", it.stage)));
    }
    if plan.stages.iter().any(|stage| stage.unknown.is_none() && stage.seconds.is_none()) {
        lines.push("time: not measured on this machine; wels plan RECIPE --measure does, and so does wels run".into());
    }
    let left = device.memory().map(|memory| memory.free).or_else(machine::available_memory_bytes);
    if let Some(left) = left.filter(|left| *left < total.memory_bytes) {
        lines.push(format!("{} of memory are left: it does not fit", bytes(left)));
    }
    lines
}
