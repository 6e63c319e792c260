//! Answers of a given form, by a model that speaks at random; and grammars that are not to be followed.

use crate::answers::{answer, engine, finish};
use crate::models;
use wels_engine::{
    Constraint, FinishReason, LoadedModel, Options, Request, RequestError, Sampling, Speculation, Token,
};

fn request(constraint: Constraint, seed: u64) -> Request {
    let sampling = Sampling { seed, ..Sampling::default() };
    Request { sampling, constraint: Some(constraint), ..Request::new(vec![70, 71, 72], 80) }
}

fn text(tokens: &[Token]) -> String {
    tokens.iter().map(|token| &token.text[..]).collect()
}

/// Answers to several seeds, those that came to an end.
fn complete(loaded: &LoadedModel, constraint: &Constraint) -> Vec<String> {
    let texts = (0..12).filter_map(|seed| {
        let (tokens, end) = answer(loaded, request(constraint.clone(), seed));
        assert!(
            matches!(end.reason, FinishReason::Constraint | FinishReason::Length),
            "{:?}: {constraint:?}",
            end.reason
        );
        (end.reason == FinishReason::Constraint).then(|| text(&tokens))
    });
    texts.collect()
}

#[test]
fn answers_are_what_the_constraint_says() {
    let loaded = models::with_text(5);
    let schema = r#"{"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["eel", "carp"]}}, "required": ["age", "kind"], "additionalProperties": false}"#;
    let texts = complete(&loaded, &Constraint::JsonSchema(schema.into()));
    assert!(texts.len() >= 6, "{texts:?}");
    for text in texts {
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let age = value["age"].as_i64().expect("a whole number");
        assert!((0..100).contains(&age) && ["eel", "carp"].contains(&value["kind"].as_str().unwrap()), "{text}");
        assert_eq!(value.as_object().unwrap().len(), 2, "{text}");
    }
    let texts = complete(&loaded, &Constraint::Regex("(yes|no), [0-9]{2,4}!".into()));
    assert_eq!(texts.len(), 12);
    for text in texts {
        let (word, number) = text.strip_suffix('!').unwrap().split_once(", ").unwrap();
        assert!(["yes", "no"].contains(&word) && (2..5).contains(&number.len()), "{text}");
    }
    for text in complete(&loaded, &Constraint::JsonObject) {
        assert!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON").is_object(), "{text}");
    }
    let grammar = "start: \"(\" start \")\" | \"x\"";
    for text in complete(&loaded, &Constraint::Lark(grammar.into())) {
        let depth = text.find('x').expect("an x");
        assert_eq!(text, format!("{}x{}", "(".repeat(depth), ")".repeat(depth)));
    }
}

#[test]
fn a_stop_token_is_allowed_where_the_text_may_end_and_nowhere_else() {
    let loaded = models::with_text(5);
    for seed in 0..12 {
        let mut request = request(Constraint::Regex("ab*".into()), seed);
        request.stop_tokens = vec![305];
        let (tokens, end) = answer(&loaded, request);
        assert!(text(&tokens).starts_with('a'), "{:?}", text(&tokens));
        assert!(text(&tokens)[1..].bytes().all(|byte| byte == b'b'), "{:?}", text(&tokens));
        assert!(matches!(end.reason, FinishReason::Stop | FinishReason::Constraint | FinishReason::Length));
    }
}

#[test]
fn speculation_changes_no_constrained_answer() {
    let loaded = models::with_text(5);
    for seed in 0..6 {
        let constraint = Constraint::Regex("(abc, ){3,9}[0-9]+(, abc)*".into());
        let run = |speculation| {
            let mut engine = engine(&loaded, Options { speculation, ..models::options() });
            engine.enqueue(request(constraint.clone(), seed)).expect("a sound request");
            let (tokens, end) = finish(&mut engine).remove(0);
            (tokens, end.reason, end.usage.accepted)
        };
        let (plain, reason, _) = run(Speculation::Off);
        let (drafted, same_reason, accepted) = run(Speculation::Auto { max_draft: 6 });
        assert_eq!((plain, reason), (drafted, same_reason));
        assert!(accepted > 0, "seed {seed}: no drafted token was accepted");
    }
}

/// Of answers with one constraint, each has the tokens and the end that it has alone: near the limit of states too,
/// which they would reach together.
#[test]
fn several_answers_with_one_constraint_do_not_touch_each_other() {
    let loaded = models::with_text(5);
    for regex in ["[a-z]*[aeiou][a-z]{20}", "(abc, ){3,9}[0-9]+(, abc)*"] {
        let own = |seed: u64| request(Constraint::Regex(regex.into()), seed);
        let mut together = engine(&loaded, models::options());
        let preparer = together.preparer();
        let first = preparer.prepare(own(0)).expect("a sound request");
        for seed in 1..6 {
            let twin = first.twin(&own(seed)).expect("the same constraint");
            together.enqueue_prepared(twin).expect("a sound request");
        }
        let answers = finish(&mut together);
        for (seed, (tokens, end)) in (1..).zip(answers) {
            let (alone, its_end) = answer(&loaded, own(seed));
            assert_eq!((text(&tokens), end.reason), (text(&alone), its_end.reason), "{regex}, seed {seed}");
        }
    }
}

#[test]
fn what_cannot_be_followed_is_refused() {
    let loaded = models::with_text(5);
    let mut engine = engine(&loaded, models::options());
    let mut refused = |constraint: Constraint| match engine.enqueue(request(constraint, 0)) {
        Err(RequestError::Constraint { reason }) => reason,
        other => panic!("{other:?}"),
    };
    let schema = |text: &str| Constraint::JsonSchema(text.into());
    assert!(refused(schema("{\"type\": ")).starts_with("not JSON"));
    refused(schema("{\"type\": \"fish\"}"));
    refused(schema("{\"$ref\": \"https://example.com/schema.json\"}"));
    refused(schema("{\"allOf\": [{\"type\": \"string\"}, {\"type\": \"integer\"}]}"));
    refused(schema(&format!("{}{}", "{\"not\":".repeat(50_000), "}".repeat(50_000))));
    refused(schema(&format!("{{\"enum\": [\"{}\"]}}", "x".repeat(300 << 10))));
    let properties: Vec<String> = (0..2001).map(|i| format!("\"{i}\":{{}}")).collect();
    let many = format!("{{\"type\":\"object\",\"properties\":{{{}}}}}", properties.join(","));
    assert!(refused(schema(&many)).contains("2001 properties"));
    assert!(refused(Constraint::Lark(format!("start: \"a\" %json {many}"))).contains("2001 properties"));
    refused(Constraint::Regex("(".into()));
    refused(Constraint::Regex("(".repeat(20_000)));
    refused(Constraint::Lark("start: missing".into()));
    refused(Constraint::Lark("".into()));

    let mut deaf = crate::answers::engine(&models::loaded(&models::gqa(), 5), models::options());
    let refusal =
        deaf.enqueue(Request { prompt: vec![1], ..request(Constraint::JsonObject, 0) }).expect_err("no tokenizer");
    assert_eq!(refusal.to_string(), "the constraint cannot be used: the model has no tokenizer");
}

/// Schemas that refer to themselves are followed as far as the answer goes, those that grow exponentially not at all or
/// within bounds; either way others go on.
#[test]
fn cyclic_and_exponential_schemas_are_bounded() {
    let loaded = models::with_text(5);
    let cyclic = r##"{"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}"##;
    for text in complete(&loaded, &Constraint::JsonSchema(cyclic.into())) {
        assert!(text.bytes().all(|byte| b"[], \n".contains(&byte)), "{text:?}");
    }
    let definitions: Vec<String> = (0..40)
        .map(|i| {
            format!(r##""d{i}": {{"allOf": [{{"$ref": "#/$defs/d{n}"}}, {{"$ref": "#/$defs/d{n}"}}]}}"##, n = i + 1)
        })
        .collect();
    let exponential =
        format!(r##"{{"$ref": "#/$defs/d0", "$defs": {{{}, "d40": {{"type": "string"}}}}}}"##, definitions.join(", "));
    let mut engine = engine(&loaded, models::options());
    let repeated = "((((a{1,1000}){1,1000}){1,1000}){1,1000}){1,1000}";
    for constraint in [Constraint::JsonSchema(exponential), Constraint::Regex(repeated.into())] {
        let taken = engine.enqueue(request(constraint, 0)).is_ok();
        let other = engine.enqueue(Request::new(vec![70], 3)).expect("a sound request");
        let ends = finish(&mut engine);
        assert_eq!(ends.len(), 1 + usize::from(taken));
        assert!(ends.iter().any(|(tokens, end)| end.id == other && tokens.len() == 3));
    }
}

#[test]
fn a_constraint_that_may_fail_is_left_out_where_it_does() {
    let loaded = models::with_text(5);
    let may_fail = |constraint| Request { constraint_may_fail: true, ..request(constraint, 3) };
    // One that cannot be compiled: the answer is the free one.
    let wrong = Constraint::Regex("(".into());
    let free = Request { constraint: None, ..request(wrong.clone(), 3) };
    assert_eq!(answer(&loaded, may_fail(wrong.clone())), answer(&loaded, free));
    let mut refusing = engine(&loaded, models::options());
    assert!(matches!(refusing.enqueue(request(wrong, 3)), Err(RequestError::Constraint { .. })));
    // One so ambiguous that it becomes too much work after some letters: the answer goes on without it.
    let starts: Vec<String> = (0..80).map(|at| format!("s{at}")).collect();
    let rules: String = starts.iter().map(|s| format!("{s}: /[a-z]/ | {s} {s}\n")).collect();
    let hard = Constraint::Lark(format!("start: {}\n{rules}", starts.join(" | ")));
    let eos = loaded.tokenizer.as_ref().unwrap().special().eos.unwrap();
    let endless = |mut request: Request| {
        request.sampling.logit_bias = vec![(eos, f32::NEG_INFINITY)];
        answer(&loaded, request)
    };
    let (strict, end) = endless(request(hard.clone(), 3));
    assert_eq!(end.reason, FinishReason::ConstraintTooHard);
    let (tokens, end) = endless(may_fail(hard));
    assert_eq!((end.reason, &tokens[..strict.len()]), (FinishReason::Length, &strict[..]));
    assert!(text(&strict).bytes().all(|byte| byte.is_ascii_lowercase()) && tokens.len() == 80);
}
