//! What a request gets: the tokens and log-probabilities that the whole forward pass would give, and how it ends.

use crate::models;
use wels_cpu::testing::{device, host};
use wels_engine::{
    Engine, Event, FinishReason, Finished, LoadedModel, Options, Request, RequestError, RequestId, Sampler, Sampling,
    Scratch, Token,
};
use wels_model::model::Batch;
use wels_model::tape::Execution;

/// Steps until nothing is left; the tokens of each request, and how it ended.
pub fn finish(engine: &mut Engine) -> Vec<(Vec<Token>, Finished)> {
    let mut events = vec![];
    for _ in 0..10_000 {
        events.extend(engine.step());
        if engine.is_idle() {
            break;
        }
    }
    assert!(engine.is_idle(), "no end: {:?}", engine.status());
    let mut ends: Vec<Finished> = events
        .iter()
        .filter_map(|event| match event {
            Event::Finished(end) => Some(*end),
            Event::Token(_) | Event::Embedding { .. } => None,
        })
        .collect();
    ends.sort_by_key(|end| end.id);
    let tokens = |id: RequestId| {
        events.iter().filter_map(move |event| match event {
            Event::Token(token) if token.id == id => Some(token.clone()),
            _ => None,
        })
    };
    ends.into_iter().map(|end| (tokens(end.id).collect(), end)).collect()
}

pub fn engine(loaded: &LoadedModel, options: Options) -> Engine {
    Engine::new(loaded.clone(), options).expect("options that make sense")
}

pub fn answer(loaded: &LoadedModel, request: Request) -> (Vec<Token>, Finished) {
    let mut engine = engine(loaded, models::options());
    engine.enqueue(request).expect("a sound request");
    finish(&mut engine).remove(0)
}

#[test]
fn an_answer_is_what_the_whole_forward_pass_would_choose() {
    for (name, config) in models::all() {
        let loaded = models::loaded(&config, 5);
        for sampling in [
            Sampling::greedy(),
            Sampling { seed: 3, ..Sampling::default() },
            Sampling { temperature: 0.8, top_p: 0.9, top_k: 20, repetition_penalty: 1.3, ..Sampling::default() },
        ] {
            let prompt = vec![1, 2, 3, 4];
            let mut request = Request::new(prompt.clone(), 20);
            (request.sampling, request.logprobs) = (sampling.clone(), Some(2));
            let (tokens, end) = answer(&loaded, request);
            assert_eq!((end.reason, end.usage.generated), (FinishReason::Length, 20), "{name}");

            let mut text = prompt.clone();
            text.extend(tokens.iter().map(|token| token.token));
            let starts = [0, text.len() as u32];
            let logits = host(&loaded.model.logits(&loaded.params, &Execution::new(device()), &text, &starts));
            let mut sampler = Sampler::new(sampling, 0, &prompt);
            for (i, token) in tokens.iter().enumerate() {
                let at = prompt.len() + i;
                let choice = sampler.choose(logits.row(at - 1), at, None, Some(2), &mut Scratch::default());
                let choice = choice.expect("finite logits");
                sampler.push(choice.token);
                let (logprob, top) = choice.logprobs.expect("asked for");
                assert_eq!((token.token, token.logprob), (choice.token, Some(logprob)), "{name}: token {i}");
                assert_eq!(token.top_logprobs, top, "{name}: token {i}");
            }
        }
    }
}

/// What a policy gradient needs: the sampler's log-probabilities are the trainer's.
#[test]
fn log_probabilities_are_the_bits_of_the_trainer() {
    for (name, config) in models::all() {
        let loaded = models::loaded(&config, 6);
        let prompt = vec![9, 8, 7];
        let scored: Vec<u32> = (0..models::VOCABULARY as u32).rev().collect();
        let (tokens, _) = answer(&loaded, Request { logprobs: Some(0), scored, ..Request::new(prompt.clone(), 30) });
        let text: Vec<u32> = prompt.iter().copied().chain(tokens.iter().map(|token| token.token)).collect();
        let inputs = text.len() - 1;
        let batch =
            Batch { tokens: text[..inputs].to_vec(), targets: text[1..].to_vec(), starts: vec![0, inputs as u32] };
        let trained = loaded.model.logprobs(&loaded.params, &Execution::new(device()), &batch);
        let sampled: Vec<u32> = tokens.iter().map(|token| token.logprob.expect("asked for").to_bits()).collect();
        let trained: Vec<u32> = trained[prompt.len() - 1..].iter().map(|logprob| logprob.to_bits()).collect();
        assert_eq!(sampled, trained, "{name}");
        for token in &tokens {
            let of_token = token.scored[models::VOCABULARY - 1 - token.token as usize];
            assert_eq!(Some(of_token), token.logprob, "{name}");
            let whole: f32 = token.scored.iter().map(|logprob| logprob.exp()).sum();
            assert!((whole - 1.0).abs() < 1e-5, "{name}: {whole}");
        }
    }
}

#[test]
fn answers_end_at_stop_tokens_at_the_limit_and_at_the_context() {
    let loaded = models::loaded(&models::gqa(), 5);
    let (free, _) = answer(&loaded, Request::new(vec![1, 2, 3], 20));
    let stop = free[7].token;
    let first = free.iter().position(|token| token.token == stop).expect("it is there");
    let (tokens, end) = answer(&loaded, Request { stop_tokens: vec![stop], ..Request::new(vec![1, 2, 3], 20) });
    assert_eq!((tokens, end.reason), (free[..=first].to_vec(), FinishReason::Stop));

    let (tokens, end) = answer(&loaded, Request::new(vec![5; models::CONTEXT - 4], 20));
    assert_eq!((tokens.len(), end.reason), (4, FinishReason::Length));
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let loaded = models::loaded(&models::gqa(), 5);
    let mut engine = engine(&loaded, Options { max_waiting: 2, ..models::options() });
    let mut refusal = |change: &dyn Fn(&mut Request)| {
        let mut request = Request::new(vec![1, 2], 4);
        change(&mut request);
        engine.enqueue(request).expect_err("a refusal")
    };
    assert_eq!(refusal(&|r| r.prompt.clear()), RequestError::EmptyPrompt);
    let limit = models::CONTEXT - 1;
    assert_eq!(refusal(&|r| r.prompt = vec![1; limit + 1]), RequestError::PromptTooLong { tokens: limit + 1, limit });
    assert_eq!(refusal(&|r| r.prompt[1] = 61), RequestError::UnknownToken { token: 61, vocab_size: 61 });
    assert_eq!(refusal(&|r| r.scored = vec![0, 99]), RequestError::UnknownToken { token: 99, vocab_size: 61 });
    let mut named = |change: &dyn Fn(&mut Request)| match refusal(change) {
        RequestError::Parameter { name, .. } => name,
        other => panic!("{other:?}"),
    };
    assert_eq!(named(&|r| r.max_tokens = 0), "max_tokens");
    assert_eq!(named(&|r| r.sampling.temperature = -0.1), "temperature");
    assert_eq!(named(&|r| r.sampling.temperature = f32::NAN), "temperature");
    assert_eq!(named(&|r| r.sampling.top_p = 1.1), "top_p");
    assert_eq!(named(&|r| r.sampling.min_p = -1.0), "min_p");
    assert_eq!(named(&|r| r.sampling.repetition_penalty = 0.0), "repetition_penalty");
    assert_eq!(named(&|r| r.sampling.presence_penalty = f32::INFINITY), "presence_penalty");
    assert_eq!(named(&|r| r.sampling.frequency_penalty = f32::NAN), "frequency_penalty");
    assert_eq!(named(&|r| r.sampling.logit_bias = vec![(61, 1.0)]), "logit_bias");
    assert_eq!(named(&|r| r.sampling.logit_bias = vec![(1, f32::NAN)]), "logit_bias");
    assert_eq!(named(&|r| r.stop = vec!["".into()]), "stop");
    assert_eq!(named(&|r| r.stop = vec!["needs text".into()]), "stop");
    assert_eq!(named(&|r| r.logprobs = Some(21)), "top_logprobs");
    assert_eq!(named(&|r| r.scored = vec![0; 257]), "scored");

    for _ in 0..2 {
        engine.enqueue(Request::new(vec![1], 1)).expect("room for two");
    }
    assert_eq!(engine.enqueue(Request::new(vec![1], 1)), Err(RequestError::QueueFull { waiting: 2 }));
    finish(&mut engine);
    engine.enqueue(Request::new(vec![1], 1)).expect("room again");
}

#[test]
fn a_cancelled_request_ends_with_the_next_step_and_others_go_on() {
    let loaded = models::loaded(&models::gqa(), 5);
    let alone = answer(&loaded, Request::new(vec![4, 5], 12)).0;
    let mut engine = engine(&loaded, Options { max_running: 2, ..models::options() });
    let ids: Vec<RequestId> =
        [9, 4, 7].map(|first| engine.enqueue(Request::new(vec![first, 5], 12)).expect("a sound request")).into();
    engine.step();
    assert_eq!(engine.status().waiting, [ids[2]]);
    assert!(engine.cancel(ids[0]) && engine.cancel(ids[2]) && !engine.cancel(ids[2]));
    let ended = finish(&mut engine);
    let reasons: Vec<_> = ended.iter().map(|(_, end)| (end.id, end.reason)).collect();
    let (cancelled, length) = (FinishReason::Cancelled, FinishReason::Length);
    assert_eq!(reasons, [(ids[0], cancelled), (ids[1], length), (ids[2], cancelled)]);
    let tokens = |tokens: &[Token]| tokens.iter().map(|token| token.token).collect::<Vec<_>>();
    assert_eq!(tokens(&ended[1].0), tokens(&alone)[1..], "after the first step");
}
