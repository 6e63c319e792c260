//! Packed weights: exact in floating point, independent of history when quantised, read from files as they are there.

use crate::shapes;
use wels_cpu::testing::{device, host};
use wels_device::{BlockType, Source, Tensor};
use wels_model::config::{Dtype, ModelConfig};
use wels_model::inference::{LoadOptions, Quantise};
use wels_model::model::Model;
use wels_model::names::ParamKind;
use wels_model::paged::{CacheDtype, CacheLayout, Chunk, PagedCache};
use wels_model::params::Params;
use wels_model::tape::Execution;
use wels_model::weights::{DEFAULT_SHARD_BYTES, Files, save_dir};

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The same weights, matrices packed as `kind`.
pub fn packed(params: &Params, kind: BlockType) -> Params {
    let mut packed = params.clone();
    for (param, spec) in params.specs().iter().enumerate().filter(|(_, spec)| spec.kind.is_packable()) {
        let count = if let ParamKind::Experts(experts) = spec.kind { experts } else { 1 };
        let rows = spec.rows / count;
        let values = params.tensors()[param].to_host();
        let matrices = values.chunks_exact(rows * spec.cols);
        let matrices = matrices.map(|values| device().pack(Source::Values { values, to: kind }, rows, spec.cols));
        packed.set_packed(param, device().stack(matrices.collect()));
    }
    packed
}

/// The logits of a sequence in pages, in two chunks.
fn paged(model: &Model, params: &Params, layout: CacheLayout, tokens: &[u32]) -> Vec<u32> {
    let mut cache = PagedCache::new(&device(), model.config(), layout, CacheDtype::F32, 2);
    let (first, second) = tokens.split_at(11);
    let mut step = |tokens: &[u32], past| {
        let chunk = Chunk { tokens, past, pages: &[1, 0], logits: tokens.len(), states: 0 };
        bits(&host(&model.step(params, &Execution::new(device()), &mut cache, &[chunk]).logits))
    };
    [step(first, 0), step(second, 11)].concat()
}

#[test]
fn packing_in_f32_changes_no_bit() {
    let batch = shapes::batch(8, &[20]);
    let execution = Execution::new(device());
    for (name, config) in shapes::all() {
        let model = Model::new(config.clone(), 64);
        let mut params = Params::init(&device(), &config, 5);
        params.prepare_latent(&model);
        let mut packed = packed(&params, BlockType::F32);
        packed.prepare_latent(&model);
        let logits = |params| bits(&host(&model.logits(params, &execution, &batch.tokens, &batch.starts)));
        assert_eq!(logits(&params), logits(&packed), "{name}");
        let logprobs = |params| bits(&model.logprobs(params, &execution, &batch));
        assert_eq!(logprobs(&params), logprobs(&packed), "{name}");
        if config.attention.is_mla() {
            let latent = |params| paged(&model, params, CacheLayout::Latent, &batch.tokens);
            assert_eq!(latent(&params), latent(&packed), "{name}: latent");
        }
    }
}

#[test]
fn quantised_weights_give_the_same_in_pages_and_are_close() {
    let batch = shapes::batch(8, &[20]);
    let execution = Execution::new(device());
    for (name, config) in shapes::all() {
        let model = Model::new(config.clone(), 64);
        let params = Params::init(&device(), &config, 5);
        let exact = model.logits(&params, &execution, &batch.tokens, &batch.starts);
        let (rows, cols) = (exact.rows(), exact.cols());
        let exact = host(&exact);
        let size = exact.iter().fold(0f32, |size, x| size.max(x.abs()));
        let mut packed = packed(&params, BlockType::Q8_0);
        packed.prepare_latent(&model);
        let whole = host(&model.logits(&packed, &execution, &batch.tokens, &batch.starts));
        assert_eq!(bits(&whole), paged(&model, &packed, CacheLayout::Expanded, &batch.tokens), "{name}");
        let mut values = vec![whole];
        if config.attention.is_mla() {
            let latent = paged(&model, &packed, CacheLayout::Latent, &batch.tokens);
            let numbers: Vec<f32> = latent.into_iter().map(f32::from_bits).collect();
            values.push(host(&Tensor::of(&device(), rows, cols, &numbers)));
        }
        // A router near a tie may choose another expert: most, not all, tokens have to be close.
        for values in values {
            let far = |t: &usize| exact.row(*t).iter().zip(values.row(*t)).any(|(a, b)| (a - b).abs() > 0.1 * size);
            let far = (0..rows).filter(far).count();
            assert!(far <= rows / 4, "{name}: {far} of {} tokens are far off", rows);
        }
        let logp = model.logprobs(&packed, &execution, &batch);
        for (t, logp) in logp.iter().enumerate() {
            let row = host(&model.logits(&packed, &execution, &batch.tokens, &batch.starts)).row(t).to_vec();
            let max = row.iter().fold(f32::MIN, |max, x| max.max(*x));
            let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
            let expected = f64::from(row[batch.targets[t] as usize] - max) - sum.ln();
            assert!((f64::from(*logp) - expected).abs() < 1e-5, "{name}: token {t}, {logp} and {expected}");
        }
    }
}

#[test]
fn files_are_packed_in_their_own_format() {
    let batch = shapes::batch(8, &[20]);
    let execution = Execution::new(device());
    for (name, config) in shapes::all() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let dir = tempfile::tempdir().unwrap();
            let params = Params::init(&device(), &config, 5);
            save(&config, &params, dtype, dir.path());
            let files = Files::open(dir.path()).unwrap();
            let mut plain = Params::zeros(&device(), &config);
            files.load(&config, &mut |param, row, _, values| plain.set_rows(param, row, values)).unwrap();
            let model = Model::new(config.clone(), 64);
            let logits = |params: &Params| bits(&host(&model.logits(params, &execution, &batch.tokens, &batch.starts)));
            let (packed, _) =
                Params::from_files(&device(), &files, &config, LoadOptions::packed(Quantise::AsStored)).unwrap();
            assert_eq!(logits(&plain), logits(&packed), "{name} {dtype:?}");
            let (mapped, _) =
                Params::from_files(&device(), &files, &config, LoadOptions::mapped(Quantise::AsStored)).unwrap();
            assert_eq!(logits(&plain), logits(&mapped), "{name} {dtype:?}, mapped");
            let head = packed.position("model.embed_tokens.weight").unwrap();
            let bytes = packed.bytes(head, CacheLayout::Expanded);
            // Where it is the head too the processor packs it in panels; otherwise it is left in the file.
            let panels = config.tied_head && device().name() == "cpu";
            let rows = if panels { config.vocab_size.next_multiple_of(16) } else { config.vocab_size };
            let expected = if dtype == Dtype::F32 { 4 } else { 2 } * rows * 24;
            assert_eq!(bytes, expected, "{name} {dtype:?}: bytes of the embedding");
            let (small, _) = Params::from_files(&device(), &files, &config, LoadOptions::packed(Quantise::Q4)).unwrap();
            assert!(logits(&small).iter().all(|x| f32::from_bits(*x).is_finite()));
            let all = |params: &Params| -> usize {
                (0..params.specs().len()).map(|param| params.bytes(param, CacheLayout::Expanded)).sum()
            };
            assert!(all(&small) < all(&packed), "{name} {dtype:?}");
        }
    }
}

fn save(config: &ModelConfig, params: &Params, dtype: Dtype, dir: &std::path::Path) {
    save_dir(dir, config, dtype, DEFAULT_SHARD_BYTES, &|param| params.tensors()[param].to_host()).unwrap();
}
