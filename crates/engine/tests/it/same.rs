//! An answer is a function of model, prompt, seed and settings: not of who else is there, of chunks, of what the cache
//! held, of its size, of drafts, of threads.

use crate::answers::{answer, engine, finish};
use crate::models;
use wels_cpu::testing::is_emulated;
use wels_device::host::random::Key;
use wels_engine::{Engine, LoadedModel, Options, Request, RequestId, Sampling, Speculation, Token};
use wels_kernels::par;
use wels_model::paged::{CacheDtype, CacheLayout};

/// Random numbers one after the other, for what a test does.
struct Dice {
    key: Key,
    thrown: u64,
}

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.thrown += 1;
        self.key.below_at(self.thrown, bound as u64) as usize
    }

    fn tokens(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(models::VOCABULARY) as u32).collect()
    }

    /// Some request, its prompt often a beginning that others share.
    fn request(&mut self, shared: &[u32]) -> Request {
        let mut prompt = shared[..self.below(shared.len())].to_vec();
        let own = 1 + self.below(8);
        prompt.extend(self.tokens(own));
        let mut request = Request::new(prompt, 1 + self.below(24));
        request.sampling = self.sampling();
        request.priority = self.below(3) as i32;
        request.owner = self.below(3) as u64;
        request.choice = self.below(2) as u32;
        request
    }

    fn sampling(&mut self) -> Sampling {
        let mut sampling = Sampling { seed: self.below(1000) as u64, ..Sampling::default() };
        match self.below(4) {
            0 => sampling.temperature = 0.0,
            1 => (sampling.top_p, sampling.top_k) = (0.9, 30),
            2 => (sampling.frequency_penalty, sampling.repetition_penalty, sampling.min_p) = (0.3, 1.1, 0.05),
            _ => {}
        }
        sampling
    }

    fn options(&mut self, loaded: &LoadedModel, whole: &Options) -> Options {
        let whole = whole.clone();
        let page =
            wels_model::paged::PagedCache::bytes_per_page(loaded.model.config(), whole.layout, whole.cache_dtype);
        // From one sequence of full length, which forces the others out, to room for all.
        let pages = models::CONTEXT / 16 + [0, 2, 8, 60][self.below(4)];
        Options {
            max_batch_tokens: [16, 23, 64, 512][self.below(4)],
            max_running: 1 + self.below(16),
            cache_bytes: pages * page,
            prefix_cache: self.below(3) > 0,
            speculation: [Speculation::Off, Speculation::Auto { max_draft: 1 }, Speculation::Auto { max_draft: 5 }]
                [self.below(3)],
            ..whole
        }
    }
}

/// Runs `wanted` among others that come and go; its tokens.
fn among_others(engine: &mut Engine, dice: &mut Dice, shared: &[u32], wanted: &Request) -> Vec<Token> {
    // What earlier requests leave in the cache.
    for _ in 0..dice.below(4) {
        engine.enqueue(dice.request(shared)).expect("a sound request");
        if dice.below(2) == 0 {
            finish(engine);
        }
    }
    let others = dice.below(16);
    let before = dice.below(others + 1);
    let mut ids: Vec<RequestId> = vec![];
    let mut id = None;
    for other in 0..=others {
        if other == before {
            id = Some(engine.enqueue(wanted.clone()).expect("a sound request"));
            continue;
        }
        ids.push(engine.enqueue(dice.request(shared)).expect("a sound request"));
    }
    let mut events = vec![];
    for _ in 0..dice.below(6) {
        events.extend(engine.step());
        if dice.below(3) == 0 && !ids.is_empty() {
            engine.cancel(ids.swap_remove(dice.below(ids.len())));
        }
    }
    let mut tokens: Vec<Token> = events
        .into_iter()
        .filter_map(|event| match event {
            wels_engine::Event::Token(token) if Some(token.id) == id => Some(token),
            _ => None,
        })
        .collect();
    for (rest, end) in finish(engine) {
        if Some(end.id) == id {
            assert_eq!(tokens.len() + rest.len(), end.usage.generated);
            tokens.extend(rest);
        }
    }
    tokens
}

fn one_answer_in_64_settings(name: &str, loaded: &LoadedModel, whole: &Options) {
    let mut dice = Dice { key: Key { seed: 11, stream: name.len() as u64 }, thrown: 0 };
    let shared = dice.tokens(50);
    let (mut preempted, mut accepted, mut cached) = (0, 0, 0);
    // An emulated card takes some 20 times as long for each.
    let rounds = if is_emulated() { 4 } else { 16 };
    for kind in 0..4 {
        let mut wanted = dice.request(&shared);
        wanted.prompt = [&shared[..40], &wanted.prompt[..]].concat();
        wanted.prompt.truncate(70);
        wanted.max_tokens = 20;
        wanted.logprobs = Some(2);
        if kind == 0 {
            wanted.sampling = Sampling::greedy();
        }
        let alone = Options { prefix_cache: false, speculation: Speculation::Off, ..whole.clone() };
        let mut by_itself = engine(loaded, alone);
        by_itself.enqueue(wanted.clone()).expect("a sound request");
        let (expected, _) = finish(&mut by_itself).remove(0);
        let strip = |tokens: &[Token]| {
            let bits = |t: &Token| (t.token, t.logprob.map(f32::to_bits), t.top_logprobs.clone());
            tokens.iter().map(bits).collect::<Vec<_>>()
        };
        for round in 0..rounds {
            let mut engine = engine(loaded, dice.options(loaded, whole));
            let threads = 1 + dice.below(2);
            let got = par::with_threads(threads, || among_others(&mut engine, &mut dice, &shared, &wanted));
            assert_eq!(strip(&got), strip(&expected), "{name}: kind {kind}, round {round}");
            let status = engine.status();
            assert_eq!(status.pages_free + status.pages_cached, status.pages, "{name}: pages are lost");
            preempted += status.counters.preemptions;
            accepted += status.counters.accepted_tokens;
            cached += status.counters.cached_tokens;
        }
    }
    // Without MTP a model at random seldom says what stands in the prompt.
    let drafts = accepted > 0 || loaded.model.config().attention.is_compressed();
    assert!(preempted > 0 && drafts && cached > 0, "{name}: {preempted}, {accepted}, {cached}: not all was tried");
}

#[test]
fn one_answer_in_64_settings_with_grouped_queries() {
    one_answer_in_64_settings("gqa", &models::loaded(&models::gqa(), 5), &models::options());
}

#[test]
fn one_answer_in_64_settings_with_latents_experts_and_mtp() {
    one_answer_in_64_settings("deepseek", &models::loaded(&models::deepseek(), 5), &models::options());
}

#[test]
fn one_answer_in_64_settings_with_a_cache_of_half_width() {
    let whole = Options { cache_dtype: CacheDtype::F16, ..models::options() };
    one_answer_in_64_settings("gqa, f16", &models::loaded(&models::gqa(), 5), &whole);
}

#[test]
fn one_answer_in_64_settings_with_a_cache_of_latents() {
    let mut loaded = models::loaded(&models::deepseek(), 5);
    let mut params = (*loaded.params).clone();
    params.prepare_latent(&loaded.model);
    loaded.params = params.into();
    let whole = Options { layout: CacheLayout::Latent, cache_dtype: CacheDtype::F16, ..models::options() };
    one_answer_in_64_settings("deepseek, latent", &loaded, &whole);
}

/// Expanded keys and values, and latents of half width.
#[test]
fn one_answer_in_64_settings_with_chosen_keys() {
    for (name, config) in models::all().into_iter().filter(|(_, config)| config.indexer.is_some()) {
        let mut loaded = models::loaded(&config, 5);
        one_answer_in_64_settings(name, &loaded, &Options::default());
        if !config.attention.is_mla() {
            continue;
        }
        let mut params = (*loaded.params).clone();
        params.prepare_latent(&loaded.model);
        loaded.params = params.into();
        let whole = Options { layout: CacheLayout::Latent, cache_dtype: CacheDtype::F16, ..Options::default() };
        one_answer_in_64_settings(&format!("{name}, latent"), &loaded, &whole);
    }
}

/// A model that repeats itself: drafts are accepted, and fewer passes give the same answer.
#[test]
fn accepted_drafts_save_passes() {
    let loaded = models::loaded(&models::gqa(), 5);
    let request = Request { sampling: Sampling::greedy(), ..Request::new([1, 2, 3, 4, 5].repeat(4), 60) };
    let passes = |speculation| {
        let mut engine = engine(&loaded, Options { speculation, ..models::options() });
        engine.enqueue(request.clone()).expect("a sound request");
        let (tokens, end) = finish(&mut engine).remove(0);
        (tokens, end.usage, engine.status().counters)
    };
    let (plain, _, without) = passes(Speculation::Off);
    let (drafted, usage, with) = passes(Speculation::Auto { max_draft: 5 });
    assert_eq!(plain, drafted);
    assert_eq!((usage.drafted as u64, usage.accepted as u64), (with.drafted_tokens, with.accepted_tokens));
    assert_eq!(without.steps, 60, "one for the prompt, which gives the first token");
    assert_eq!(with.steps, 60 - with.accepted_tokens, "each accepted token saves a pass");
    assert!(with.accepted_tokens > 10, "{with:?}");
}

#[test]
fn new_weights_are_used_from_the_next_token_on() {
    let (old, new) = (models::loaded(&models::deepseek(), 5), models::loaded(&models::deepseek(), 6));
    let request = Request { sampling: Sampling::greedy(), ..Request::new((0..40).collect(), 12) };
    let mut engine = engine(&old, models::options());
    engine.enqueue(request.clone()).expect("a sound request");
    let first = engine.step();
    engine.set_params(new.params.clone());
    let rest: Vec<u32> = finish(&mut engine)[0].0.iter().map(|token| token.token).collect();
    let mut tokens: Vec<u32> = first
        .iter()
        .filter_map(|event| match event {
            wels_engine::Event::Token(token) => Some(token.token),
            _ => None,
        })
        .collect();
    let so_far = [&request.prompt[..], &tokens[..]].concat();
    let (expected, _) = answer(&new, Request { prompt: so_far, max_tokens: rest.len(), ..request.clone() });
    assert_eq!(rest, expected.iter().map(|token| token.token).collect::<Vec<_>>());

    // What the cache holds is the new model's.
    engine.enqueue(request.clone()).expect("a sound request");
    tokens = finish(&mut engine)[0].0.iter().map(|token| token.token).collect();
    assert_eq!(tokens, answer(&new, request).0.iter().map(|token| token.token).collect::<Vec<_>>());
}
