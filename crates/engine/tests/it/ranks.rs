//! A model over several ranks answers as it does on one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::models;
use crate::placed::{Answer, answers};
use wels_comm::{Comm, Lost, Pending, Threads, threads};
use wels_cpu::{Ranks, over_ranks};
use wels_device::{BlockType, Device, Source};
use wels_engine::{Engine, LoadedModel, Options, Request};
use wels_model::config::{Attention, ModelConfig, Router, SoftmaxMethod};
use wels_model::names::ParamKind;
use wels_model::paged::CacheLayout;
use wels_model::params::Params;

/// DeepSeek-V2-Lite's structure: queries without a latent, a softmax router, shared experts, no MTP.
fn v2_lite() -> ModelConfig {
    let attention =
        Attention::Mla { heads: 4, q_lora_rank: None, kv_lora_rank: 20, nope_dim: 6, rope_dim: 4, v_dim: 8 };
    let router = Router::Softmax { method: SoftmaxMethod::Greedy, normalize: false, scale: 1.0 };
    let base = models::deepseek();
    let moe = base.moe.map(|moe| wels_model::config::MoeConfig { router, shared_experts: 2, ..moe });
    let softmax_scale = 1.0 / (attention.qk_dim() as f32).sqrt();
    ModelConfig { attention, softmax_scale, moe, mtp_depth: 0, ..base }
}

/// The values of `whole`, packed as a device does.
fn packed_on(device: &Arc<dyn Device>, whole: &LoadedModel, to: BlockType) -> LoadedModel {
    let mut params = Params::unset(device, whole.model.config());
    for (param, spec) in whole.params.specs().iter().enumerate() {
        let values = whole.params.tensors()[param].to_host();
        if !spec.kind.is_packable() {
            params.set_values(param, &values);
            continue;
        }
        let count = if let ParamKind::Experts(experts) = spec.kind { experts } else { 1 };
        let rows = spec.rows / count;
        let pack = |(i, values)| device.pack_one_of(Source::Values { values, to }, rows, spec.cols, i, count);
        let matrices = values.chunks_exact(rows * spec.cols).enumerate().map(pack).collect();
        params.set_packed(param, device.stack(matrices));
    }
    params.prepare_latent(&whole.model);
    LoadedModel { params: params.into(), ..whole.clone() }
}

/// What the first of `world` ranks makes of the model that all of them have loaded, and bytes of weights by rank.
fn over<T: Send>(
    world: usize,
    small_bytes: usize,
    whole: &LoadedModel,
    to: BlockType,
    work: impl Fn(&LoadedModel) -> T + Sync,
) -> (T, Vec<usize>) {
    let rank = |comm: Threads| {
        let (device, ranks) = over_ranks(Arc::new(comm), small_bytes);
        let loaded = packed_on(&device, whole, to);
        let bytes = ranks.bytes();
        if ranks.comm().rank() > 0 {
            ranks.follow().expect("the first rank ends it");
            return (None, bytes);
        }
        let result = work(&loaded);
        ranks.end();
        (Some(result), bytes)
    };
    let (results, bytes): (Vec<_>, Vec<_>) = thread::scope(|scope| {
        let ranks: Vec<_> = threads(world).into_iter().map(|comm| scope.spawn(|| rank(comm))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("a rank")).unzip()
    });
    (results.into_iter().flatten().next().expect("the first rank's"), bytes)
}

fn options(layout: CacheLayout) -> Options {
    Options { layout, max_batch_tokens: 23, ..models::options() }
}

fn answers_are_those_of_one_rank(config: &ModelConfig, layout: CacheLayout) {
    let whole = models::loaded(config, 5);
    let ask = |loaded: &LoadedModel| -> Vec<Answer> { answers(loaded, &options(layout)).0 };
    for format in [BlockType::Q8_0, BlockType::Q4_0, BlockType::Bf16] {
        let expected = ask(&packed_on(&wels_cpu::device(), &whole, format));
        for world in [1, 2, 3, 4] {
            // Everything is cut; and what is small is not.
            for small_bytes in [0, 2 << 10] {
                let (got, _) = over(world, small_bytes, &whole, format, ask);
                assert_eq!(got, expected, "{} over {world} ranks, whole below {small_bytes} bytes", format.name());
            }
        }
    }
}

#[test]
fn grouped_queries_answer_as_on_one_rank() {
    answers_are_those_of_one_rank(&ModelConfig { tied_head: true, ..models::gqa() }, CacheLayout::Expanded);
}

#[test]
fn latents_and_experts_answer_as_on_one_rank() {
    answers_are_those_of_one_rank(&v2_lite(), CacheLayout::Latent);
}

#[test]
fn experts_in_groups_and_drafts_by_mtp_answer_as_on_one_rank() {
    answers_are_those_of_one_rank(&models::deepseek(), CacheLayout::Latent);
    answers_are_those_of_one_rank(&models::deepseek(), CacheLayout::Expanded);
}

#[test]
fn chosen_keys_answer_as_on_one_rank() {
    answers_are_those_of_one_rank(&models::sparse(), CacheLayout::Latent);
}

#[test]
fn compressed_keys_answer_as_on_one_rank() {
    answers_are_those_of_one_rank(&models::compressed(), CacheLayout::Expanded);
}

#[test]
fn a_rank_has_its_share_of_the_weights() {
    let base = v2_lite();
    let moe = base.moe.clone().map(|moe| wels_model::config::MoeConfig { expert_intermediate: 96, experts: 16, ..moe });
    let config = ModelConfig { hidden_size: 128, vocab_size: 1000, dense_intermediate: 512, moe, ..base };
    let whole = models::loaded(&config, 5);
    for format in [BlockType::Q8_0, BlockType::Q4_0, BlockType::Bf16] {
        let all = over(1, 2 << 10, &whole, format, |_| ()).1[0];
        for world in [2, 4] {
            let most = all as f64 / world as f64 * 1.15;
            let ((), bytes) = over(world, 2 << 10, &whole, format, |_| ());
            assert!(bytes.iter().all(|bytes| *bytes as f64 <= most), "{}: {bytes:?} of {all}", format.name());
        }
    }
}

/// A rank that takes no part in more than some operations.
struct Mortal {
    comm: Threads,
    left: AtomicUsize,
}

impl Comm for Mortal {
    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn world(&self) -> usize {
        self.comm.world()
    }

    fn begin(&self, send: Vec<Vec<u8>>) -> Pending {
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        match left {
            Ok(_) => self.comm.begin(send),
            Err(_) => Pending::done(Err(Lost { rank: self.rank(), world: self.world() })),
        }
    }
}

#[test]
fn the_engine_ends_when_a_rank_is_lost() {
    let whole = models::loaded(&models::gqa(), 5);
    for operations in [0, 1, 2, 9, 10] {
        let rank = |comm: Threads| {
            let left = if comm.rank() == 1 { operations } else { usize::MAX };
            let (device, ranks): (_, Arc<Ranks>) = over_ranks(Arc::new(Mortal { comm, left: left.into() }), 0);
            let loaded = packed_on(&device, &whole, BlockType::Q8_0);
            if ranks.comm().rank() > 0 {
                let _ = ranks.follow();
                return;
            }
            let mut engine = Engine::new(loaded, models::options()).expect("options that make sense");
            engine.enqueue(Request::new(vec![1, 2, 3], 8)).expect("a sound request");
            for _ in 0..2 {
                let step = catch_unwind(AssertUnwindSafe(|| {
                    while !engine.is_idle() {
                        engine.step();
                    }
                }));
                let lost = step.expect_err("a lost rank").downcast::<Lost>().expect("that it is lost");
                assert_eq!((lost.world, ranks.lost()), (3, Some(*lost)));
            }
            ranks.end();
        };
        thread::scope(|scope| {
            for comm in threads(3) {
                scope.spawn(|| rank(comm));
            }
        });
    }
}
