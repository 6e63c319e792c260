//! A model on two devices answers as it does on one.

use std::sync::Arc;

use crate::answers::finish;
use crate::models;
use wels_cpu::naive::Naive;
use wels_cpu::testing::{device, is_emulated};
use wels_device::{Device, Precision};
use wels_engine::{Engine, LoadedModel, Numbers, Options, Request, Sampling, Speculation};
use wels_model::paged::{CacheDtype, CacheLayout, PagedCache};
use wels_model::params::Params;
use wels_model::placement::{Elsewhere, Placement};

/// The same weights, divided between the device of the tests and another.
fn divided(whole: &LoadedModel, elsewhere: Elsewhere) -> LoadedModel {
    let other: Arc<dyn Device> = if device().name() == "cpu" { Naive::new() } else { wels_cpu::device() };
    let config = whole.model.config();
    let mut params = Params::unset(Placement::split(&device(), &other, elsewhere), config);
    for (param, tensor) in whole.params.tensors().iter().enumerate() {
        params.set_values(param, &tensor.to_host());
    }
    params.prepare_latent(&whole.model);
    LoadedModel { params: params.into(), ..whole.clone() }
}

/// Tokens, and the bits of their log-probabilities.
pub type Answer = Vec<(u32, Option<u32>)>;

/// What some requests are answered, which share beginnings, in room for less than all of them; and how many tokens were
/// drafted, and how many found in the cache.
pub fn answers(loaded: &LoadedModel, options: &Options) -> (Vec<Answer>, u64, u64) {
    let mut engine = Engine::new(loaded.clone(), options.clone()).expect("options that make sense");
    let mut all = Vec::new();
    for round in 0..2 {
        for i in 0..3 {
            let prompt = [1, 2, 3, 4, 5, 6].repeat(6).into_iter().chain([7 + i]).collect();
            let sampling = match i {
                0 => Sampling { seed: round, ..Sampling::default() },
                _ => Sampling::greedy(),
            };
            let request = Request { sampling, logprobs: Some(1), ..Request::new(prompt, 24) };
            engine.enqueue(request).expect("a sound request");
        }
        for (tokens, _) in finish(&mut engine) {
            all.push(tokens.iter().map(|token| (token.token, token.logprob.map(f32::to_bits))).collect());
        }
    }
    let counters = engine.status().counters;
    (all, counters.drafted_tokens, counters.cached_tokens)
}

fn every_division_answers_alike(whole: &LoadedModel, layout: CacheLayout) {
    let config = whole.model.config();
    let page = PagedCache::bytes_per_page(config, layout, CacheDtype::F32);
    let options = Options { layout, cache_bytes: 9 * page, max_batch_tokens: 23, ..models::options() };
    let alone = Options { speculation: Speculation::Off, prefix_cache: false, ..options.clone() };
    let (expected, ..) = answers(whole, &alone);
    let with_experts = config.moe.as_ref().map_or(0, |_| config.layers + config.mtp_depth);
    let step = if is_emulated() { 2 } else { 1 };
    for layers in 0..=config.layers {
        for experts in (layers % step..=with_experts).step_by(step) {
            let loaded = divided(whole, Elsewhere { layers, experts });
            let (got, drafted, cached) = answers(&loaded, &options);
            assert_eq!(got, expected, "{layers} layers, experts of {experts}");
            assert!(drafted > 0 && cached > 0, "{drafted} tokens were drafted, {cached} found in the cache");
        }
    }
}

#[test]
fn every_division_answers_alike_with_grouped_queries() {
    every_division_answers_alike(&models::loaded(&models::gqa(), 5), CacheLayout::Expanded);
}

#[test]
fn every_division_answers_alike_with_latents_experts_and_mtp() {
    let mut whole = models::loaded(&models::deepseek(), 5);
    every_division_answers_alike(&whole, CacheLayout::Expanded);
    let mut params = (*whole.params).clone();
    params.prepare_latent(&whole.model);
    whole.params = params.into();
    every_division_answers_alike(&whole, CacheLayout::Latent);
}

/// As with a card in 16 bits: the other device's keys and values are in a format of its own.
#[test]
fn each_device_has_its_own_numbers() {
    let whole = models::loaded(&models::gqa(), 5);
    let answers_with = |layers, main, other| {
        let numbers = Numbers { precision: Precision::F32, cache_dtype: other };
        let options = Options { cache_dtype: main, other: Some(numbers), ..models::options() };
        answers(&divided(&whole, Elsewhere { layers, experts: 0 }), &options).0
    };
    let (f32, f16) = (CacheDtype::F32, CacheDtype::F16);
    assert_eq!(answers_with(2, f16, f32), answers_with(0, f32, f32), "all layers are on the other device");
    assert_eq!(answers_with(2, f32, f16), answers_with(0, f16, f16));
    assert_ne!(answers_with(1, f32, f16), answers_with(0, f32, f32));
    assert_ne!(answers_with(1, f32, f16), answers_with(0, f16, f16));
}
