//! `--gpu-layers` and `--cpu-experts`: which part of a model that answers is on a GPU, and whether it has room there.

use std::num::NonZeroUsize;
use std::sync::Arc;

use anyhow::Result;
use wels_device::{Device, DeviceMemory};
use wels_engine::Numbers;
use wels_model::config::{Attention, CacheLayout, ModelConfig};
use wels_model::paged::PagedCache;
use wels_model::placement::{Elsewhere, Place, Placement};
use wels_model::sizes::WeightSizes;
use wels_pipeline::attention;
use wels_pipeline::refusal::refuse;
use wels_pipeline::words::short;
use wels_runs::machine;

use crate::device::DeviceArgs;
use crate::over::Over;

/// What computes what of a model.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct PlacementArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Of a model on a GPU only the last N layers and the head; the processor computes the other layers and has their
    /// keys and values
    #[arg(long, value_name = "N")]
    gpu_layers: Option<usize>,
    /// Of a model on a GPU all but the routed experts of the first N layers, or of all layers: the processor computes
    /// these, from the machine's memory
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true)]
    cpu_experts: Option<Option<usize>>,
    /// The ranks whose processors compute, for a verb that is one of them.
    #[arg(skip)]
    pub over: Option<&'static Over>,
}

impl PlacementArgs {
    /// Where the parts of a model of this configuration belong.
    ///
    /// # Errors
    /// As [`DeviceArgs::open`]; if what computes is no GPU, or the model has no experts.
    pub fn open(&self, config: &ModelConfig) -> Result<Placement> {
        let given = self.gpu_layers.map(|_| "--gpu-layers").or(self.cpu_experts.map(|_| "--cpu-experts"));
        if self.cpu_experts.is_some() && config.moe.is_none() {
            let hint = "--gpu-layers N leaves whole layers to the processor";
            return Err(refuse("--cpu-experts: the model has no routed experts", hint));
        }
        if let Some(over) = self.over {
            return match given.or(self.device.asks_for_gpu().then_some("--device cuda")) {
                None => Ok(over.placement()),
                Some(flag) => {
                    let message = format!("{flag} is of a GPU, and ranks compute with their processors");
                    Err(refuse(message, format!("leave {flag} out, or start one process")))
                }
            };
        }
        let device = self.device.open()?;
        attention::check(config, &*device)?;
        match given {
            Some(flag) if device.name() == "cpu" => {
                let message = format!("{flag} divides a model between a GPU and the processor, and there is no GPU");
                Err(refuse(message, format!("leave {flag} out to compute with the processor")))
            }
            _ => {
                let placement = Placement::split(&device, &wels_cpu::device(), self.elsewhere(config));
                if placement.other().is_some() {
                    eprintln!("placement: {}", in_words(&placement, config));
                }
                Ok(placement)
            }
        }
    }

    fn elsewhere(&self, config: &ModelConfig) -> Elsewhere {
        Elsewhere {
            layers: self.gpu_layers.map_or(0, |layers| config.layers.saturating_sub(layers)),
            experts: self.cpu_experts.map_or(0, |first| first.unwrap_or(all_layers(config)).min(all_layers(config))),
        }
    }
}

/// What computes, for people.
pub fn in_words(placement: &Placement, config: &ModelConfig) -> String {
    let (device, Elsewhere { layers, experts }) = (placement.main().in_words(), placement.elsewhere());
    let mut words = device;
    if layers > 0 {
        words += &format!(", the first {layers} of {} layers on the processor", config.layers);
    }
    if experts > layers {
        let whose = if experts == all_layers(config) { "all" } else { &format!("the first {experts}") };
        words += &format!(", the routed experts of {whose} layers on the processor");
    }
    words
}

fn all_layers(config: &ModelConfig) -> usize {
    config.layers + config.mtp_depth
}

/// What a model needs of a device besides its weights.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// Tokens that a step takes.
    pub rows: usize,
    /// What the cache keeps of a token.
    pub layout: CacheLayout,
    /// Of the main device, and of the other.
    pub numbers: [Numbers; 2],
    /// Bytes of the cache, on both devices together.
    pub cache_bytes: usize,
}

/// A model that is to be placed.
struct Candidate<'a> {
    config: &'a ModelConfig,
    sizes: &'a WeightSizes,
    demand: Demand,
}

/// Bytes that a model takes of its main device: weights, keys and values, results of operations.
pub fn needs(placement: &Placement, config: &ModelConfig, sizes: &WeightSizes, demand: Demand) -> u64 {
    Candidate { config, sizes, demand }.takes(placement, demand.cache_bytes) - RESERVE_BYTES
}

/// Bytes of the results of operations on so many tokens.
pub fn results(config: &ModelConfig, sizes: &WeightSizes, demand: Demand) -> u64 {
    Candidate { config, sizes, demand }.results(demand.rows)
}

/// Refuses a placement whose main device has memory of its own and not enough of it.
///
/// # Errors
/// A refusal that says what would fit.
pub fn check(placement: &Placement, config: &ModelConfig, sizes: &WeightSizes, demand: Demand) -> Result<()> {
    let device = placement.main();
    match device.memory() {
        None => Ok(()),
        Some(memory) => Candidate { config, sizes, demand }.check(placement, &device.in_words(), memory),
    }
}

impl Candidate<'_> {
    fn check(&self, placement: &Placement, device: &str, memory: DeviceMemory) -> Result<()> {
        let takes = self.takes(placement, self.demand.cache_bytes);
        if takes <= memory.free {
            return Ok(());
        }
        let bytes = |bytes: u64| format!("{}B", short(bytes as f64));
        let message = format!(
            "the model takes {} of memory, {} of them for keys and values, and {device} has {} left of {}",
            bytes(takes),
            bytes(self.cache(placement, self.demand.cache_bytes)),
            bytes(memory.free),
            bytes(memory.total),
        );
        Err(refuse(message, self.hint(placement, memory.free)))
    }

    /// Bytes that the main device needs.
    fn takes(&self, placement: &Placement, cache_bytes: usize) -> u64 {
        let (weights, scratch) = self.sizes.at(placement, self.config, Place::Main);
        weights + self.cache(placement, cache_bytes) + self.results(self.demand.rows) + scratch + RESERVE_BYTES
    }

    /// Bytes of keys and values on the main device.
    fn cache(&self, placement: &Placement, cache_bytes: usize) -> u64 {
        let [main, other] = pages(placement, self.config, &self.demand);
        (cache_bytes / (main + other) * main) as u64
    }

    /// Bytes of the results of operations that live at the same time, in f32: of a layer, and logits of 64 tokens.
    fn results(&self, rows: usize) -> u64 {
        let config = self.config;
        let (d, attention) = (config.hidden_size, &config.attention);
        let heads = match *attention {
            Attention::Gqa { heads, kv_heads, head_dim, .. } => 2 * (heads + kv_heads) * head_dim,
            Attention::Compressed { heads, head_dim, groups, o_lora_rank, .. } => {
                3 * heads * head_dim + 2 * groups * o_lora_rank + 8 * head_dim
            }
            // Queries, absorbed queries, sums of latents and values.
            Attention::Mla { heads, kv_lora_rank, nope_dim, rope_dim, v_dim, .. } => {
                heads * (2 * (nope_dim + rope_dim) + 2 * kv_lora_rank + 2 * v_dim)
            }
        };
        let experts = config.moe.as_ref().map_or(0, |moe| {
            let one = 3 * moe.expert_intermediate;
            moe.top_k * (one + d) + moe.shared_experts * one
        });
        let of_row = 6 * d + heads.max(experts).max(3 * config.dense_intermediate);
        4 * (rows * of_row + rows.min(64) * config.vocab_size) as u64
    }

    /// What would fit: as many layers as there is room for, as few layers' experts elsewhere as it takes, or a smaller
    /// cache.
    fn hint(&self, placement: &Placement, free: u64) -> String {
        let now = placement.elsewhere();
        let fits = |elsewhere| {
            self.takes(&Placement::split(placement.main(), &wels_cpu::device(), elsewhere), self.demand.cache_bytes)
                <= free
        };
        let mut ways = Vec::new();
        let all = all_layers(self.config);
        let moe = self.config.moe.is_some();
        if let Some(experts) =
            (now.experts + 1..=all).find(|experts| moe && fits(Elsewhere { experts: *experts, ..now }))
        {
            ways.push(match experts == all {
                true => "--cpu-experts leaves the routed experts to the processor".into(),
                false => {
                    format!("--cpu-experts={experts} leaves the routed experts of {experts} layers to the processor")
                }
            });
        }
        if let Some(layers) =
            (now.layers + 1..=self.config.layers).find(|layers| fits(Elsewhere { layers: *layers, ..now }))
        {
            ways.push(format!("--gpu-layers {} leaves {layers} layers to the processor", self.config.layers - layers));
        }
        if self.takes(placement, 0) < free {
            let whole = self.cache(placement, self.demand.cache_bytes).max(1) as f64;
            let share = (free - self.takes(placement, 0)) as f64 / whole;
            let mib = (share * self.demand.cache_bytes as f64) as usize >> 20;
            ways.push(format!("a cache of {mib} MiB leaves the model where it is"));
        }
        ways.push("--device cpu computes with the processor alone".into());
        ways.join("; ")
    }
}

/// Memory for what is not counted: lists, tables, pieces of memory that wait to be used again.
const RESERVE_BYTES: u64 = 256 << 20;

/// Bytes of a page on the main device and on the other.
pub fn pages(placement: &Placement, config: &ModelConfig, demand: &Demand) -> [usize; 2] {
    let dtypes = demand.numbers.map(|numbers| numbers.cache_dtype);
    PagedCache::bytes_per_page_at(placement, config, demand.layout, dtypes)
}

/// The bytes of a cache, if the memory of the devices that are to have it holds as many. The processor's are taken as
/// they are used, so a cache that does not fit would end the program long after it began.
///
/// # Errors
/// A refusal with what is left.
pub fn cache_bytes(mib: NonZeroUsize, placement: &Placement, config: &ModelConfig, demand: &Demand) -> Result<usize> {
    let refused = |left: Option<u64>, whose: &str| {
        let left =
            left.map_or("memory holds".to_owned(), |left| format!("the {} MiB of {whose}memory left", left >> 20));
        refuse(format!("a cache of {mib} MiB is more than {left}"), "give a smaller --cache-mib")
    };
    let bytes = mib.get().checked_mul(1 << 20).ok_or_else(|| refused(machine::available_memory_bytes(), ""))?;
    let parts = pages(placement, config, demand);
    for (part, place) in parts.into_iter().zip([Place::Main, Place::Other]) {
        let (left, whose) = left(placement.device(place));
        let needed = bytes as u64 / (parts[0] + parts[1]) as u64 * part as u64;
        if left.is_some_and(|left| needed > left) {
            return Err(refused(left, whose));
        }
    }
    Ok(bytes)
}

/// Bytes that a device's memory still has, and whose that is.
pub fn left(device: &Arc<dyn Device>) -> (Option<u64>, &'static str) {
    match device.memory() {
        Some(memory) => (Some(memory.free), "the GPU's "),
        None => (machine::available_memory_bytes(), ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wels_device::{BlockType, Precision};
    use wels_model::names::ParamKind;
    use wels_model::paged::CacheDtype;
    use wels_model::presets::preset;

    /// Matrices in Q4_0, the others in 32 bits.
    fn sizes(config: &ModelConfig, layout: CacheLayout) -> WeightSizes {
        WeightSizes::of(config, layout, |spec| match spec.kind {
            ParamKind::Matrix | ParamKind::Experts(_) => BlockType::Q4_0,
            _ => BlockType::Q8_0,
        })
    }

    fn demand(layout: CacheLayout, cache_mib: usize) -> Demand {
        let numbers = [
            Numbers { precision: Precision::Bf16, cache_dtype: CacheDtype::Bf16 },
            Numbers { precision: Precision::F32, cache_dtype: CacheDtype::F16 },
        ];
        Demand { rows: 512, layout, numbers, cache_bytes: cache_mib << 20 }
    }

    fn placement(elsewhere: Elsewhere) -> Placement {
        let card: Arc<dyn Device> = wels_cpu::naive::Naive::new();
        Placement::split(&card, &wels_cpu::device(), elsewhere)
    }

    const GIB: u64 = 1 << 30;

    /// What is said of a card with so much memory left, and whether what is proposed is taken.
    fn said(name: &str, elsewhere: Elsewhere, cache_mib: usize, free: u64) -> Option<(String, String)> {
        let config = preset(name).unwrap();
        let layout = if config.attention.is_mla() { CacheLayout::Latent } else { CacheLayout::Expanded };
        let (sizes, demand) = (sizes(&config, layout), demand(layout, cache_mib));
        let candidate = Candidate { config: &config, sizes: &sizes, demand };
        let memory = DeviceMemory { total: free + GIB, free, peak: 0 };
        let error = candidate.check(&placement(elsewhere), "a card", memory).err()?;
        let hint = error.downcast_ref::<wels_pipeline::refusal::Refusal>().unwrap().hint().to_owned();
        Some((error.to_string(), hint))
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let whole = Elsewhere::default();
        assert_eq!(said("r1-distill-qwen-7b", whole, 1024, 12 * GIB), None);
        let (message, hint) = said("r1-distill-qwen-7b", whole, 1024, 4 * GIB).unwrap();
        assert!(message.starts_with("the model takes "), "{message}");
        assert!(
            message.ends_with(", 1.1GB of them for keys and values, and a card has 4.3GB left of 5.4GB"),
            "{message}"
        );
        assert!(hint.starts_with("--gpu-layers ") && !hint.contains("--cpu-experts"), "{hint}");
        let layers: usize = hint.split([' ', ';']).nth(1).unwrap().parse().unwrap();
        let with = |layers| said("r1-distill-qwen-7b", Elsewhere { layers: 28 - layers, experts: 0 }, 1024, 4 * GIB);
        assert_eq!(with(layers), None, "what is proposed fits");
        assert!(with(layers + 1).is_some(), "and no layer more");
    }

    #[test]
    fn experts_come_before_layers() {
        let (_, hint) = said("deepseek-r1", Elsewhere::default(), 1024, 78 * GIB).unwrap();
        let (first, second) = hint.split_once("; ").unwrap();
        assert!(first.starts_with("--cpu-experts="), "{hint}");
        assert!(second.starts_with("--gpu-layers "), "{hint}");
        let number = |text: &str| -> usize { text.split(['=', ' ']).nth(1).unwrap().parse().unwrap() };
        let (experts, layers) = (number(first), 61 - number(second));
        let with = |layers, experts| said("deepseek-r1", Elsewhere { layers, experts }, 1024, 78 * GIB);
        assert_eq!((with(0, experts), with(layers, 0)), (None, None));
        assert!(with(0, experts - 1).is_some() && with(layers - 1, 0).is_some());
        // A card of 24 GiB has room for all but experts.
        let (_, hint) = said("deepseek-r1", Elsewhere::default(), 1024, 24 * GIB).unwrap();
        assert!(hint.contains("--cpu-experts"), "{hint}");
        assert_eq!(said("deepseek-r1", Elsewhere { layers: 0, experts: 62 }, 1024, 24 * GIB), None);
    }

    #[test]
    fn a_cache_that_is_too_large_is_named() {
        let (_, hint) = said("r1-distill-qwen-7b", Elsewhere::default(), 64 << 10, 12 * GIB).unwrap();
        let mib: usize = hint.split("a cache of ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert_eq!(said("r1-distill-qwen-7b", Elsewhere::default(), mib, 12 * GIB), None, "{hint}");
        assert!(said("r1-distill-qwen-7b", Elsewhere::default(), mib + 8, 12 * GIB).is_some());
    }

    #[test]
    fn a_cache_is_held_against_the_memory_of_its_device() {
        let config = preset("r1-distill-qwen-7b").unwrap();
        let memory = DeviceMemory { total: GIB, free: GIB, peak: 0 };
        let card: Arc<dyn Device> = wels_cpu::naive::Naive::with_memory(memory);
        let bytes = |layers, mib| {
            let placement = Placement::split(&card, &wels_cpu::device(), Elsewhere { layers, experts: 0 });
            let mib = NonZeroUsize::new(mib).unwrap();
            cache_bytes(mib, &placement, &config, &demand(CacheLayout::Expanded, 0)).map_err(|error| error.to_string())
        };
        assert_eq!(bytes(0, 1024), Ok(1 << 30));
        let refused = "a cache of 1100 MiB is more than the 1024 MiB of the GPU's memory left";
        assert_eq!(bytes(0, 1100), Err(refused.into()));
        assert_eq!(bytes(14, 1100), Ok(1100 << 20), "half of it is the processor's");
        let error = bytes(28, 99_999_999).unwrap_err();
        assert!(error.starts_with("a cache of 99999999 MiB is more than ") && !error.contains("GPU"), "{error}");
    }

    #[test]
    fn nothing_fits_where_there_is_no_memory() {
        let (_, hint) = said("r1-distill-qwen-7b", Elsewhere::default(), 1024, GIB / 8).unwrap();
        assert_eq!(hint, "--device cpu computes with the processor alone");
    }

    #[test]
    fn flags_name_the_last_layers_and_the_first_experts() {
        let config = preset("deepseek-r1").unwrap();
        let elsewhere = |gpu_layers, cpu_experts| {
            PlacementArgs { gpu_layers, cpu_experts, ..PlacementArgs::default() }.elsewhere(&config)
        };
        assert_eq!(elsewhere(None, None), Elsewhere::default());
        assert_eq!(elsewhere(Some(20), None), Elsewhere { layers: 41, experts: 0 });
        assert_eq!(elsewhere(Some(99), None), Elsewhere::default());
        assert_eq!(elsewhere(Some(0), None), Elsewhere { layers: 61, experts: 0 });
        assert_eq!(elsewhere(None, Some(None)), Elsewhere { layers: 0, experts: 62 });
        assert_eq!(elsewhere(Some(50), Some(Some(30))), Elsewhere { layers: 11, experts: 30 });
        let words = |elsewhere| in_words(&placement(elsewhere), &config);
        assert_eq!(words(Elsewhere { layers: 41, experts: 0 }), "naive, the first 41 of 61 layers on the processor");
        let experts = "naive, the routed experts of all layers on the processor";
        assert_eq!(words(Elsewhere { layers: 0, experts: 62 }), experts);
    }
}
