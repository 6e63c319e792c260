//! Pictures in prompts and pictures drawn: what is answered and drawn depends on the request alone.

use std::sync::Arc;

use wels_engine::{
    Draw, Engine, Event, FinishReason, Finished, LoadedModel, Options, Picture, Request, RequestError, RequestId,
    Sampling, without_words,
};
use wels_kernels::par;
use wels_kernels::random::{Key, fill_normal};
use wels_kernels::sample;
use wels_model::janus::Janus;
use wels_model::tape::Execution;

use crate::models;

#[path = "../../../model/tests/janus/tiny.rs"]
mod tiny;

const VOCABULARY: usize = 60;
const PLACE: u32 = 59;
const CONTEXT: usize = 160;

fn janus() -> Arc<Janus> {
    let folder = tempfile::tempdir().expect("a folder");
    tiny::write(folder.path(), VOCABULARY, PLACE, CONTEXT);
    let (janus, notes) = Janus::open(folder.path(), &wels_cpu::device(), CONTEXT).expect("a model");
    assert!(notes.is_empty(), "{notes:?}");
    Arc::new(janus)
}

fn engine(janus: &Arc<Janus>, options: Options) -> Engine {
    Engine::new(LoadedModel::from(Arc::clone(janus)), options).expect("an engine")
}

fn pixels(seed: u64) -> Vec<f32> {
    let mut pixels = vec![0.0; 3 * tiny::SIDE * tiny::SIDE];
    fill_normal(&mut pixels, 0.5, Key { seed, stream: 1 }, 0);
    pixels
}

fn words(seed: u32, count: u32) -> Vec<u32> {
    (0..count).map(|i| (i * 7 + seed * 11) % PLACE).collect()
}

/// Words, a picture, words, and so on.
fn prompt(pictures: &[u64], seed: u32, between: u32) -> Request {
    let mut tokens = words(seed, between);
    let mut seen = Vec::new();
    for picture in pictures {
        seen.push(Picture::new(tokens.len(), pixels(*picture)));
        tokens.extend([PLACE; tiny::CODES]);
        tokens.extend(words(seed + 1, between));
    }
    Request { pictures: seen, logprobs: Some(2), ..Request::new(tokens, 12) }
}

/// An answer's tokens with their log-probabilities, and how it ended.
type Answer = (Vec<(u32, Option<f32>)>, Finished);

/// The answer of each request.
fn run(engine: &mut Engine, ids: &[RequestId]) -> Vec<Answer> {
    let mut answers = vec![(Vec::new(), None); ids.len()];
    while !engine.is_idle() {
        for event in engine.step() {
            let at = |id: RequestId| ids.iter().position(|known| *known == id).expect("a request of this test");
            match event {
                Event::Token(token) => answers[at(token.id)].0.push((token.token, token.logprob)),
                Event::Finished(finished) => answers[at(finished.id)].1 = Some(finished),
                Event::Embedding { .. } => panic!("nobody asked for one"),
            }
        }
    }
    answers.into_iter().map(|(tokens, end)| (tokens, end.expect("every request ends"))).collect()
}

fn alone(janus: &Arc<Janus>, options: Options, request: Request) -> (Vec<(u32, Option<f32>)>, Finished) {
    let mut engine = engine(janus, options);
    let id = engine.enqueue(request).expect("a request that fits");
    run(&mut engine, &[id]).remove(0)
}

#[test]
fn an_answer_about_a_picture_has_the_bits_of_the_whole_forward_pass() {
    let janus = janus();
    // An answer that itself names places would have the reference look for more pictures.
    let sampling = Sampling { logit_bias: vec![(PLACE, f32::NEG_INFINITY)], ..Sampling::default() };
    let request = Request { sampling, ..prompt(&[1, 2], 0, 5) };
    let (answer, end) = alone(&janus, models::options(), request.clone());
    assert_eq!((end.usage.prompt, end.usage.generated), (request.prompt.len(), 12));
    let execution = Execution::new(wels_cpu::device());
    let features: Vec<_> = [1, 2].map(|seed| janus.image_features(&execution, &pixels(seed)).expect("features")).into();
    let mut tokens = request.prompt.clone();
    tokens.extend(answer.iter().map(|(token, _)| *token));
    let logits = janus.logits(&execution, &tokens, &features).expect("logits");
    let rows: Vec<Vec<f32>> = logits.to_host().chunks_exact(VOCABULARY).map(<[f32]>::to_vec).collect();
    for (place, (token, logprob)) in answer.iter().enumerate() {
        let row = &rows[request.prompt.len() - 1 + place];
        let total = sample::weights(row, 1.0, &mut vec![0.0; VOCABULARY]);
        assert_eq!(*logprob, Some(sample::logprob(row[*token as usize], total)), "token {place}");
    }
    let pictures = prompt(&[1, 3], 0, 5).pictures;
    let other = alone(&janus, models::options(), Request { pictures, ..request }).0;
    assert_ne!(other, answer, "another picture, another answer");
}

/// Law 1 with pictures: chunks, batches, the prefix cache, preemption and threads.
#[test]
fn answers_about_pictures_depend_on_nothing_else() {
    let janus = janus();
    let requests = [
        prompt(&[1], 0, 9),
        prompt(&[2], 0, 9),
        prompt(&[1, 2], 0, 16),
        prompt(&[1, 3], 0, 16),
        prompt(&[], 4, 30),
        prompt(&[2, 2], 3, 1),
    ];
    let plain = Options { prefix_cache: false, ..models::options() };
    let expected: Vec<_> = requests.iter().map(|request| alone(&janus, plain.clone(), request.clone()).0).collect();
    let bytes = |pages: usize| {
        // Keys and values of two layers, two heads of eight numbers, in f32.
        pages * 16 * 2 * 2 * 2 * 8 * 4
    };
    let all = [
        models::options(),
        Options { max_batch_tokens: 16, ..models::options() },
        Options { max_batch_tokens: 19, cache_bytes: bytes(16), ..models::options() },
        Options { max_running: 2, ..models::options() },
    ];
    for (options, threads) in all.into_iter().zip([1, 3, 2, 1]) {
        par::with_threads(threads, || {
            let mut engine = engine(&janus, options.clone());
            for round in 0..2 {
                let ids: Vec<_> = requests.iter().map(|request| engine.enqueue(request.clone()).unwrap()).collect();
                for (place, (answer, end)) in run(&mut engine, &ids).into_iter().enumerate() {
                    assert_eq!(answer, expected[place], "{place} of round {round} with {options:?}");
                    if round == 1 && options == models::options() {
                        assert_eq!(end.usage.cached, (requests[place].prompt.len() - 1) / 16 * 16, "{place}");
                    }
                }
            }
        });
    }
}

#[test]
fn the_prefix_cache_tells_pictures_apart() {
    let janus = janus();
    let mut engine = engine(&janus, models::options());
    let mut cached = |request: Request| {
        let id = engine.enqueue(request).expect("a request that fits");
        run(&mut engine, &[id])[0].1.usage.cached
    };
    assert_eq!(cached(prompt(&[1], 0, 16)), 0);
    assert_eq!(cached(prompt(&[2], 0, 16)), 16, "the words before another picture");
    assert_eq!(cached(prompt(&[1], 0, 16)), 32, "words and picture; the last token is computed in any case");
    let mut text = prompt(&[1], 0, 16);
    text.pictures.clear();
    assert_eq!(cached(text), 16, "the same tokens without a picture are something else");
}

fn drawing(janus: &Janus, words: &[u32], guidance: f32, seed: u64, choice: u32) -> Request {
    Request {
        draw: Some(Draw { unconditional: without_words(words, 0), guidance }),
        sampling: Sampling { seed, ..Sampling::default() },
        choice,
        ..Request::new(words.to_vec(), janus.config().vq.tokens())
    }
}

#[test]
fn a_picture_is_the_same_alone_and_among_others_and_answers() {
    let janus = janus();
    let execution = Execution::new(wels_cpu::device());
    let long = words(3, 40);
    let cases: Vec<(Vec<u32>, f32, u64, u32)> = (0..16)
        .map(|k| match k {
            0..8 => (words(0, 9), 5.0, 7, k),
            8..12 => (long.clone(), 1.0, 7, k),
            _ => (words(k, 3 + k), 2.0, u64::from(k), 0),
        })
        .collect();
    let draw =
        |(words, guidance, seed, choice): &(Vec<u32>, f32, u64, u32)| drawing(&janus, words, *guidance, *seed, *choice);
    let expected: Vec<_> = cases.iter().map(|case| alone(&janus, models::options(), draw(case)).0).collect();
    assert_ne!(expected[0], expected[1], "choices draw different pictures");
    // Without guidance it is what the model draws by itself, from the seed + the number of the choice.
    let sampling = wels_model::generate::Sampling::Random { temperature: 1.0, top_p: 1.0, seed: 7 + 8 };
    let own = janus.draw(&execution, &long, sampling).expect("a picture");
    assert_eq!(expected[8].iter().map(|(code, _)| *code).collect::<Vec<_>>(), own);
    for (max_drawing, threads) in [(1, 2), (4, 1), (16, 3)] {
        par::with_threads(threads, || {
            let mut engine = engine(&janus, Options { max_drawing, ..models::options() });
            let mut ids: Vec<_> = cases.iter().map(|case| engine.enqueue(draw(case)).unwrap()).collect();
            ids.push(engine.enqueue(prompt(&[1], 0, 9)).unwrap());
            let gone = engine.enqueue(draw(&cases[2])).unwrap();
            assert!(engine.cancel(gone) && !engine.cancel(gone));
            ids.push(gone);
            let mut answers = run(&mut engine, &ids);
            let (codes, end) = answers.pop().unwrap();
            assert_eq!((codes.len(), end.reason), (0, FinishReason::Cancelled));
            assert_eq!(answers.pop().unwrap().0.len(), 12);
            for (place, (codes, end)) in answers.into_iter().enumerate() {
                assert_eq!(codes, expected[place], "picture {place}, {max_drawing} at a time");
                let usage = (end.usage.prompt, end.usage.generated, end.reason);
                assert_eq!(usage, (cases[place].0.len(), tiny::CODES, FinishReason::Stop));
            }
        });
    }
}

#[test]
fn owners_share_what_is_drawn_at_a_time() {
    let janus = janus();
    let mut engine = engine(&janus, Options { max_drawing: 2, ..models::options() });
    let of = |engine: &mut Engine, owner: u64| {
        let request = Request { owner, ..drawing(&janus, &words(0, 9), 5.0, owner, 0) };
        engine.enqueue(request).unwrap()
    };
    let many: Vec<RequestId> = (0..5).map(|_| of(&mut engine, 1)).collect();
    engine.step();
    let few = [of(&mut engine, 2), of(&mut engine, 3)];
    // In the order in which the first codes come.
    let mut begun = many[..2].to_vec();
    while !engine.is_idle() {
        for event in engine.step() {
            let Event::Token(token) = event else { continue };
            if !begun.contains(&token.id) {
                begun.push(token.id);
            }
        }
    }
    assert_eq!(begun, [many[0], many[1], many[2], few[0], many[3], few[1], many[4]]);
}

#[test]
fn a_picture_under_way_can_be_given_up() {
    let janus = janus();
    let mut engine = engine(&janus, Options { max_drawing: 2, ..models::options() });
    let ids: Vec<_> = (0..3).map(|k| engine.enqueue(drawing(&janus, &words(0, 9), 5.0, 1, k)).unwrap()).collect();
    engine.step();
    engine.step();
    assert_eq!((engine.status().running, engine.status().waiting), (2, vec![ids[2]]));
    assert!(engine.cancel(ids[0]));
    let answers = run(&mut engine, &ids);
    let ends: Vec<_> = answers.iter().map(|(_, end)| (end.reason, end.usage.generated)).collect();
    let whole = (FinishReason::Stop, tiny::CODES);
    assert_eq!(ends, [(FinishReason::Cancelled, 2), whole, whole]);
    let third = alone(&janus, models::options(), drawing(&janus, &words(0, 9), 5.0, 1, 2)).0;
    assert_eq!(answers[2].0, third);
    assert_eq!(engine.status().running, 0);
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let janus = janus();
    let mut engine = engine(&janus, models::options());
    let mut text = Engine::new(crate::models::loaded(&crate::models::gqa(), 3), models::options()).unwrap();
    let picture = |at: usize, values: usize| Picture::new(at, vec![0.0; values]);
    let whole = 3 * tiny::SIDE * tiny::SIDE;
    let shown = |pictures: Vec<Picture>| Request { pictures, ..Request::new(vec![1; 40], 4) };
    let good = drawing(&janus, &[1, 2, 3], 5.0, 0, 0);
    let drawn = |guidance: f32, unconditional: Vec<u32>| Request {
        draw: Some(Draw { unconditional, guidance }),
        ..good.clone()
    };
    let refused = [
        text.enqueue(shown(vec![picture(0, whole)])),
        text.enqueue(good.clone()),
        engine.enqueue(shown(vec![picture(25, whole)])),
        engine.enqueue(shown(vec![picture(8, whole), picture(20, whole)])),
        engine.enqueue(shown(vec![picture(8, 7)])),
        engine.enqueue(drawn(-1.0, vec![1])),
        engine.enqueue(drawn(1.0, vec![])),
        engine.enqueue(drawn(1.0, vec![99])),
        engine.enqueue(Request { max_tokens: 3, ..good.clone() }),
        engine.enqueue(Request { prompt: vec![1; 150], ..good.clone() }),
    ];
    let messages: Vec<String> = refused.into_iter().map(|refused| refused.expect_err("refused").to_string()).collect();
    let expected = [
        "pictures: the model sees no pictures",
        "draw: the model draws no pictures",
        "pictures: a picture of 16 places at 25, behind 0 of 40 tokens",
        "pictures: a picture of 16 places at 20, behind 24 of 40 tokens",
        "pictures: 7 numbers of pixels, expected 768",
        "cfg: -1 is not within 0 and 100",
        "prompt: the prompt without words has no token",
        "token id 99 is not below the model's vocabulary of 60",
        "max_tokens: a picture has 16 codes, not 3",
        "the prompt has 150 tokens, and at most 144 fit",
    ];
    assert_eq!(messages, expected);
    assert!(engine.is_idle());
    let full = Options { max_waiting: 1, ..models::options() };
    let mut small = self::engine(&janus, full);
    small.enqueue(good.clone()).unwrap();
    assert_eq!(small.enqueue(good), Err(RequestError::QueueFull { waiting: 1 }));
}
