//! A cached sequence goes on as if it had been computed whole.

use crate::shapes;
use std::ops::ControlFlow;
use wels_kernels::gemm::Precision;
use wels_model::cache::KvCache;
use wels_model::generate::{Request, Sampling, generate};
use wels_model::model::{Batch, Losses, Model, Objective};
use wels_model::params::Params;
use wels_model::tape::Execution;

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn any_chunking_gives_the_bits_of_the_whole() {
    let batch = shapes::batch(8, &[13, 9]);
    for precision in [Precision::F32, Precision::Bf16] {
        assert_any_chunking(&batch, &Execution { precision, ..Execution::default() });
    }
}

fn assert_any_chunking(batch: &Batch, execution: &Execution) {
    for (name, config) in shapes::all() {
        let model = Model::new(config.clone(), 64);
        let params = Params::init(&config, 5);
        let whole = model.logits(&params, execution, &batch.tokens, &batch.starts);
        for chunks in [vec![(13, 9)], vec![(1, 1); 9], vec![(4, 1), (7, 2), (2, 6)]] {
            let mut caches = [KvCache::new(&config), KvCache::new(&config)];
            let mut done = (0, 0);
            for (a, b) in chunks {
                let mut tokens = batch.tokens[done.0..done.0 + a].to_vec();
                tokens.extend_from_slice(&batch.tokens[13 + done.1..13 + done.1 + b]);
                let logits = model.extend(&params, execution, &mut caches, &tokens, &[0, a as u32, (a + b) as u32]);
                done = (done.0 + a, done.1 + b);
                assert_eq!(bits(logits.row(0)), bits(whole.row(done.0 - 1)), "{name}: after {} tokens", done.0);
                assert_eq!(bits(logits.row(1)), bits(whole.row(13 + done.1 - 1)), "{name}: after {} tokens", done.1);
            }
            assert_eq!((caches[0].len(), caches[1].len()), done);
        }
    }
}

#[test]
fn a_sequence_does_not_depend_on_what_it_is_packed_with() {
    let batch = shapes::batch(12, &[13, 1, 9]);
    let execution = Execution::default();
    for (name, config) in shapes::all() {
        let model = Model::new(config.clone(), 64);
        let params = Params::init(&config, 5);
        let packed = model.logits(&params, &execution, &batch.tokens, &batch.starts);
        for sequence in 0..3 {
            let alone = shapes::part(&batch, sequence, sequence + 1);
            let logits = model.logits(&params, &execution, &alone.tokens, &alone.starts);
            let first = batch.starts[sequence] as usize * shapes::VOCABULARY;
            assert_eq!(bits(&logits), bits(&packed[first..first + logits.len()]), "{name}: sequence {sequence}");
        }
    }
}

#[test]
fn a_truncated_cache_goes_on_from_there() {
    let batch = shapes::batch(9, &[10]);
    let execution = Execution::default();
    for (name, config) in shapes::all() {
        let model = Model::new(config.clone(), 64);
        let params = Params::init(&config, 5);
        let mut cache = [KvCache::new(&config)];
        model.extend(&params, &execution, &mut cache, &batch.tokens, &[0, 10]);
        cache[0].truncate(4);
        let logits = model.extend(&params, &execution, &mut cache, &batch.tokens[4..7], &[0, 3]);
        let whole = model.logits(&params, &execution, &batch.tokens[..7], &[0, 7]);
        assert_eq!(bits(logits.row(0)), bits(whole.row(6)), "{name}");
        let per_token = KvCache::bytes_per_token(&config);
        assert_eq!(cache[0].bytes(), 7 * per_token, "{name}: bytes");
    }
}

#[test]
fn log_probabilities_are_those_of_training() {
    let batch = shapes::batch(10, &[13, 9]);
    let execution = Execution::default();
    for (name, config) in shapes::all() {
        let model = Model::new(config.clone(), 64);
        let params = Params::init(&config, 5);
        let objective = Objective { coefficient: &|_, _| 1.0, mtp_coefficient: 0.1, balance_coefficient: 0.1 };
        let mut grads = model.grads();
        let trained = model.accumulate(&params, &mut grads, &execution, &batch, &objective, &mut Losses::default());
        assert_eq!(bits(&trained), bits(&model.logprobs(&params, &execution, &batch)), "{name}");
    }
}

#[test]
fn generated_text_is_what_the_whole_forward_pass_would_choose() {
    let execution = Execution::default();
    for (name, config) in shapes::all() {
        let model = Model::new(config.clone(), 16);
        let params = Params::init(&config, 5);
        for sampling in [Sampling::Greedy, Sampling::Random { temperature: 0.8, top_p: 0.9, seed: 3 }] {
            let request = Request { prompt: &[1, 2, 3], max_new_tokens: 40, stop: &[], sampling };
            let mut seen = vec![];
            let new = generate(&model, &params, &execution, request, |token| {
                seen.push(token);
                ControlFlow::Continue(())
            });
            assert_eq!((new.len(), &seen), (13, &new), "{name}: until the context is full");
            let text = [&[1, 2, 3], &new[..]].concat();
            let logits = model.logits(&params, &execution, &text, &[0, text.len() as u32]);
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
