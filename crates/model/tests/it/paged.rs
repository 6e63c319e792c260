//! Sequences in pages go on as if they had been computed whole.

use crate::shapes;
use std::ops::ControlFlow;
use wels_cpu::testing::{device, host, is_emulated};
use wels_device::host::random::Key;
use wels_device::{Coefficient, Precision, exact_cache};
use wels_model::config::ModelConfig;
use wels_model::generate::{Request, Sampling, generate};
use wels_model::model::{Losses, Model, Objective};
use wels_model::paged::{CacheDtype, CacheLayout, Chunk, PAGE_TOKENS, PagedCache};
use wels_model::params::Params;
use wels_model::tape::Execution;

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// A sequence under way, its pages, and the states of the main model at its positions.
#[derive(Clone, Default)]
struct Sequence {
    tokens: Vec<u32>,
    past: usize,
    pages: Vec<u32>,
}

/// Sequences that grow, shrink, fork and end at random in one cache, several of them in each step.
struct Play<'a> {
    name: String,
    model: &'a Model,
    params: &'a Params,
    execution: &'a Execution,
    cache: PagedCache,
    /// How many sequences use each page.
    users: Vec<usize>,
    sequences: Vec<Sequence>,
    key: Key,
    drawn: u64,
}

const CONTEXT: usize = 64;

impl<'a> Play<'a> {
    fn below(&mut self, n: usize) -> usize {
        self.drawn += 1;
        self.key.below_at(self.drawn, n as u64) as usize
    }

    /// A page that nobody uses: any of them, so that old contents lie about.
    fn page(&mut self) -> u32 {
        let free: Vec<usize> = (0..self.users.len()).filter(|page| self.users[*page] == 0).collect();
        let page = free[self.below(free.len())];
        self.users[page] = 1;
        page as u32
    }

    fn shrink(&mut self, s: usize, len: usize) {
        let sequence = &mut self.sequences[s];
        sequence.tokens.truncate(len);
        sequence.past = len;
        for page in sequence.pages.drain(len.div_ceil(PAGE_TOKENS)..) {
            self.users[page as usize] -= 1;
        }
        self.own_last_page(s);
    }

    /// A page that is to be written to and has other users is copied.
    fn own_last_page(&mut self, s: usize) {
        let Sequence { past, pages, .. } = &self.sequences[s];
        let Some(&last) = pages.last().filter(|last| past % PAGE_TOKENS != 0 && self.users[**last as usize] > 1) else {
            return;
        };
        let page = self.page();
        self.cache.copy_page(last, page);
        self.users[last as usize] -= 1;
        *self.sequences[s].pages.last_mut().unwrap() = page;
    }

    fn fork(&mut self, from: usize, to: usize) {
        self.shrink(to, 0);
        self.sequences[to] = self.sequences[from].clone();
        for page in &self.sequences[to].pages {
            self.users[*page as usize] += 1;
        }
        self.own_last_page(to);
    }

    fn play(&mut self, steps: usize, check: impl Fn(&str, &[u32], usize, &[f32])) {
        for _ in 0..steps {
            let s = self.below(self.sequences.len());
            match self.below(6) {
                0 => {
                    let len = self.below(self.sequences[s].past + 1);
                    self.shrink(s, len);
                }
                1 => {
                    let to = (s + 1) % self.sequences.len();
                    self.fork(s, to);
                }
                _ => self.step(&check),
            }
        }
    }

    fn step(&mut self, check: &impl Fn(&str, &[u32], usize, &[f32])) {
        let mut wanted = vec![];
        for s in 0..self.sequences.len() {
            let most = [1, 5, 40][self.below(3)];
            let new = self.below(most + 1).min(CONTEXT - self.sequences[s].past);
            let tokens: Vec<u32> = (0..new).map(|_| self.below(shapes::VOCABULARY) as u32).collect();
            self.sequences[s].tokens.extend(tokens);
            while self.sequences[s].pages.len() * PAGE_TOKENS < self.sequences[s].tokens.len() {
                let page = self.page();
                self.sequences[s].pages.push(page);
            }
            wanted.push(self.below(new + 1));
        }
        let some = |(sequence, _): &(&Sequence, &usize)| sequence.tokens.len() > sequence.past;
        let chunk = |(Sequence { tokens, past, pages }, logits): (&'_ Sequence, &usize)| {
            (tokens.clone(), *past, pages.clone(), *logits)
        };
        let chunks: Vec<_> = self.sequences.iter().zip(&wanted).filter(some).map(chunk).collect();
        let borrowed: Vec<Chunk> = chunks
            .iter()
            .map(|(tokens, past, pages, logits)| Chunk {
                tokens: &tokens[*past..],
                past: *past,
                pages,
                logits: *logits,
                states: *logits,
            })
            .collect();
        if borrowed.is_empty() {
            return;
        }
        let output = self.model.step(self.params, self.execution, &mut self.cache, &borrowed);
        assert_eq!(output.hidden.rows(), output.logits.rows());
        let all = host(&output.logits);
        let mut row = 0;
        for (tokens, _, _, logits) in &chunks {
            for i in tokens.len() - logits..tokens.len() {
                check(&self.name, &tokens[..=i], i, all.row(row));
                row += 1;
            }
        }
        assert_eq!(row, output.logits.rows());
        self.sequences.iter_mut().for_each(|sequence| sequence.past = sequence.tokens.len());
    }
}

fn play<'a>(
    name: &str,
    (model, params, execution): (&'a Model, &'a Params, &'a Execution),
    layout: CacheLayout,
    dtype: CacheDtype,
    seed: u64,
) -> Play<'a> {
    Play {
        name: format!("{name} {layout:?} {dtype:?} {:?}", execution.precision),
        model,
        params,
        execution,
        cache: PagedCache::new(&device(), model.config(), layout, dtype, 24),
        users: vec![0; 24],
        sequences: vec![Sequence::default(); 3],
        key: Key { seed, stream: 1 },
        drawn: 0,
    }
}

/// How many a history has: fewer on an emulated card, which takes some 20 times as long for each.
fn moves() -> usize {
    if is_emulated() { 5 } else { 40 }
}

#[test]
fn any_history_gives_the_bits_of_the_whole() {
    for precision in [Precision::F32, Precision::Bf16] {
        let execution = Execution { precision, ..Execution::new(device()) };
        let dtype = exact_cache(device().activations(precision));
        for (seed, (name, config)) in shapes::all().into_iter().enumerate() {
            let model = Model::new(config.clone(), CONTEXT);
            let params = Params::init(&device(), &config, 5);
            let parts = (&model, &params, &execution);
            play(name, parts, CacheLayout::Expanded, dtype, seed as u64).play(moves(), |name, tokens, i, logits| {
                let whole = host(&model.logits(&params, &execution, tokens, &[0, tokens.len() as u32]));
                assert_eq!(bits(logits), bits(whole.row(i)), "{name}: after {} tokens", tokens.len());
            });
        }
    }
}

/// With rounded numbers or latents the bits are not those of `Model::logits`, but as independent of the history, and
/// close.
#[test]
fn other_layouts_and_numbers_do_not_depend_on_the_history() {
    let execution = Execution::new(device());
    for (seed, (name, config)) in shapes::all().into_iter().enumerate() {
        let model = Model::new(config.clone(), CONTEXT);
        let mut params = Params::init(&device(), &config, 5);
        params.prepare_latent(&model);
        let parts = (&model, &params, &execution);
        for (layout, dtype, tolerance) in kinds(&config) {
            play(name, parts, layout, dtype, seed as u64).play(moves(), |name, tokens, i, logits| {
                let len = tokens.len();
                let pages: Vec<u32> = (0..len.div_ceil(PAGE_TOKENS) as u32).collect();
                let mut cache = PagedCache::new(&device(), model.config(), layout, dtype, pages.len());
                let chunk = Chunk { tokens, past: 0, pages: &pages, logits: 1, states: 0 };
                let alone = model.step(&params, &execution, &mut cache, &[chunk]).logits;
                assert_eq!(bits(logits), bits(&host(&alone)), "{name}: after {len} tokens");
                let whole = host(&model.logits(&params, &execution, tokens, &[0, len as u32]));
                let scale = whole.row(i).iter().fold(0f32, |scale, x| scale.max(x.abs()));
                let far = logits.iter().zip(whole.row(i)).position(|(a, b)| (a - b).abs() > tolerance * scale);
                assert!(far.is_none(), "{name}: {logits:?} and {:?}", whole.row(i));
            });
        }
    }
}

/// Layouts, numbers, and how far off their logits may be, in parts of the greatest.
///
/// Where an indexer chooses keys by rounded ones, it may choose others, and nothing can be said of the logits.
fn kinds(config: &ModelConfig) -> Vec<(CacheLayout, CacheDtype, f32)> {
    let close = if config.indexer.is_some() { f32::INFINITY } else { 5e-3 };
    let mut kinds = vec![(CacheLayout::Expanded, CacheDtype::F16, close)];
    if config.attention.is_mla() {
        kinds.extend([(CacheLayout::Latent, CacheDtype::F32, 1e-5), (CacheLayout::Latent, CacheDtype::F16, close)]);
    }
    kinds
}

/// Speculation as an engine does it: states and next tokens of the main model go to depth 1, whose logits are those
/// that training sees.
#[test]
fn drafts_have_the_bits_of_training() {
    for (name, config) in shapes::all().into_iter().filter(|(name, _)| name.starts_with("deepseek_v3")) {
        check_drafts(name, config);
    }
}

fn check_drafts(name: &str, config: ModelConfig) {
    let depths = config.mtp_depth;
    let execution = Execution::new(device());
    let model = Model::new(config.clone(), CONTEXT);
    let params = Params::init(&device(), &config, 5);
    let batch = shapes::batch(8, &[30]);
    let tokens = &batch.tokens;
    let expected = model.mtp_logits(&params, &execution, tokens, &[0, 30]);
    let expected: Vec<_> = expected.iter().map(host).collect();
    let mut cache = PagedCache::new(&device(), model.config(), CacheLayout::Expanded, CacheDtype::F32, 5);
    let pages = [4, 0];
    let mut past = 0;
    for new in [1, 17, 1, 1, 6] {
        let chunk = |tokens, logits| Chunk { tokens, past, pages: &pages, logits, states: logits };
        let step = model.step(&params, &execution, &mut cache, &[chunk(&tokens[past..past + new], new)]);
        let mut hidden = step.hidden;
        for depth in 1..=depths {
            let ahead = chunk(&tokens[past + depth..past + depth + new], new);
            let draft = model.draft(&params, &execution, &mut cache, depth, &[ahead], hidden);
            let rows = past * shapes::VOCABULARY..(past + new) * shapes::VOCABULARY;
            assert_eq!(
                bits(&host(&draft.logits)),
                bits(&expected[depth - 1][rows]),
                "{name}: depth {depth}, tokens {past}..+{new}"
            );
            hidden = draft.hidden;
        }
        past += new;
    }
}

#[test]
fn states_and_logits_are_wanted_apart() {
    let config = shapes::deepseek_v3();
    let execution = Execution::new(device());
    let model = Model::new(config.clone(), CONTEXT);
    let params = Params::init(&device(), &config, 5);
    let tokens = shapes::batch(8, &[12]).tokens;
    let width = config.hidden_size;
    let step = |logits: [usize; 2], states: [usize; 2]| {
        let mut cache = PagedCache::new(&device(), model.config(), CacheLayout::Expanded, CacheDtype::F32, 2);
        let chunk =
            |s: usize, tokens| Chunk { tokens, past: 0, pages: &[[0], [1]][s], logits: logits[s], states: states[s] };
        let output = model.step(&params, &execution, &mut cache, &[chunk(0, &tokens[..7]), chunk(1, &tokens[7..])]);
        (host(&output.logits), host(&output.hidden))
    };
    let all = step([7, 5], [7, 5]);
    let some = step([1, 0], [0, 3]);
    assert_eq!(bits(&some.0), bits(all.0.row(6)));
    assert_eq!(bits(&some.1), bits(&all.1[9 * width..]));
    let some = step([2, 1], [4, 0]);
    assert_eq!(bits(&some.0), bits(&[all.0.row(5), all.0.row(6), all.0.row(11)].concat()));
    assert_eq!(bits(&some.1), bits(&all.1[3 * width..7 * width]));
}

#[test]
fn a_sequence_does_not_depend_on_what_it_is_packed_with() {
    let batch = shapes::batch(12, &[13, 1, 9]);
    let execution = Execution::new(device());
    for (name, config) in shapes::all() {
        let model = Model::new(config.clone(), 64);
        let params = Params::init(&device(), &config, 5);
        let packed = host(&model.logits(&params, &execution, &batch.tokens, &batch.starts));
        for sequence in 0..3 {
            let alone = shapes::part(&batch, sequence, sequence + 1);
            let logits = host(&model.logits(&params, &execution, &alone.tokens, &alone.starts));
            let first = batch.starts[sequence] as usize * shapes::VOCABULARY;
            assert_eq!(bits(&logits), bits(&packed[first..first + logits.len()]), "{name}: sequence {sequence}");
        }
    }
}

#[test]
fn log_probabilities_are_those_of_training() {
    let batch = shapes::batch(10, &[13, 9]);
    let execution = Execution::new(device());
    for (name, config) in shapes::all() {
        let model = Model::new(config.clone(), 64);
        let params = Params::init(&device(), &config, 5);
        let objective = Objective {
            coefficient: Coefficient::Uniform(1.0),
            mtp_coefficient: 0.1,
            balance_coefficient: 0.1,
            indexer_coefficient: 0.0,
            teacher: None,
        };
        let mut grads = model.grads(&device());
        let trained = model.accumulate(&params, &mut grads, &execution, &batch, &objective, &mut Losses::default());
        assert_eq!(bits(&trained), bits(&model.logprobs(&params, &execution, &batch)), "{name}");
    }
}

#[test]
fn generated_text_is_what_the_whole_forward_pass_would_choose() {
    let execution = Execution::new(device());
    for (name, config) in shapes::all() {
        let model = Model::new(config.clone(), 16);
        let params = Params::init(&device(), &config, 5);
        for sampling in [Sampling::Greedy, Sampling::Random { temperature: 0.8, top_p: 0.9, seed: 3 }] {
            let request = Request { prompt: &[1, 2, 3], max_new_tokens: 40, stop: &[], sampling };
            let mut seen = vec![];
            let new = generate(&model, &params, &execution, request, |token| {
                seen.push(token);
                ControlFlow::Continue(())
            });
            assert_eq!((new.len(), &seen), (13, &new), "{name}: until the context is full");
            let text = [&[1, 2, 3], &new[..]].concat();
            let logits = host(&model.logits(&params, &execution, &text, &[0, text.len() as u32]));
            for (i, &token) in new.iter().enumerate() {
                assert_eq!(sampling.choose(logits.row(2 + i), 3 + i), token, "{name}: token {i}");
            }
            let request = Request { stop: &new[4..5], ..request };
            let stopped = generate(&model, &params, &execution, request, |_| ControlFlow::Continue(()));
            let end = new.iter().position(|token| *token == new[4]).expect("it is there") + 1;
            assert_eq!(stopped, new[..end], "{name}: stopped");
        }
    }
}
