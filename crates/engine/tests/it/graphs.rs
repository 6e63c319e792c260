//! On an emulated card: steps whose kernels go as graphs answer as those whose kernels go one by one, while answers
//! begin and end, pages are added and taken away, prompts are found in the cache, and drafts are accepted.

use crate::answers::{engine, finish};
use crate::models;
use wels_cpu::testing::emulator_and_driver;
use wels_device::Precision;
use wels_engine::{Options, Request, Sampling, Speculation, Token};
use wels_model::config::ModelConfig;
use wels_model::paged::{CacheDtype, PagedCache};

/// All answers' tokens with the bits of their log-probabilities.
type Answers = Vec<Vec<(u32, Option<u32>)>>;

fn answers(loaded: &wels_engine::LoadedModel, precision: Precision, cache_dtype: CacheDtype) -> Answers {
    let page = PagedCache::bytes_per_page(loaded.model.config(), models::options().layout, cache_dtype);
    // Room for one of full length and a bit.
    let cache_bytes = (models::CONTEXT / 16 + 1) * page;
    let options = Options { precision, cache_dtype, cache_bytes, max_batch_tokens: 40, ..models::options() };
    let mut engine = engine(loaded, options);
    let mut answers = Answers::new();
    for round in 0..2 {
        for number in 0..6u32 {
            let mut prompt = [1, 2, 3, 4, 5].repeat(5);
            prompt.extend([number, 7 * number + round]);
            let sampling = match number % 2 {
                0 => Sampling::greedy(),
                _ => Sampling { seed: number.into(), ..Sampling::default() },
            };
            let request = Request { sampling, logprobs: Some(0), ..Request::new(prompt, 8 + 6 * number as usize) };
            engine.enqueue(request).expect("a sound request");
            engine.step();
        }
        let bits = |token: &Token| (token.token, token.logprob.map(f32::to_bits));
        answers.extend(finish(&mut engine).iter().map(|(tokens, _)| tokens.iter().map(bits).collect()));
    }
    let counters = engine.status().counters;
    let tried = [counters.preemptions, counters.accepted_tokens, counters.cached_tokens];
    assert!(tried.iter().all(|count| *count > 0), "{tried:?}: not all was tried");
    answers
}

/// Cards do not have attention to chosen keys.
fn on_cards() -> Vec<(&'static str, ModelConfig)> {
    models::all().into_iter().filter(|(_, config)| config.indexer.is_none()).collect()
}

#[test]
fn graphs_change_no_bit() {
    // Each model in one of the two: neither's kernels know the other's.
    let numbers = [(Precision::F32, CacheDtype::F32), (Precision::Bf16, CacheDtype::Bf16)];
    for ((name, config), (precision, cache)) in on_cards().into_iter().zip(numbers) {
        let Some((device, driver)) = emulator_and_driver(3) else { return };
        let loaded = models::loaded_on(&device, &config, 5);
        let got = answers(&loaded, precision, cache);
        let with = driver.counts();
        assert!(with.nodes > 2 * with.alone, "{name}, {precision:?}: {with:?}");
        driver.set_graphs(false);
        assert_eq!(got, answers(&loaded, precision, cache), "{name}, {precision:?}");
        let without = driver.counts();
        assert_eq!((without.nodes, without.built), (with.nodes, with.built), "{name}, {precision:?}");
    }
}

/// What a graph is for: of steps of the same answers that begin no page it has all arguments already.
#[test]
fn steps_of_the_same_answers_change_no_node() {
    for (name, config) in on_cards() {
        let Some((device, driver)) = emulator_and_driver(4) else { return };
        let loaded = models::loaded_on(&device, &config, 5);
        let options = Options {
            precision: Precision::Bf16,
            cache_dtype: CacheDtype::Bf16,
            speculation: Speculation::Off,
            ..models::options()
        };
        let mut engine = engine(&loaded, options);
        for number in 0..4 {
            let request = Request { sampling: Sampling::greedy(), ..Request::new(vec![number; 33], 14) };
            engine.enqueue(request).expect("a sound request");
        }
        // The first steps take memory, see segments for the first time, and make graphs.
        for _ in 0..5 {
            engine.step();
        }
        let before = driver.counts();
        for _ in 0..6 {
            engine.step();
        }
        let after = driver.counts();
        let (nodes, set, alone) = (after.nodes - before.nodes, after.set - before.set, after.alone - before.alone);
        assert_eq!(after.built, before.built, "{name}");
        assert!(set == 0 && 20 * alone < nodes, "{name}: {nodes} nodes, {set} changed, {alone} launched one by one");
    }
}
