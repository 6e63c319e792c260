//! The text of answers: whole characters, stop strings, stop tokens.

use crate::answers::answer;
use crate::models;
use wels_engine::{FinishReason, Request, Sampling, Token};

fn text(tokens: &[Token]) -> String {
    tokens.iter().map(|token| &token.text[..]).collect()
}

fn ids(tokens: &[Token]) -> Vec<u32> {
    tokens.iter().map(|token| token.token).collect()
}

fn request(seed: u64) -> Request {
    Request { sampling: Sampling { seed, ..Sampling::default() }, ..Request::new(vec![70, 71, 72], 60) }
}

#[test]
fn pieces_together_are_the_text_of_the_tokens() {
    let loaded = models::with_text(5);
    let tokenizer = loaded.tokenizer.clone().expect("it has one");
    for seed in 0..8 {
        let (tokens, end) = answer(&loaded, request(seed));
        assert_eq!(end.reason, FinishReason::Length);
        let known: Vec<u32> = ids(&tokens).into_iter().filter(|id| *id < 300).collect();
        assert_eq!(text(&tokens), tokenizer.decode(&known).expect("known ids"), "seed {seed}");
    }
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let loaded = models::with_text(5);
    let (free, _) = answer(&loaded, request(1));
    let whole = text(&free);
    let chars: Vec<char> = whole.chars().collect();
    let stop: String = chars[chars.len() / 2..chars.len() / 2 + 3].iter().collect();
    let (tokens, end) = answer(&loaded, Request { stop: vec!["never this".into(), stop.clone()], ..request(1) });
    assert_eq!(end.reason, FinishReason::StopString(1));
    assert_eq!(text(&tokens), whole.split(&stop).next().expect("what comes first"));
    assert_eq!(ids(&tokens), ids(&free)[..tokens.len()]);
    assert!(tokens.len() < free.len());
}

#[test]
fn a_stop_token_has_no_text() {
    let loaded = models::with_text(5);
    let (free, _) = answer(&loaded, request(2));
    let at = 20;
    let stop = free[at].token;
    let first = ids(&free).iter().position(|id| *id == stop).expect("it is there");
    let (tokens, end) = answer(&loaded, Request { stop_tokens: vec![stop], ..request(2) });
    assert_eq!((end.reason, tokens.len()), (FinishReason::Stop, first + 1));
    assert!(text(&free).starts_with(text(&tokens).trim_end_matches('\u{fffd}')));
}
