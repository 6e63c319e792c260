//! Checkpoints in 8-bit floating point on devices that keep them so.

use std::path::Path;
use std::sync::Arc;

use safetensors::SafeTensors;

use crate::shapes;
use wels_cpu::naive::Naive;
use wels_cpu::testing::{emulator, host};
use wels_device::{BlockType, Device, DeviceMemory, Precision};
use wels_model::config::{Attention, Dtype, ModelConfig};
use wels_model::inference::{LoadOptions, Quantise};
use wels_model::model::Model;
use wels_model::paged::{CacheDtype, CacheLayout, Chunk, PagedCache};
use wels_model::params::Params;
use wels_model::placement::{Elsewhere, Place, Placement};
use wels_model::sizes::WeightSizes;
use wels_model::tape::Execution;
use wels_model::weights::{DEFAULT_SHARD_BYTES, Files, save_dir};

const LAYOUTS: [CacheLayout; 2] = [CacheLayout::Expanded, CacheLayout::Latent];

/// DeepSeek-V3 with the widths of its attention, and others that are no whole blocks.
fn wide() -> ModelConfig {
    let config = shapes::deepseek_v3();
    let attention =
        Attention::Mla { heads: 2, q_lora_rank: Some(136), kv_lora_rank: 72, nope_dim: 128, rope_dim: 64, v_dim: 128 };
    let moe = config.moe.clone().map(|moe| wels_model::config::MoeConfig { expert_intermediate: 136, ..moe });
    let softmax_scale = 1.0 / (attention.qk_dim() as f32).sqrt();
    ModelConfig { hidden_size: 144, mtp_depth: 1, init_std: 0.08, attention, moe, softmax_scale, ..config }
}

fn configs() -> [(&'static str, ModelConfig); 2] {
    [("narrow", shapes::deepseek_v3()), ("wide", wide())]
}

/// A model made up, as a checkpoint in FP8.
fn checkpoint(config: &ModelConfig) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let params = Params::init(&wels_cpu::device(), config, 5);
    let values = |param: usize| params.tensors()[param].to_host();
    save_dir(dir.path(), config, Dtype::Fp8, DEFAULT_SHARD_BYTES, &values).unwrap();
    dir
}

fn load(placement: impl Into<Placement>, dir: &Path, config: &ModelConfig) -> Params {
    let files = Files::open(dir).unwrap();
    let (mut params, _) =
        Params::from_files(placement, &files, config, LoadOptions::packed(Quantise::AsStored)).unwrap();
    params.prepare_latent(&Model::new(config.clone(), 64));
    params
}

/// The logits of many rows and of one at a time, in pages.
fn logits(params: &Params, config: &ModelConfig, layout: CacheLayout, precision: Precision) -> Vec<f32> {
    let model = Model::new(config.clone(), 64);
    let tokens = shapes::batch(8, &[20]).tokens;
    let execution = Execution::placed(params.placement(), precision, Precision::F32);
    let dtype = if precision == Precision::Bf16 { CacheDtype::Bf16 } else { CacheDtype::F32 };
    let mut cache = PagedCache::placed(params.placement(), config, layout, [dtype, CacheDtype::F32], 2);
    let mut all = Vec::new();
    for range in [0..18, 18..19, 19..20] {
        let tokens = &tokens[range.clone()];
        let chunk = Chunk { tokens, past: range.start, pages: &[1, 0], logits: tokens.len(), states: 0 };
        all.extend_from_slice(&host(&model.step(params, &execution, &mut cache, &[chunk]).logits));
    }
    all
}

/// Parameters that a file in FP8 has in FP8.
fn is_fp8(name: &str) -> bool {
    name.ends_with("proj.weight") && !name.ends_with("eh_proj.weight")
}

#[test]
fn a_card_in_f32_has_the_processors_bits() {
    for (name, config) in configs() {
        let Some(card) = emulator(3) else { return };
        let dir = checkpoint(&config);
        let (on_card, on_processor) =
            (load(&card, dir.path(), &config), load(&wels_cpu::device(), dir.path(), &config));
        let mut kept = 0;
        for (param, spec) in on_card.specs().iter().enumerate().filter(|(_, spec)| is_fp8(&spec.name)) {
            let blocks = spec.rows * spec.cols.div_ceil(128);
            let bytes = on_card.bytes(param, CacheLayout::Expanded);
            assert_eq!(bytes, blocks * BlockType::E4m3.bytes(), "{name}: {}", spec.name);
            kept += 1;
        }
        assert!(kept > 20, "{name}: {kept} parameters in FP8");
        let elsewhere = Elsewhere { layers: 1, experts: 2 };
        let divided = load(Placement::split(&card, &wels_cpu::device(), elsewhere), dir.path(), &config);
        for layout in LAYOUTS {
            let expected = logits(&on_processor, &config, layout, Precision::F32);
            assert_eq!(logits(&on_card, &config, layout, Precision::F32), expected, "{name}, {layout:?}");
            assert_eq!(logits(&divided, &config, layout, Precision::F32), expected, "{name}, {layout:?}, divided");
        }
    }
}

/// As near to the exact model as the same weights in f32, which products round to bf16 as they are read.
#[test]
fn a_card_in_bf16_is_as_near_as_with_weights_in_f32() {
    for (name, config) in configs() {
        let Some(card) = emulator(4) else { return };
        let dir = checkpoint(&config);
        let on_processor = load(&wels_cpu::device(), dir.path(), &config);
        let on_card = load(&card, dir.path(), &config);
        let mut plain = Params::zeros(&card, &config);
        let files = Files::open(dir.path()).unwrap();
        files.load(&config, &mut |param, row, _, values| plain.set_rows(param, row, values)).unwrap();
        plain.prepare_latent(&Model::new(config.clone(), 64));
        for layout in LAYOUTS {
            let exact = logits(&on_processor, &config, layout, Precision::F32);
            let size = (exact.iter().map(|x| x * x).sum::<f32>()).sqrt();
            let off = |params: &Params| {
                let got = logits(params, &config, layout, Precision::Bf16);
                got.iter().zip(&exact).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt() / size
            };
            let (fp8, f32) = (off(&on_card), off(&plain));
            println!("{name}, {layout:?}: off by {fp8:.4} of the logits, and {f32:.4} with weights in f32");
            assert!(fp8 > 0.0 && fp8 < 1.1 * f32, "{name}, {layout:?}: {fp8} and {f32}");
        }
    }
}

#[test]
fn sizes_are_those_of_what_is_held() {
    let memory = DeviceMemory { total: 1 << 30, free: 1 << 30, peak: 0 };
    let card: Arc<dyn Device> = Naive::with_memory(memory);
    for (name, config) in configs() {
        let dir = checkpoint(&config);
        let files = Files::open(dir.path()).unwrap();
        let placement = Placement::split(&card, &wels_cpu::device(), Elsewhere { layers: 1, experts: 2 });
        let held = load(&placement, dir.path(), &config);
        for layout in LAYOUTS {
            let sizes = WeightSizes::of_files(&files, &config, Quantise::AsStored, layout).unwrap();
            let (expected, scratch) = sizes.at(&placement, &config, Place::Main);
            let (mut bytes, mut largest) = (0, 0);
            for (param, spec) in held.specs().iter().enumerate() {
                if placement.of(&config, spec) != Place::Main {
                    continue;
                }
                let own = held.bytes(param, CacheLayout::Expanded);
                bytes += own;
                let is_up = spec.name.ends_with("kv_b_proj.weight");
                // Halves in FP8 are made while the matrix is loaded, whatever pages are to be.
                if is_up && (layout == CacheLayout::Latent || name == "wide") {
                    bytes += held.bytes(param, CacheLayout::Latent);
                }
                if spec.kind.is_packable() {
                    largest = largest.max(own).max(spec.len() * 2);
                }
            }
            assert_eq!((expected, scratch), (bytes as u64, largest as u64), "{name}, {layout:?}");
        }
        let quantised = WeightSizes::of_files(&files, &config, Quantise::Q8, CacheLayout::Expanded).unwrap();
        let as_f32 = WeightSizes::of_files(&files, &config, Quantise::AsStored, CacheLayout::Expanded).unwrap();
        let on_processor = Placement::from(&wels_cpu::device());
        assert!(quantised.at(&on_processor, &config, Place::Main).0 < as_f32.at(&on_processor, &config, Place::Main).0);
    }
}

/// A number that is NaN leaves its matrix in f32, and is the NaN that the processor reads.
#[test]
fn matrices_with_nan_are_read_as_f32() {
    let config = shapes::deepseek_v3();
    let dir = checkpoint(&config);
    let path = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let name = "model.layers.1.mlp.experts.3.up_proj.weight";
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let begin = 8 + header + metadata.info(name).unwrap().data_offsets.0;
    bytes[begin + 2] = 0x7f;
    std::fs::write(&path, bytes).unwrap();
    let card: Arc<dyn Device> = Naive::with_memory(DeviceMemory { total: 1 << 30, free: 1 << 30, peak: 0 });
    let params = [&card, &wels_cpu::device()].map(|device| load(device, dir.path(), &config));
    let bits = |params: &Params| -> Vec<u32> {
        let logits = logits(params, &config, CacheLayout::Latent, Precision::F32);
        logits.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
    };
    let all = params.each_ref().map(bits);
    assert_eq!(all[0], all[1]);
    assert!(all[0].contains(&f32::NAN.to_bits()), "no token was sent to the expert");
}
