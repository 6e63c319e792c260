//! A model on two devices has the bits of the same model on one, wherever it is divided, and little crosses.

use std::ops::Range;
use std::sync::Arc;

use crate::shapes;
use wels_cpu::naive::Naive;
use wels_cpu::testing::{device, host};
use wels_device::{BlockType, Device, DeviceMemory, Precision, Tensor};
use wels_model::config::{Dtype, ModelConfig};
use wels_model::gguf::{self, GgufFile};
use wels_model::inference::{LoadOptions, Quantise};
use wels_model::model::Model;
use wels_model::paged::{CacheDtype, CacheLayout, Chunk, PagedCache, StepOutput};
use wels_model::params::Params;
use wels_model::placement::{Elsewhere, Place, Placement};
use wels_model::sizes::WeightSizes;
use wels_model::tape::Execution;
use wels_model::weights::{DEFAULT_SHARD_BYTES, Files, save_dir};

/// A device with other memory than that which tests run on.
fn other() -> Arc<dyn Device> {
    if device().name() == "cpu" { Naive::new() } else { wels_cpu::device() }
}

/// All ways to divide a model.
fn divisions(config: &ModelConfig) -> impl Iterator<Item = Elsewhere> {
    let with_experts = config.moe.as_ref().map_or(0, |_| config.layers + config.mtp_depth);
    (0..=config.layers).flat_map(move |layers| (0..=with_experts).map(move |experts| Elsewhere { layers, experts }))
}

/// The same weights elsewhere.
fn placed(params: &Params, config: &ModelConfig, placement: &Placement) -> Params {
    let mut placed = Params::unset(placement, config);
    for (param, tensor) in params.tensors().iter().enumerate() {
        placed.set_values(param, &tensor.to_host());
    }
    placed
}

fn bits(x: &Tensor) -> Vec<u32> {
    host(x).iter().map(|x| x.to_bits()).collect()
}

/// The logits of a sequence in pages, in chunks, and those of MTP.
fn paged(model: &Model, params: &Params, layout: CacheLayout, tokens: &[u32]) -> Vec<u32> {
    let (config, placement) = (model.config(), params.placement());
    let execution = Execution::placed(placement, Precision::F32, Precision::F32);
    let mut cache = PagedCache::placed(placement, config, layout, [CacheDtype::F32; 2], 3);
    let mut all = Vec::new();
    let mut step = |range: Range<usize>, pages: &[u32], cache: &mut PagedCache| {
        let tokens = &tokens[range.clone()];
        let chunk = Chunk { tokens, past: range.start, pages, logits: tokens.len(), states: tokens.len() };
        let StepOutput { logits, mut hidden } = model.step(params, &execution, cache, &[chunk]);
        all.extend(bits(&logits));
        for depth in 1..=config.mtp_depth {
            let output = model.draft(params, &execution, cache, depth, &[chunk], hidden);
            all.extend(bits(&output.logits));
            hidden = output.hidden;
        }
    };
    step(0..16, &[2], &mut cache);
    cache.copy_page(2, 1); // goes on from a copy of what it has written
    step(16..20, &[1, 0], &mut cache);
    all
}

#[test]
fn a_divided_model_has_the_bits_of_a_whole_one() {
    let batch = shapes::batch(8, &[12, 8]);
    for (name, config) in shapes::all() {
        let model = Model::new(config.clone(), 64);
        let mut whole = Params::init(&device(), &config, 5);
        whole.prepare_latent(&model);
        let results = |params: &Params| {
            let execution = Execution::placed(params.placement(), Precision::F32, Precision::F32);
            let mut all: Vec<u32> = model.logprobs(params, &execution, &batch).iter().map(|x| x.to_bits()).collect();
            for logits in model.mtp_logits(params, &execution, &batch.tokens, &batch.starts) {
                all.extend(bits(&logits));
            }
            all.extend(paged(&model, params, CacheLayout::Expanded, &batch.tokens));
            if config.attention.is_mla() {
                all.extend(paged(&model, params, CacheLayout::Latent, &batch.tokens));
            }
            all
        };
        let expected = results(&whole);
        let other = other();
        for elsewhere in divisions(&config) {
            for (main, other) in [(&device(), &other), (&other, &device())] {
                let mut divided = placed(&whole, &config, &Placement::split(main, other, elsewhere));
                divided.prepare_latent(&model);
                assert!(results(&divided) == expected, "{name}: {elsewhere:?}, {} and {}", main.name(), other.name());
            }
        }
    }
}

/// Also to a device that copies what it is given to memory of its own.
#[test]
fn files_are_loaded_to_where_their_parts_belong() {
    let batch = shapes::batch(8, &[20]);
    let memory = DeviceMemory { total: 1 << 30, free: 1 << 30, peak: 0 };
    let with_memory: Arc<dyn Device> = Naive::with_memory(memory);
    for (name, config) in shapes::all() {
        let experts = config.moe.as_ref().map_or(0, |_| config.layers);
        let elsewhere = Elsewhere { layers: 1, experts };
        let placements = [
            Placement::split(&device(), &other(), elsewhere),
            Placement::split(&with_memory, &wels_cpu::device(), elsewhere),
            Placement::from(&with_memory),
        ];
        let params = Params::init(&device(), &config, 5);
        let model = Model::new(config.clone(), 64);
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let dir = tempfile::tempdir().unwrap();
            save_dir(dir.path(), &config, dtype, DEFAULT_SHARD_BYTES, &|param| params.tensors()[param].to_host())
                .unwrap();
            let files = Files::open(dir.path()).unwrap();
            for options in [LoadOptions::packed(Quantise::AsStored), LoadOptions::mapped(Quantise::AsStored)] {
                let logprobs = |placement: &Placement| {
                    let (params, _) = Params::from_files(placement, &files, &config, options).unwrap();
                    model.logprobs(&params, &Execution::placed(placement, Precision::F32, Precision::F32), &batch)
                };
                let whole = logprobs(&(&device()).into());
                for placement in &placements {
                    assert_eq!(whole, logprobs(placement), "{name}, {dtype:?}, {options:?}: {placement:?}");
                }
            }
        }
    }
}

#[test]
fn gguf_files_are_loaded_to_where_their_parts_belong() {
    let dir = tempfile::tempdir().unwrap();
    // Models with windows or indexers have no GGUF form.
    let have_form = |config: &ModelConfig| config.window.is_none() && config.indexer.is_none();
    for (name, config) in shapes::all().into_iter().filter(|(_, config)| have_form(config)) {
        let params = Params::init(&device(), &config, 5);
        let path = dir.path().join(format!("{name}.gguf"));
        let values = |param: usize| params.tensors()[param].to_host();
        gguf::save(&path, &config, BlockType::F16, &[], &values, &mut |_, _| ()).unwrap();
        let (config, file, _) = GgufFile::open_model(&path).unwrap();
        let model = Model::new(config.clone(), 64);
        let experts = config.moe.as_ref().map_or(0, |_| config.layers);
        for options in [LoadOptions::packed(Quantise::AsStored), LoadOptions::mapped(Quantise::AsStored)] {
            let bits = |placement: &Placement| {
                let (mut params, _) = Params::from_gguf(placement, &file, &config, options).unwrap();
                params.prepare_latent(&model);
                let layout = if config.attention.is_mla() { CacheLayout::Latent } else { CacheLayout::Expanded };
                paged(&model, &params, layout, &shapes::batch(8, &[20]).tokens)
            };
            let whole = bits(&(&device()).into());
            for elsewhere in [Elsewhere { layers: 1, experts: 0 }, Elsewhere { layers: 0, experts }] {
                let divided = bits(&Placement::split(&device(), &other(), elsewhere));
                assert!(whole == divided, "{name}, {options:?}, {elsewhere:?}");
            }
        }
    }
}

/// What is said before anything is loaded is what is held, but for padding.
#[test]
fn sizes_are_those_of_what_is_held() {
    let naive: Arc<dyn Device> = Naive::new(); // pads nothing
    for (name, config) in shapes::all() {
        let dir = tempfile::tempdir().unwrap();
        let params = Params::init(&device(), &config, 5);
        save_dir(dir.path(), &config, Dtype::Bf16, DEFAULT_SHARD_BYTES, &|param| params.tensors()[param].to_host())
            .unwrap();
        let files = Files::open(dir.path()).unwrap();
        let model = Model::new(config.clone(), 64);
        let elsewhere = Elsewhere { layers: 1, experts: config.moe.as_ref().map_or(0, |_| 2) };
        let placement = Placement::split(&naive, &wels_cpu::device(), elsewhere);
        for layout in [CacheLayout::Expanded, CacheLayout::Latent] {
            if layout == CacheLayout::Latent && !config.attention.is_mla() {
                continue;
            }
            let sizes = WeightSizes::of_files(&files, &config, Quantise::AsStored, layout).unwrap();
            let (expected, largest) = sizes.at(&placement, &config, Place::Main);
            let options = LoadOptions::packed(Quantise::AsStored);
            let (mut held, _) = Params::from_files(&placement, &files, &config, options).unwrap();
            let main = |param: &usize| placement.of(&config, &held.specs()[*param]) == Place::Main;
            let params: Vec<usize> = (0..held.specs().len()).filter(main).collect();
            let bytes =
                |held: &Params, layout| -> usize { params.iter().map(|param| held.bytes(*param, layout)).sum() };
            let own = bytes(&held, CacheLayout::Expanded);
            let packed = params.iter().filter(|param| held.packed(**param).is_some());
            let biggest = packed.map(|param| held.bytes(*param, CacheLayout::Expanded)).max();
            held.prepare_latent(&model);
            let halves: usize = match layout {
                CacheLayout::Expanded => 0,
                CacheLayout::Latent => {
                    let up = params.iter().filter(|param| held.specs()[**param].name.ends_with("kv_b_proj.weight"));
                    up.map(|param| held.bytes(*param, CacheLayout::Latent)).sum()
                }
            };
            assert_eq!((expected, largest), ((own + halves) as u64, biggest.unwrap() as u64), "{name}, {layout:?}");
        }
    }
}

/// Transfers of a device in a step of one sequence.
fn transfers(config: &ModelConfig, elsewhere: Elsewhere) -> (usize, usize) {
    let naive = Naive::new();
    let main: Arc<dyn Device> = naive.clone();
    let model = Model::new(config.clone(), 64);
    let whole = Params::init(&wels_cpu::device(), config, 5);
    let placement = Placement::split(&main, &wels_cpu::device(), elsewhere);
    let params = placed(&whole, config, &placement);
    let execution = Execution::placed(&placement, Precision::F32, Precision::F32);
    let mut cache = PagedCache::placed(&placement, config, CacheLayout::Expanded, [CacheDtype::F32; 2], 1);
    let before = naive.host_transfers();
    let chunk = Chunk { tokens: &[1, 2, 3], past: 0, pages: &[0], logits: 1, states: 0 };
    model.step(&params, &execution, &mut cache, &[chunk]);
    let after = naive.host_transfers();
    (after.reads - before.reads, after.writes - before.writes)
}

#[test]
fn states_cross_once_at_the_border_of_layers() {
    let layers = |layers| Elsewhere { layers, experts: 0 };
    assert_eq!(transfers(&shapes::llama(), layers(1)), (0, 1));
    assert_eq!(transfers(&shapes::llama(), layers(2)), (0, 1));
    assert_eq!(transfers(&shapes::deepseek_v3(), layers(2)), (0, 1));
    // The embedding, which is the head, is on the main device.
    assert_eq!(transfers(&shapes::qwen2(), layers(1)), (1, 1));
    assert_eq!(transfers(&shapes::llama(), layers(0)), (0, 0));
}

/// To the experts: router logits, rows and the shared expert's; back: their sum. Of three layers two have experts.
#[test]
fn rows_cross_to_experts_and_back() {
    let experts = |experts| Elsewhere { layers: 0, experts };
    assert_eq!(transfers(&shapes::deepseek_v3(), experts(2)), (3, 1 + 1));
    assert_eq!(transfers(&shapes::deepseek_v3(), experts(5)), (2 * 3, 1 + 2));
}

#[test]
fn a_cache_takes_of_each_device_what_its_layers_take() {
    let config = shapes::deepseek_v3();
    let placement = |layers| Placement::split(&device(), &other(), Elsewhere { layers, experts: 0 });
    let layout = CacheLayout::Latent;
    let of_layer = 16 * (10 + 4);
    let bytes =
        |layers| PagedCache::bytes_per_page_at(&placement(layers), &config, layout, [CacheDtype::F32, CacheDtype::F16]);
    assert_eq!(bytes(0), [5 * of_layer * 4, 0]);
    assert_eq!(bytes(1), [4 * of_layer * 4, of_layer * 2]);
    // MTP stays with the head.
    assert_eq!(bytes(9), [2 * of_layer * 4, 3 * of_layer * 2]);
    assert_eq!(placement(9).cached_layers(&config, Place::Main), 3..5);
}
