//! Thinking that is told apart by tokens, and embeddings: what neither is to depend on.

use crate::answers::{answer, engine, finish};
use crate::models;
use wels_engine::{
    Constraint, Engine, Event, FinishReason, LoadedModel, Options, Pooling, Request, Sampling, Thinking,
};
use wels_model::tape::Execution;

const BEGIN: u32 = 40;
const END: u32 = 41;

fn thinking(begun: bool, budget: Option<usize>) -> Option<Thinking> {
    Some(Thinking { begin: Some(BEGIN), end: END, begun, budget })
}

#[test]
fn a_budget_ends_the_thinking_and_changes_nothing_before() {
    for (name, config) in models::all() {
        let loaded = models::loaded(&config, 5);
        let request = |thinking| {
            let sampling = Sampling { seed: 3, logit_bias: vec![(END, -100.0)], ..Sampling::default() };
            Request { sampling, thinking, ..Request::new(vec![1, 2, 3, 4], 20) }
        };
        let tokens =
            |thinking| -> Vec<u32> { answer(&loaded, request(thinking)).0.iter().map(|token| token.token).collect() };
        let free = tokens(None);
        for budget in [0, 1, 7] {
            let kept = tokens(thinking(true, Some(budget)));
            assert_eq!((&kept[..budget], kept[budget]), (&free[..budget], END), "{name}, {budget}");
            assert!(!kept[budget + 1..].contains(&END) && kept.len() == 20, "{name}, {budget}");
        }
        assert_eq!(tokens(thinking(true, None)), free, "without a budget it is followed alone");
        // An answer that does not begin with the thinking's token has none to end.
        assert_eq!(tokens(thinking(false, Some(2))), free, "{name}");
    }
}

#[test]
fn a_constraint_waits_for_the_end_of_the_thinking() {
    let loaded = models::with_text(5);
    let tokenizer = loaded.tokenizer.clone().unwrap();
    let (begin, end) = (tokenizer.special().think_begin.unwrap(), tokenizer.special().think_end.unwrap());
    let text = |begun, budget, seed| -> (String, FinishReason) {
        let thinking = Some(Thinking { begin: Some(begin), end, begun, budget });
        let constraint = Some(Constraint::Regex("(yes|no)!".into()));
        let sampling = Sampling { seed, ..Sampling::default() };
        let request = Request { sampling, thinking, constraint, ..Request::new(vec![70, 71, 72], 40) };
        let (tokens, finished) = answer(&loaded, request);
        (tokens.iter().map(|token| &token.text[..]).collect(), finished.reason)
    };
    for seed in 0..6 {
        let (whole, reason) = text(true, Some(5), seed);
        let (thought, answered) = whole.split_once("</think>").expect("the budget's end");
        assert!(!thought.is_empty() && ["yes!", "no!"].contains(&answered), "{whole:?}");
        assert_eq!(reason, FinishReason::Constraint);
        // Which of the two it begins with is the model's choice.
        let (whole, _) = text(false, Some(3), seed);
        let answered = whole.strip_prefix("<think>").map_or(&whole[..], |rest| rest.split_once("</think>").unwrap().1);
        assert!(["yes!", "no!"].contains(&answered), "{whole:?}");
    }
}

fn embed(engine: &mut Engine, prompt: &[u32], pooling: Pooling) -> Vec<f32> {
    let request = Request { embedding: Some(pooling), ..Request::new(prompt.to_vec(), 1) };
    engine.enqueue(request).unwrap();
    let mut found = Vec::new();
    while !engine.is_idle() {
        for event in engine.step() {
            if let Event::Embedding { values, .. } = event {
                found.push(values);
            }
        }
    }
    assert_eq!(found.len(), 1);
    found.remove(0)
}

/// The mean of the states that a whole pass gives, and the last one.
fn expected(loaded: &LoadedModel, prompt: &[u32]) -> [Vec<f32>; 2] {
    let execution = Execution::new(loaded.params.device().clone());
    let states = loaded.model.states(&loaded.params, &execution, prompt, &[0, prompt.len() as u32]).to_host().to_vec();
    let width = states.len() / prompt.len();
    let mut mean = vec![0.0f32; width];
    for row in states.chunks(width) {
        mean.iter_mut().zip(row).for_each(|(sum, state)| *sum += state);
    }
    mean.iter_mut().for_each(|sum| *sum /= prompt.len() as f32);
    [mean, states[states.len() - width..].to_vec()]
}

#[test]
fn an_embedding_is_that_of_a_whole_pass_whatever_the_engine_does() {
    for (name, config) in models::all() {
        let loaded = models::loaded(&config, 5);
        let prompt: Vec<u32> = (0..70).map(|at| (at * 7 + 3) % 50).collect();
        let [mean, last] = expected(&loaded, &prompt);
        for max_batch_tokens in [16, 33, 512] {
            let mut engine = engine(&loaded, Options { max_batch_tokens, ..models::options() });
            assert_eq!(embed(&mut engine, &prompt, Pooling::Mean), mean, "{name}, {max_batch_tokens}");
            assert_eq!(embed(&mut engine, &prompt, Pooling::Last), last, "{name}, behind a cached prefix");
            // Beside an answer.
            engine.enqueue(Request::new(prompt[..40].to_vec(), 20)).unwrap();
            engine.step();
            assert_eq!(embed(&mut engine, &prompt, Pooling::Mean), mean, "{name}, beside others");
            finish(&mut engine);
        }
    }
}
