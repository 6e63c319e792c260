//! The API's promises, one after the other.

use serde_json::{Value, json};

use crate::lab::{Response, Setup};

fn text(events: &[Value], key: &str, choice: u64) -> String {
    let deltas = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
    deltas.filter(|c| c["index"] == choice).filter_map(|c| c["delta"][key].as_str()).collect()
}

#[test]
fn a_stream_and_a_whole_reply_say_the_same_and_are_charged() {
    let lab = Setup::default().start();
    let whole = lab.chat(json!({"max_tokens": 24}));
    assert_eq!(whole.status, 200, "{whole:?}");
    let whole = whole.json();
    assert_eq!((&whole["object"], &whole["model"]), (&json!("chat.completion"), &json!("tiny")));
    let streamed = lab.chat(json!({"max_tokens": 24, "stream": true, "stream_options": {"include_usage": true}}));
    let events = streamed.events();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(text(&events, "content", 0), whole["choices"][0]["message"]["content"]);
    let last = events.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    let finish = events.iter().rev().find_map(|event| event["choices"][0]["finish_reason"].as_str());
    assert_eq!(finish, whole["choices"][0]["finish_reason"].as_str());
    for (usage, entry) in [&whole["usage"], &last["usage"]].into_iter().zip(lab.settled()) {
        let count = |name: &str| usage[name].as_u64().unwrap();
        assert!(lab.settled().iter().any(|e| e.tokens.output == count("completion_tokens")));
        assert_eq!(count("prompt_tokens"), count("prompt_cache_hit_tokens") + count("prompt_cache_miss_tokens"));
        assert_eq!(entry.outcome.as_deref(), Some("done"));
        assert!(entry.cost.0 > 0);
    }
    // Without include_usage the usage stands in the event that ends the answer, as DeepSeek has it.
    let events = lab.chat(json!({"max_tokens": 4, "stream": true})).events();
    assert!(events.last().unwrap()["usage"]["prompt_tokens"].is_u64());
}

#[test]
fn thinking_comes_apart_from_the_answer() {
    let lab = Setup::thinking().start();
    let message = &lab.chat(json!({"max_tokens": 30})).json();
    // A random model never closes its thinking; everything is reasoning.
    assert!(message["choices"][0]["message"]["reasoning_content"].is_string(), "{message}");
    assert_eq!(message["choices"][0]["message"]["content"], "");
    let details = &message["usage"]["completion_tokens_details"];
    assert!(details["reasoning_tokens"].as_u64().unwrap() > 0);
    let events = lab.chat(json!({"max_tokens": 30, "stream": true})).events();
    assert_eq!(text(&events, "reasoning_content", 0), message["choices"][0]["message"]["reasoning_content"]);
}

#[test]
fn several_answers_differ_and_are_counted_once_for_the_prompt() {
    let lab = Setup::default().start();
    let one = lab.chat(json!({"max_tokens": 16})).json();
    let three = lab.chat(json!({"max_tokens": 16, "n": 3})).json();
    let content = |at: usize| three["choices"][at]["message"]["content"].clone();
    assert_eq!(one["choices"][0]["message"]["content"], content(0), "the first answer does not depend on n");
    assert!(content(0) != content(1) && content(1) != content(2));
    assert_eq!(one["usage"]["prompt_tokens"], three["usage"]["prompt_tokens"]);
    let events = lab.chat(json!({"max_tokens": 16, "n": 3, "stream": true})).events();
    for at in 0..3 {
        assert_eq!(text(&events, "content", at), content(at as usize));
    }
}

#[test]
fn the_same_seed_gives_the_same_and_another_one_another() {
    let lab = Setup::default().start();
    let answer = |seed: u64| lab.chat(json!({"max_tokens": 24, "seed": seed})).json()["choices"][0].clone();
    assert_eq!(answer(1), answer(1));
    assert_ne!(answer(1), answer(2));
}

#[test]
fn log_probabilities_are_those_of_the_text() {
    let lab = Setup::default().start();
    let body = json!({"max_tokens": 12, "logprobs": true, "top_logprobs": 3});
    let whole = lab.chat(body).json();
    let tokens = whole["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    let bytes: Vec<u8> = tokens
        .iter()
        .flat_map(|token| token["bytes"].as_array().unwrap())
        .map(|byte| byte.as_u64().unwrap() as u8)
        .collect();
    assert_eq!(String::from_utf8_lossy(&bytes), whole["choices"][0]["message"]["content"].as_str().unwrap());
    for token in &tokens {
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 3);
    }
    let events = lab.chat(json!({"max_tokens": 12, "logprobs": true, "top_logprobs": 3, "stream": true})).events();
    let streamed: Vec<Value> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(streamed, tokens);
    let plain = lab
        .post("/v1/completions", &json!({"model": "tiny", "prompt": "a", "max_tokens": 5, "logprobs": 2, "seed": 1}));
    assert_eq!(plain.json()["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), 5);
}

#[test]
fn json_keeps_to_its_schema() {
    let lab = Setup::default().start();
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
        "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "s", "schema": schema}});
    let reply = lab.chat(json!({"response_format": format, "max_tokens": 60})).json();
    let content = reply["choices"][0]["message"]["content"].as_str().unwrap();
    if reply["choices"][0]["finish_reason"] == "stop" {
        let value: Value = serde_json::from_str(content).unwrap();
        assert!(value["ok"].is_boolean(), "{value}");
    } else {
        assert!(content.trim_start().starts_with('{'), "{content}");
    }
    let wrong = json!({"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "nothing"}}});
    let refused = lab.chat(json!({"response_format": wrong}));
    assert_eq!((refused.status, refused.param().as_str()), (400, "response_format"), "{refused:?}");
}

#[test]
fn a_tool_that_has_to_be_called_is() {
    let lab = Setup::default().start();
    let parameters = json!({"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"],
        "additionalProperties": false});
    let tools = json!([{"type": "function", "function": {"name": "switch", "parameters": parameters}}]);
    let body = json!({"tools": tools, "tool_choice": "required", "max_tokens": 200, "temperature": 0});
    let reply = lab.chat(body.clone()).json();
    let choice = &reply["choices"][0];
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "switch", "{reply}");
    if choice["finish_reason"] == "tool_calls" {
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        assert!(arguments["on"].is_boolean());
    }
    let mut streaming = body;
    streaming["stream"] = json!(true);
    let events = lab.chat(streaming).events();
    let parts = events.iter().filter_map(|event| event["choices"][0]["delta"]["tool_calls"][0]["function"].as_object());
    let arguments: String = parts.filter_map(|part| part["arguments"].as_str()).collect();
    assert_eq!(arguments, call["function"]["arguments"]);
}

#[test]
fn texts_go_on_and_are_filled_in() {
    let lab = Setup::default().start();
    let post = |more: Value| -> Response {
        let mut body = json!({"model": "tiny", "prompt": "a fish", "max_tokens": 8, "seed": 1});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        lab.post("/beta/completions", &body)
    };
    let plain = post(json!({})).json();
    let filled = post(json!({"suffix": " and another"})).json();
    assert_ne!(plain["choices"][0]["text"], filled["choices"][0]["text"]);
    let several = post(json!({"prompt": ["a fish", "the fish"]})).json();
    assert_eq!(several["choices"][0]["text"], plain["choices"][0]["text"]);
    assert_eq!(several["choices"].as_array().unwrap().len(), 2);
    let streamed = post(json!({"stream": true})).events();
    let text: String = streamed.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, plain["choices"][0]["text"]);
}

#[test]
fn a_prefix_is_continued() {
    let lab = Setup::default().start();
    let messages = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "the ", "prefix": true}]);
    let body = json!({"model": "tiny", "messages": messages, "max_tokens": 4});
    assert_eq!(lab.post("/beta/chat/completions", &body).status, 200);
    let elsewhere = lab.post("/v1/chat/completions", &body);
    assert_eq!((elsewhere.status, elsewhere.param().as_str()), (400, "messages[1].prefix"));
}

#[test]
fn who_may_not_is_told_so() {
    let lab = Setup::default().start();
    let body = crate::lab::chat_body(json!({})).to_string();
    for key in ["", "wrong", "wels-0000"] {
        let refused = lab.request("POST", "/v1/chat/completions", key, body.as_bytes());
        assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (401, Some("invalid_api_key")));
    }
    for (path, status) in [("/v1/models", 200), ("/user/balance", 200), ("/metrics", 403)] {
        assert_eq!(lab.request("GET", path, "wrong", b"").status, 401, "{path}");
        assert_eq!(lab.get(path).status, status, "{path}");
    }
    lab.ledger().revoke_key("test", 1).unwrap();
    assert_eq!(lab.get("/v1/models").status, 401);
}

#[test]
fn what_is_not_there_is_an_error_of_the_same_shape() {
    let lab = Setup::default().start();
    let other = lab.chat(json!({"model": "gpt-4"}));
    assert_eq!((other.status, other.param().as_str()), (404, "model"));
    assert_eq!(lab.get("/v1/nothing").status, 404);
    assert_eq!(lab.get("/v1/chat/completions").status, 405);
    for path in ["/v1/nothing", "/v1/chat/completions"] {
        assert!(lab.get(path).json()["error"]["message"].is_string());
    }
    let models = lab.get("/models").json();
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(lab.get("/v1/models/tiny").json()["id"], "tiny");
    for name in ["%ff", "a%ff%fe", "other", "%00"] {
        let missing = lab.get(&format!("/v1/models/{name}"));
        assert_eq!(missing.status, 404, "{name}");
        assert!(missing.json()["error"]["code"].is_string(), "{name}");
    }
    assert_eq!(lab.get("/health").json()["status"], "ok");
    assert!(lab.metrics().contains("wels_engine_steps_total"));
    assert!(lab.get("/health").header("access-control-allow-origin").is_none());
}
