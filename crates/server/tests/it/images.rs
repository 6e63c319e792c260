//! Pictures in the API: drawn and seen, by one model of two; what is refused harms nobody else.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use wels_data::Tokenizer;
use wels_data::chat::PictureTokens;
use wels_data::tokenizer::{BpeTrainer, SpecialTokens};
use wels_engine::image::{Rgb, decode, encode_png, png_texts};
use wels_engine::{
    Engine, Event, LoadedModel, Options, Prepared, Preprocessing, Renderer, RequestError, RequestId, Status,
};
use wels_model::janus::Janus;
use wels_server::http::{ImageHosts, Settings};
use wels_server::ledger::Limits;
use wels_server::loader::{Loadable, LoaderSettings};
use wels_server::prompt::ServedPictures;
use wels_server::worker::{Backend, Prepare, Worker};

use crate::lab::{Lab, Setup, tiny};

#[path = "../../../model/tests/janus/tiny.rs"]
mod small;

/// What the loader calls the model with pictures.
pub const JANUS: &str = "janus";
const TOKENS: usize = 300;
const CONTEXT: usize = 512;

/// What a model of pictures is served with.
pub fn served_pictures(tokenizer: &Tokenizer) -> ServedPictures {
    let json = json!({"size": {"height": small::SIDE, "width": small::SIDE}, "min_size": 2,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]});
    let (preprocessing, _) = Preprocessing::from_hf_json(&json.to_string()).unwrap();
    ServedPictures {
        around: PictureTokens::of(tokenizer).unwrap(),
        place: place(tokenizer),
        place_text: "<image_placeholder>".to_owned(),
        places: small::CODES,
        preprocessing,
        takes_parts: false,
        codes: small::CODES,
        side: small::SIDE,
    }
}

fn place(tokenizer: &Tokenizer) -> u32 {
    tokenizer.id("<image_placeholder>").unwrap()
}

fn tokenizer() -> Arc<Tokenizer> {
    let mut trainer = BpeTrainer::new(TOKENS, SpecialTokens::default()).unwrap();
    trainer.feed(&["a red circle left of a blue square"; 8]);
    let mut json: Value = serde_json::from_str(trainer.train().unwrap().to_json()).unwrap();
    let added = json["added_tokens"].as_array_mut().unwrap();
    for (id, token) in (TOKENS..).zip(["<begin_of_image>", "<end_of_image>", "<image_placeholder>"]) {
        added.push(json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}));
    }
    Arc::new(Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap())
}

fn engine(options: Options) -> Engine {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer();
    small::write(folder.path(), tokenizer.vocab_size(), place(&tokenizer), CONTEXT);
    let (janus, _) = Janus::open(folder.path(), &wels_cpu::device(), CONTEXT).unwrap();
    let loaded = LoadedModel { tokenizer: Some(tokenizer), ..LoadedModel::from(Arc::new(janus)) };
    Engine::new(loaded, options).unwrap()
}

/// Each step of a drawing takes a while, so that a client can leave in the middle; with a square, so long that a page
/// sees what is in between on a busy machine, too.
struct Slow {
    engine: Engine,
    /// For what was asked last.
    pause: Duration,
}

impl Backend for Slow {
    fn preparer(&self) -> Prepare {
        Backend::preparer(&self.engine)
    }

    fn enqueue(&mut self, prepared: Prepared) -> Result<RequestId, RequestError> {
        let request = prepared.request();
        let is_square = tokenizer().decode(&request.prompt).unwrap().contains("square");
        let pause = if is_square { 400 } else { 120 };
        self.pause = if request.draw.is_some() { Duration::from_millis(pause) } else { Duration::ZERO };
        self.engine.enqueue_prepared(prepared)
    }

    fn cancel(&mut self, id: RequestId) -> bool {
        self.engine.cancel(id)
    }

    fn step(&mut self) -> Vec<Event> {
        std::thread::sleep(self.pause);
        self.engine.step()
    }

    fn is_idle(&self) -> bool {
        self.engine.is_idle()
    }

    fn renderer(&self) -> Option<Renderer> {
        self.engine.renderer()
    }

    fn status(&self) -> Status {
        self.engine.status()
    }
}

/// A server with a model of text, `tiny`, and one of pictures, `janus`.
pub fn lab(setup: Setup) -> Lab {
    let backend = engine(setup.options.clone());
    lab_with(setup, backend)
}

/// The same, whose pictures take seconds: a person or a client can leave in the middle.
pub fn slow_lab() -> Lab {
    let setup = Setup::default();
    let backend = Slow { engine: engine(setup.options.clone()), pause: Duration::ZERO };
    lab_with(setup, backend)
}

fn lab_with(setup: Setup, backend: impl Backend) -> Lab {
    let text = tiny();
    let tokenizers = [text.tokenizer.clone().unwrap(), tokenizer()];
    let workers =
        [Worker::start(Engine::new(text, setup.options.clone()).unwrap()).unwrap(), Worker::start(backend).unwrap()];
    let models = ["tiny", JANUS].into_iter().zip(workers).zip(tokenizers).map(|((name, worker), tokenizer)| {
        let load = Box::new(|| Err("it is loaded".to_owned()));
        (Loadable { name: name.to_owned(), bytes: 0, loaded: Some(worker), load }, tokenizer)
    });
    let settings = LoaderSettings { memory_bytes: 0, unload_after: None, waiting_max: 64 };
    Setup { context: CONTEXT, ..setup }.start_loader(models.collect(), settings)
}

fn drawn(lab: &Lab, more: Value) -> Vec<String> {
    let response = draw(lab, more);
    assert_eq!(response.status, 200, "{}", response.body);
    let reply = response.json();
    let pictures = reply["data"].as_array().unwrap();
    pictures.iter().map(|picture| picture["b64_json"].as_str().unwrap().to_owned()).collect()
}

fn draw(lab: &Lab, more: Value) -> crate::lab::Response {
    let mut body = json!({"model": JANUS, "prompt": "a red circle"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    lab.post("/v1/images/generations", &body)
}

fn png(seed: u8) -> String {
    let bytes = (0..20 * 30 * 3).map(|i: usize| (i as u8).wrapping_mul(seed)).collect();
    STANDARD.encode(encode_png(&Rgb { width: 30, height: 20, bytes }, &[]))
}

fn url_of(base64: &str) -> Value {
    json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{base64}")}})
}

fn about(lab: &Lab, model: &str, parts: Value, more: Value) -> crate::lab::Response {
    let mut body =
        json!({"model": model, "messages": [{"role": "user", "content": parts}], "seed": 7, "max_tokens": 8});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    lab.post("/v1/chat/completions", &body)
}

#[test]
fn a_picture_is_the_same_alone_and_among_others_and_is_paid_for() {
    let lab = lab(Setup::default());
    let reply = draw(&lab, json!({"n": 3, "seed": 7, "size": "16x16", "response_format": "b64_json"})).json();
    let (usage, data) = (&reply["usage"], reply["data"].as_array().unwrap());
    assert_eq!((data.len(), &usage["output_tokens"]), (3, &json!(3 * small::CODES)), "{reply}");
    let entry = &lab.settled()[0];
    assert_eq!(entry.outcome.as_deref(), Some("done"));
    assert_eq!(json!(entry.tokens.miss), usage["input_tokens"]);
    assert_eq!((entry.tokens.hit, entry.tokens.output), (0, 48));
    assert_eq!(usage["cost_exact"], entry.cost.to_string());
    let all: Vec<&str> = data.iter().map(|picture| picture["b64_json"].as_str().unwrap()).collect();
    for (number, picture) in data.iter().enumerate() {
        assert_eq!(picture["seed"], 7 + number);
        let alone = drawn(&lab, json!({"seed": 7 + number}));
        assert_eq!(alone, [all[number]], "picture {number}");
        let file = STANDARD.decode(all[number]).unwrap();
        let shown = decode(&file).unwrap();
        assert_eq!((shown.width, shown.height), (small::SIDE, small::SIDE));
        let texts = png_texts(&file).unwrap();
        let settings: Value = serde_json::from_str(&texts.iter().find(|(key, _)| key == "wels").unwrap().1).unwrap();
        assert_eq!(
            settings,
            json!({"prompt": "a red circle", "seed": 7 + number, "cfg": 5.0, "temperature": 1.0,
            "model": JANUS})
        );
    }
    // Many at once, beside conversations.
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6u64)
            .map(|k| {
                let (lab, all) = (&lab, &all);
                scope.spawn(move || {
                    let pictures = drawn(lab, json!({"n": 1 + k % 3, "seed": 7}));
                    assert_eq!(pictures, all[..=(k % 3) as usize]);
                    assert_eq!(about(lab, JANUS, json!([url_of(&png(3))]), json!({})).status, 200);
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    for other in [json!({"cfg": 1}), json!({"temperature": 0}), json!({"seed": 8}), json!({"prompt": "a blue square"})]
    {
        let mut more = json!({"seed": 7});
        more.as_object_mut().unwrap().extend(other.as_object().unwrap().clone());
        assert_ne!(drawn(&lab, more), [all[0]], "{other}");
    }
    let random = drawn(&lab, json!({}));
    assert_ne!(random, drawn(&lab, json!({})), "without a seed each is another");
    assert!(
        lab.get("/v1/models/janus").json()["images"] == true && lab.get("/v1/models/tiny").json()["images"] == false
    );
}

#[test]
fn what_cannot_be_drawn_is_refused_by_name() {
    let lab = lab(Setup::default());
    for (more, param) in [
        (json!({"model": "tiny"}), "model"),
        (json!({"size": "1024x1024"}), "size"),
        (json!({"n": 0}), "n"),
        (json!({"n": 11}), "n"),
        (json!({"response_format": "url"}), "response_format"),
        (json!({"output_format": "jpeg"}), "output_format"),
        (json!({"prompt": " "}), "prompt"),
        (json!({"prompt": "a red circle ".repeat(200)}), "prompt"),
        (json!({"cfg": 101}), "cfg"),
        (json!({"temperature": -1}), "temperature"),
        (json!({"seed": -1}), "seed"),
        (json!({"stream": 1}), "stream"),
        (json!({"stream": true, "partial_images": 4}), "partial_images"),
        (json!({"partial_images": 1}), "partial_images"),
        (json!({"nothing": 1}), "nothing"),
    ] {
        let response = draw(&lab, more.clone());
        assert_eq!((response.status, response.param().as_str()), (400, param), "{more}: {}", response.body);
    }
    let refused = draw(&lab, json!({"model": "tiny"})).json();
    assert_eq!(refused["error"]["message"], "`tiny` is a model of text and draws no pictures: ask `janus`.");
    assert_eq!(draw(&lab, json!({"model": "none"})).status, 404);
    assert_eq!(drawn(&lab, json!({"quality": "hd", "style": "vivid", "user": "me"})).len(), 1);
}

#[test]
fn a_key_has_its_limits_and_a_client_that_leaves_ends_its_pictures() {
    let limits = Limits { tokens_per_minute: Some(60), ..Limits::default() };
    let lab = lab(Setup { limits, ..Setup::default() });
    let refused = draw(&lab, json!({"n": 4}));
    assert_eq!(refused.status, 429, "{}", refused.body);

    let lab = slow_lab();
    let body = json!({"model": JANUS, "prompt": "a red circle", "n": 4}).to_string();
    let stream = lab.send("POST", "/v1/images/generations", &lab.key, body.as_bytes());
    std::thread::sleep(Duration::from_millis(500));
    drop(stream);
    let entry = &lab.settled()[0];
    assert_eq!((entry.outcome.as_deref(), entry.tokens.output), (Some("cancelled"), 0));
    for _ in 0..100 {
        if lab.get("/health").json()["running"] == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the pictures of a client that has left are still drawn");
}

#[test]
fn more_pictures_than_a_key_may_have_at_once_are_drawn_in_parts() {
    let limits = Limits { concurrent: Some(2), ..Limits::default() };
    let lab = lab(Setup { limits, ..Setup::default() });
    let whole = drawn(&lab, json!({"n": 5, "seed": 7}));
    let alone: Vec<String> = (7..12).flat_map(|seed| drawn(&lab, json!({"seed": seed}))).collect();
    assert_eq!(whole, alone);
    let (events, _) = streamed(&lab, json!({"n": 3, "seed": 7}));
    assert_eq!(events.len(), 3);
    for event in &events {
        let index = event["index"].as_u64().unwrap() as usize;
        assert_eq!((&event["seed"], &event["b64_json"]), (&json!(7 + index), &json!(whole[index])));
    }
    let entries = lab.settled();
    let codes: u64 = entries.iter().map(|entry| entry.tokens.output).sum();
    assert_eq!(codes, (5 + 5 + 3) * small::CODES as u64);
    assert!(entries.iter().all(|entry| entry.outcome.as_deref() == Some("done")));
}

/// The events of a stream of pictures, by their type, and its comments.
fn streamed(lab: &Lab, more: Value) -> (Vec<Value>, Vec<String>) {
    let mut body = json!({"model": JANUS, "prompt": "a red circle", "stream": true});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let response = lab.post("/v1/images/generations", &body);
    assert_eq!(response.header("content-type"), Some("text/event-stream; charset=utf-8"), "{}", response.body);
    let (mut events, mut comments) = (Vec::new(), Vec::new());
    for piece in response.body.split("\n\n").filter(|piece| !piece.is_empty()) {
        match piece.strip_prefix(": ") {
            Some(comment) => comments.push(comment.to_owned()),
            None => {
                let (name, data) = piece.strip_prefix("event: ").and_then(|rest| rest.split_once("\ndata: ")).unwrap();
                let event: Value = serde_json::from_str(data).unwrap();
                assert_eq!(event["type"], name);
                events.push(event);
            }
        }
    }
    (events, comments)
}

#[test]
fn streamed_pictures_are_those_of_a_whole_reply_and_come_unfinished_before() {
    let lab = slow_lab();
    let whole = draw(&lab, json!({"n": 2, "seed": 7})).json();
    let (events, comments) = streamed(&lab, json!({"n": 2, "seed": 7, "partial_images": 3}));
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<&Value>>();
    let (partial, completed) = (of("image_generation.partial_image"), of("image_generation.completed"));
    assert_eq!((partial.len(), completed.len(), events.len()), (6, 2, 8));
    for event in &completed {
        let index = event["index"].as_u64().unwrap() as usize;
        assert_eq!((&event["seed"], &event["size"]), (&json!(7 + index), &json!("16x16")));
        assert_eq!(event["b64_json"], whole["data"][index]["b64_json"], "picture {index}");
        let finished = decode(&STANDARD.decode(event["b64_json"].as_str().unwrap()).unwrap()).unwrap();
        let before: Vec<&&Value> = partial.iter().filter(|event| event["index"] == index).collect();
        for (number, event) in before.iter().enumerate() {
            assert_eq!((&event["partial_image_index"], &event["codes"]), (&json!(number), &json!(4 * (number + 1))));
            let shown = decode(&STANDARD.decode(event["b64_json"].as_str().unwrap()).unwrap()).unwrap();
            let rows = 3 * 16 * 4 * (number + 1);
            assert!(shown.bytes[rows..].iter().all(|byte| *byte == 128), "what is not drawn is grey");
            assert_ne!(shown.bytes[..rows], finished.bytes[..rows].iter().map(|_| 128).collect::<Vec<u8>>());
        }
    }
    // The parts of the bill are the bill.
    let sum = |key: &str| completed.iter().map(|event| event["usage"][key].as_u64().unwrap()).sum::<u64>();
    for key in ["input_tokens", "output_tokens", "total_tokens"] {
        assert_eq!(json!(sum(key)), whole["usage"][key], "{key}");
    }
    let cost: Vec<f64> = completed.iter().map(|event| event["usage"]["cost"].as_f64().unwrap()).collect();
    assert!((cost.iter().sum::<f64>() - whole["usage"]["cost"].as_f64().unwrap()).abs() < 1e-12, "{cost:?}");
    let entries = lab.settled();
    assert_eq!(entries[0].tokens, entries[1].tokens);
    assert!(comments.iter().any(|comment| comment.starts_with("drawing: ") && comment.ends_with(" of 32 codes")));
    // Without unfinished ones there are the finished ones alone.
    assert_eq!(streamed(&lab, json!({"seed": 7})).0.len(), 1);
}

#[test]
fn drawn_codes_have_a_price_of_their_own() {
    let tariff = "peak = { hit = \"1\", miss = \"2\", output = \"3\", drawn = \"40\" }";
    let lab = lab(Setup { tariff, ..Setup::default() });
    let usage = draw(&lab, json!({"n": 2})).json()["usage"].clone();
    assert_eq!(usage["output_tokens_details"]["image_tokens"], 32);
    let nanos = 2_000 * usage["input_tokens"].as_i64().unwrap() + 40_000 * 32;
    assert_eq!(lab.settled()[0].cost.0, nanos);
    let (events, _) = streamed(&lab, json!({"n": 2}));
    let costs = events.iter().map(|event| event["usage"]["cost"].as_f64().unwrap());
    assert!((costs.sum::<f64>() - nanos as f64 * 1e-9).abs() < 1e-12);
    let said = about(&lab, JANUS, json!([url_of(&png(3))]), json!({})).json();
    let (prompt, output) = (&said["usage"]["prompt_tokens"], &said["usage"]["completion_tokens"]);
    let nanos = 2_000 * prompt.as_i64().unwrap() + 3_000 * output.as_i64().unwrap();
    assert!((said["usage"]["cost"].as_f64().unwrap() - nanos as f64 * 1e-9).abs() < 1e-12, "{said}");
    assert_eq!(lab.get("/v1/models/janus").json()["pricing"]["per_million_tokens"]["drawn"], "40.00");
}

#[test]
fn what_a_client_has_seen_of_a_picture_is_paid_for_and_nothing_else() {
    let lab = slow_lab();
    let left = |more: Value, until: &str| {
        let mut body = json!({"model": JANUS, "prompt": "a red circle", "stream": true, "seed": 7});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut stream = lab.send("POST", "/v1/images/generations", &lab.key, body.to_string().as_bytes());
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&seen).contains(until) {
            let count = stream.read(&mut buffer).unwrap();
            assert_ne!(count, 0, "{}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&buffer[..count]);
        }
    };
    left(json!({}), ": drawing: ");
    left(json!({"partial_images": 1}), "partial_image_index");
    let entries = lab.settled();
    let mut found: Vec<_> = entries.iter().map(|entry| (entry.outcome.as_deref(), entry.tokens.output)).collect();
    found.sort_unstable();
    assert_eq!(found, [(Some("cancelled"), 0), (Some("cancelled"), 8)], "half of a picture was seen");
    // The engine is free for the next one.
    assert_eq!(drawn(&lab, json!({"seed": 7})).len(), 1);
}

#[test]
fn all_three_apis_show_pictures_and_the_cache_knows_them_again() {
    let lab = lab(Setup::default());
    let ask = |picture: u8| {
        let parts = json!([url_of(&png(picture)), {"type": "text", "text": "What is it?"}]);
        let response = about(&lab, JANUS, parts, json!({"temperature": 0, "logprobs": true}));
        assert_eq!(response.status, 200, "{}", response.body);
        let reply = response.json();
        let cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        (reply["choices"][0].clone(), cached, reply["usage"]["prompt_tokens"].as_u64().unwrap())
    };
    let (first, _, tokens) = ask(3);
    let text = about(&lab, JANUS, json!("What is it?"), json!({})).json()["usage"]["prompt_tokens"].as_u64().unwrap();
    let (places, around, line) = (small::CODES as u64, 2, 1);
    assert_eq!(tokens, text + places + around + line);
    let details = about(&lab, JANUS, json!([url_of(&png(3)), url_of(&png(5))]), json!({})).json();
    assert_eq!(details["usage"]["prompt_tokens_details"]["image_tokens"], 2 * places, "{details}");
    let (again, cached, _) = ask(3);
    assert_eq!((&again["message"], &again["logprobs"]), (&first["message"], &first["logprobs"]));
    assert_eq!(cached, (tokens - 1) / 16 * 16);
    let (other, cached, _) = ask(5);
    assert!(cached < 32 && other["logprobs"] != first["logprobs"], "{cached} {other}");
    // The same conversation in the other dialects has the same prompt.
    let base64 = png(3);
    let image = json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": base64}});
    let url = format!("data:image/png;base64,{base64}");
    let input = json!([{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "What is it?"}]);
    let question = json!({"type": "text", "text": "What is it?"});
    let body = json!({"model": JANUS, "max_tokens": 4, "messages": [{"role": "user", "content": [image, question]}]});
    let messages = lab.post("/v1/messages", &body);
    assert_eq!(messages.status, 200, "{}", messages.body);
    let body = json!({"model": JANUS, "max_output_tokens": 4, "input": [{"role": "user", "content": input}]});
    let responses = lab.post("/v1/responses", &body);
    assert_eq!(responses.status, 200, "{}", responses.body);
    assert_eq!(responses.json()["usage"]["input_tokens"], tokens);
    assert_eq!(responses.json()["usage"]["input_tokens_details"]["cached_tokens"], (tokens - 1) / 16 * 16);
    let two = about(&lab, JANUS, json!([url_of(&png(3)), url_of(&png(5))]), json!({"n": 2}));
    assert_eq!((two.status, two.json()["choices"].as_array().unwrap().len()), (200, 2), "{}", two.body);
}

/// A PNG of one colour, of any size, that compresses to little.
fn bomb(width: u32, height: u32) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8], data: &[u8]| {
        file.extend((data.len() as u32).to_be_bytes());
        let body = [kind, data].concat();
        file.extend(&body);
        file.extend(crc32(&body).to_be_bytes());
    };
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    chunk(b"IHDR", &header);
    chunk(b"IDAT", &[0x78, 0x9c, 3, 0, 0, 0, 0, 1]);
    chunk(b"IEND", b"");
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    };
    !bytes.iter().fold(u32::MAX, step)
}

#[test]
fn pictures_that_cannot_be_seen_are_refused_and_harm_nobody() {
    let lab = lab(Setup::default());
    let whole = STANDARD.decode(png(3)).unwrap();
    let file = |bytes: &[u8]| url_of(&STANDARD.encode(bytes));
    let url = |url: &str| json!({"type": "image_url", "image_url": {"url": url}});
    let mut animated = whole.clone();
    let control = [&8u32.to_be_bytes()[..], b"acTL", &[0, 0, 0, 2, 0, 0, 0, 0]].concat();
    let crc = crc32(&control[4..]);
    animated.splice(33..33, [&control[..], &crc.to_be_bytes()].concat());
    let cases = [
        (file(&whole[..whole.len() / 2]), "The picture cannot be decoded"),
        (file(b"GIF89a\x01\x00\x01\x00\x00\x00\x00"), "The picture is neither PNG nor JPEG nor WebP."),
        (file(b"<svg></svg>"), "The picture is neither PNG nor JPEG nor WebP."),
        (file(&animated), "The picture is animated"),
        (file(&bomb(1_000_000, 1)), "The picture has 1000000 × 1 pixels"),
        (file(&bomb(16_000, 16_000)), "The picture has 16000 × 16000 pixels"),
        (file(&bomb(u32::MAX, u32::MAX)), "The picture "),
        (file(&bomb(8, 8)), "The picture cannot be decoded"),
        (url("https://example.org/cat.png"), "Addresses are not fetched here"),
        (
            json!({"type": "image", "source": {"type": "url", "url": "https://example.org/cat.png"}}),
            "Addresses are not fetched here",
        ),
        (json!({"type": "input_image", "image_url": "https://example.org/cat.png"}), "Addresses are not fetched here"),
        (url("http://169.254.169.254/latest"), "Addresses are not fetched here"),
        (url("data:image/png,abc"), "The data: URL is not in base64"),
        (url("data:;base64,****"), "The picture is not base64"),
        (url("cat.png"), "This is no data: URL"),
    ];
    for (part, expected) in &cases {
        let response = about(&lab, JANUS, json!([{"type": "text", "text": "What is it?"}, part]), json!({}));
        let error = &response.json()["error"];
        let message = error["message"].as_str().unwrap_or_default();
        assert!(response.status == 400 && message.starts_with(expected), "{expected}: {}", response.body);
        assert!(response.param().starts_with("messages[0].content[1]"), "{}", response.body);
    }
    // Forged places.
    for words in ["\u{fffc}", "<image_placeholder>"] {
        let response = about(&lab, JANUS, json!([url_of(&png(3)), {"type": "text", "text": words}]), json!({}));
        assert_eq!((response.status, response.param().as_str()), (400, "messages"), "{}", response.body);
    }
    let many = vec![url_of(&png(3)); 17];
    assert_eq!(about(&lab, JANUS, json!(many), json!({})).param(), "messages[0].content[16]");
    let response = about(&lab, "tiny", json!([url_of(&png(3))]), json!({}));
    let message = "`tiny` is a model of text and sees no pictures: ask `janus`.";
    assert_eq!((response.status, &response.json()["error"]["message"]), (400, &json!(message)));
    // Cut anywhere, and with any byte changed, a file is seen or refused.
    for cut in (0..whole.len()).step_by(97) {
        let mut damaged = whole.clone();
        damaged[cut] ^= 0x55;
        for bytes in [&whole[..cut.max(1)], &damaged] {
            let status = about(&lab, JANUS, json!([file(bytes)]), json!({"max_tokens": 1})).status;
            assert!(status == 200 || status == 400, "{status} at {cut}");
        }
    }
    assert_eq!(about(&lab, JANUS, json!([url_of(&png(3))]), json!({})).status, 200);
    assert_eq!(lab.chat(json!({})).status, 200);
    assert_eq!(lab.get("/health").json()["status"], "ok");
}

/// A server of files, for the tests of pictures at addresses: what it was asked for, and where it is.
fn file_server() -> (std::net::SocketAddr, Arc<std::sync::Mutex<Vec<String>>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::default());
    let noted = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let noted: Arc<std::sync::Mutex<Vec<String>>> = Arc::clone(&noted);
            std::thread::spawn(move || serve_file(&mut stream.unwrap(), &noted));
        }
    });
    (address, asked)
}

fn serve_file(stream: &mut std::net::TcpStream, noted: &std::sync::Mutex<Vec<String>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let path = String::from_utf8(head).unwrap().split(' ').nth(1).unwrap().to_owned();
    noted.lock().unwrap().push(path.clone());
    let file = STANDARD.decode(png(3)).unwrap();
    let mut answer = |head: &str, body: &[u8]| {
        let head = format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n");
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    };
    match path.as_str() {
        "/cat.png" => answer("200 OK", &file),
        "/gone.png" => answer("404 Not Found", b""),
        "/moved.png" => answer("302 Found\r\nLocation: /cat.png", b""),
        "/page.html" => answer("200 OK", b"<html></html>"),
        "/large.png" => answer("200 OK\r\nContent-Length: 5000000000", b""),
        "/endless.png" => answer("200 OK", &vec![0; 9 << 20]),
        "/broken.png" => answer("200 OK\r\nContent-Length: 5000", &file[..100]),
        _ => answer("nonsense", b""),
    }
}

#[test]
fn pictures_at_addresses_are_fetched_from_listed_hosts() {
    let (address, asked) = file_server();
    let hosts = ImageHosts::new(&[address.to_string(), "images.example".to_owned()]).unwrap();
    let settings = Settings { image_hosts: Arc::new(hosts.everywhere()), ..Settings::default() };
    let lab = lab(Setup { settings, ..Setup::default() });
    let at = |path: &str| json!({"type": "image_url", "image_url": {"url": format!("http://{address}{path}")}});
    let question = json!({"type": "text", "text": "What is it?"});
    let settings = json!({"temperature": 0, "logprobs": true});
    let sent = about(&lab, JANUS, json!([url_of(&png(3)), question]), settings.clone()).json();
    let fetched = about(&lab, JANUS, json!([at("/cat.png"), question]), settings.clone());
    assert_eq!(fetched.status, 200, "{}", fetched.body);
    assert_eq!(fetched.json()["choices"], sent["choices"], "as if it had been sent");
    // The other dialects, and one address twice.
    let source = json!({"type": "image", "source": {"type": "url", "url": format!("http://{address}/cat.png")}});
    let body = json!({"model": JANUS, "max_tokens": 2, "messages": [{"role": "user", "content": [source, source]}]});
    let tokens = lab.post("/v1/messages/count_tokens", &body).json()["input_tokens"].as_u64().unwrap();
    let messages = lab.post("/v1/messages", &body);
    assert_eq!((messages.status, messages.json()["usage"]["input_tokens"].is_u64()), (200, true), "{}", messages.body);
    assert!(tokens > 2 * small::CODES as u64, "{tokens}");
    let input = json!([{"type": "input_image", "image_url": format!("http://{address}/cat.png")}]);
    let body = json!({"model": JANUS, "max_output_tokens": 2, "input": [{"role": "user", "content": input}]});
    assert_eq!(lab.post("/v1/responses", &body).status, 200);
    assert_eq!(*asked.lock().unwrap(), ["/cat.png"; 4], "each address of a request once");
    let here = "`127.0.0.1` ";
    for (path, expected) in [
        ("/gone.png", format!("{here}answered 404 in the place of a picture.")),
        ("/moved.png", format!("{here}leads on to another address: give the picture's own.")),
        ("/page.html", "The picture is neither PNG nor JPEG nor WebP.".to_owned()),
        ("/large.png", "The pictures at addresses have more than 4194304 bytes together.".to_owned()),
        ("/endless.png", "The pictures at addresses have more than 4194304 bytes together.".to_owned()),
        ("/broken.png", "The picture cannot be fetched from `127.0.0.1`: ".to_owned()),
        ("/nonsense", "The picture cannot be fetched from `127.0.0.1`: ".to_owned()),
    ] {
        let response = about(&lab, JANUS, json!([at("/cat.png"), at(path)]), json!({}));
        let message = response.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(response.status == 400 && message.starts_with(&expected), "{path}: {}", response.body);
        assert!(response.param().starts_with("messages[0].content[1]"), "{}", response.body);
    }
    let other = json!({"type": "image_url", "image_url": {"url": "https://other.example/cat.png"}});
    let refused = about(&lab, JANUS, json!([other]), json!({})).json()["error"]["message"].to_string();
    assert!(refused.contains("`other.example` is not among the hosts"), "{refused}");
    assert_eq!(about(&lab, "tiny", json!([at("/cat.png")]), json!({})).status, 400);
    assert_eq!(asked.lock().unwrap().len(), 4 + 2 * 7, "a model of text fetches nothing");
    assert_eq!(lab.get("/health").json()["status"], "ok");
}

/// As `wels serve` is started: what is listed and leads to a private network is not reached.
#[test]
fn no_listed_host_leads_into_a_private_network() {
    let (address, asked) = file_server();
    let port = address.port();
    let listed = [format!("localhost:{port}"), format!("127.0.0.1:{port}"), "169.254.169.254".to_owned()];
    let settings = Settings { image_hosts: Arc::new(ImageHosts::new(&listed).unwrap()), ..Settings::default() };
    let lab = lab(Setup { settings, ..Setup::default() });
    for host in &listed {
        let url = format!("http://{host}/cat.png");
        let part = json!({"type": "image_url", "image_url": {"url": url}});
        let response = about(&lab, JANUS, json!([part]), json!({}));
        let name = host.split(':').next().unwrap();
        let expected = format!("`{name}` leads to no address of the public internet.");
        assert_eq!((response.status, &response.json()["error"]["message"]), (400, &json!(expected)));
    }
    assert!(asked.lock().unwrap().is_empty());
}
