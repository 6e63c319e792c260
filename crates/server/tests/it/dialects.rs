//! OpenAI's Responses and Anthropic's Messages: the conversation and the answer are those of chat completions.

use serde_json::{Value, json};

use crate::lab::{Lab, Response, Setup};

const ANSWER: u32 = 24;
/// Knows of thinking, and begins none.
const MAY_THINK: &str = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}\n{% endfor %}";

fn post(lab: &Lab, path: &str, mut body: Value, more: Value) -> Response {
    body["model"] = json!("tiny");
    body["seed"] = json!(7);
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    lab.post(path, &body)
}

fn responses(lab: &Lab, more: Value) -> Response {
    post(lab, "/v1/responses", json!({"input": "a fish", "max_output_tokens": ANSWER}), more)
}

fn messages(lab: &Lab, more: Value) -> Response {
    let messages = json!([{"role": "user", "content": "a fish"}]);
    post(lab, "/v1/messages", json!({"messages": messages, "max_tokens": ANSWER}), more)
}

/// The events of a stream with names, each with its data.
fn named_events(response: &Response) -> Vec<(String, Value)> {
    let events = response.body.split("\n\n").filter(|event| event.starts_with("event: "));
    let event = |event: &str| {
        let (name, data) = event.split_once("\ndata: ").unwrap();
        (name.trim_start_matches("event: ").to_owned(), serde_json::from_str(data).unwrap())
    };
    events.map(event).collect()
}

fn schema() -> Value {
    json!({"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"],
        "additionalProperties": false})
}

#[test]
fn three_apis_give_one_answer() {
    let lab = Setup::default().start();
    let chat = lab.chat(json!({"max_tokens": ANSWER})).json();
    let text = &chat["choices"][0]["message"]["content"];

    let whole = responses(&lab, json!({})).json();
    assert_eq!(whole["output"][0]["content"][0]["text"], *text, "{whole}");
    assert_eq!((&whole["object"], &whole["status"]), (&json!("response"), &json!("incomplete")));
    assert_eq!(whole["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(whole["usage"]["output_tokens"], chat["usage"]["completion_tokens"]);
    assert_eq!(whole["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);

    let whole = messages(&lab, json!({})).json();
    assert_eq!(whole["content"][0], json!({"type": "text", "text": text}), "{whole}");
    assert_eq!((&whole["type"], &whole["stop_reason"]), (&json!("message"), &json!("max_tokens")));
    let usage = &whole["usage"];
    let input = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(json!(input), chat["usage"]["prompt_tokens"]);
    let counted = post(
        &lab,
        "/v1/messages/count_tokens",
        json!({"messages": [{"role": "user", "content": "a fish"}]}),
        json!({}),
    );
    assert_eq!(counted.json(), json!({"input_tokens": input}));
    assert_eq!(lab.settled().len(), 3, "counting is no request for an answer");
}

#[test]
fn a_stream_of_responses_builds_up_its_reply() {
    let lab = Setup::default().start();
    let whole = responses(&lab, json!({})).json();
    let streamed = responses(&lab, json!({"stream": true, "stream_options": {"include_obfuscation": false}}));
    let events = named_events(&streamed);
    for (at, (name, data)) in events.iter().enumerate() {
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(name), &json!(at)));
    }
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names[..4],
        ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    );
    let ends =
        ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete"];
    assert_eq!(names[names.len() - 4..], ends);
    let deltas = events.iter().filter(|(name, _)| name == "response.output_text.delta");
    let text: String = deltas.map(|(_, data)| data["delta"].as_str().unwrap()).collect();
    assert_eq!(text, whole["output"][0]["content"][0]["text"].as_str().unwrap());
    let last = &events.last().unwrap().1["response"];
    assert_eq!(last["output"][0]["content"], whole["output"][0]["content"]);
    assert_eq!(last["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
}

#[test]
fn a_stream_of_messages_builds_up_its_reply() {
    let lab = Setup::thinking().start();
    let whole = messages(&lab, json!({})).json();
    assert_eq!(whole["content"][0]["type"], "thinking", "{whole}");
    let events = named_events(&messages(&lab, json!({"stream": true})));
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..2], ["message_start", "content_block_start"]);
    assert_eq!(names[names.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    let thinking: String = events.iter().filter_map(|(_, data)| data["delta"]["thinking"].as_str()).collect();
    assert_eq!(thinking, whole["content"][0]["thinking"].as_str().unwrap());
    let signed = events.iter().find(|(_, data)| data["delta"]["type"] == "signature_delta");
    assert_eq!(signed.unwrap().1["delta"]["signature"], whole["content"][0]["signature"]);
    let end = &events[events.len() - 2].1;
    assert_eq!((&end["delta"]["stop_reason"], &end["usage"]["output_tokens"]), (&json!("max_tokens"), &json!(ANSWER)));
}

#[test]
fn thinking_is_switched_off_and_kept_short() {
    let lab = Setup::thinking().start();
    for off in [
        json!({"thinking": {"type": "disabled"}}),
        json!({"reasoning_effort": "none"}),
        json!({"chat_template_kwargs": {"enable_thinking": false}}),
        json!({"thinking": {"type": "disabled"}, "reasoning_effort": "high"}),
    ] {
        let reply = lab.chat(off.clone()).json();
        assert_eq!(reply["choices"][0]["message"]["reasoning_content"], Value::Null, "{off}");
        assert_eq!(reply["usage"]["completion_tokens_details"]["reasoning_tokens"], 0);
    }
    let off = messages(&lab, json!({"thinking": {"type": "disabled"}})).json();
    assert_eq!(off["content"][0]["type"], "text");
    let off = responses(&lab, json!({"reasoning": {"effort": "none"}})).json();
    assert_eq!(off["output"][0]["type"], "message");
    // A budget or a word asks for thinking where the template leaves it to the model.
    let opened = Setup { template: MAY_THINK, ..Setup::default() }.start();
    let first = |more: Value| opened.chat(more).json()["choices"][0]["message"]["reasoning_content"].clone();
    assert!(first(json!({"thinking": {"type": "enabled"}})).is_string());
    assert!(first(json!({"thinking": {"type": "disabled"}})).is_null());
    // A model of random weights would not end it by itself.
    for budget in [5, 9] {
        let thinking = json!({"type": "enabled", "budget_tokens": budget});
        let reply = messages(&lab, json!({"thinking": thinking, "max_tokens": 40})).json();
        let kinds: Vec<&Value> = reply["content"].as_array().unwrap().iter().map(|block| &block["type"]).collect();
        assert_eq!(kinds, ["thinking", "text"], "{reply}");
        let chat = lab.chat(json!({"thinking": thinking, "max_tokens": 40})).json();
        assert_eq!(chat["usage"]["completion_tokens_details"]["reasoning_tokens"], budget + 1, "{chat}");
        assert_ne!(chat["choices"][0]["message"]["content"], "");
    }
}

#[test]
fn a_format_is_kept_behind_the_thinking() {
    let lab = Setup::thinking().start();
    let format = json!({"type": "json_schema", "json_schema": {"name": "s", "schema": schema()}});
    let thinking = json!({"type": "enabled", "budget_tokens": 6});
    let body = json!({"response_format": format, "thinking": thinking, "max_tokens": 120, "temperature": 0.5});
    let reply = lab.chat(body).json();
    let message = &reply["choices"][0]["message"];
    assert!(message["reasoning_content"].as_str().is_some_and(|text| !text.is_empty()), "{reply}");
    let answer: Value = serde_json::from_str(message["content"].as_str().unwrap()).unwrap();
    assert!(answer["on"].is_boolean());
}

#[test]
fn calls_come_in_each_apis_form() {
    let lab = Setup::default().start();
    let long = json!({"temperature": 0});
    let tools = json!([
        {"type": "function", "name": "switch", "parameters": schema()},
        {"type": "web_search"},
        {"type": "custom", "name": "patch", "description": "Changes files", "format": {"type": "text"}},
        {"type": "namespace", "name": "mcp__files", "tools": [{"type": "function", "name": "read", "parameters": schema()}]},
    ]);
    let call = |choice: Value| {
        let mut body = json!({"tools": tools, "tool_choice": choice, "max_output_tokens": 200});
        body.as_object_mut().unwrap().extend(long.as_object().unwrap().clone());
        let whole = responses(&lab, body.clone()).json();
        body["stream"] = json!(true);
        let events = named_events(&responses(&lab, body));
        let done = events.iter().find(|(name, _)| name == "response.output_item.done").unwrap().1["item"].clone();
        for key in ["type", "name", "namespace", "arguments", "input"] {
            assert_eq!(done[key], whole["output"][0][key], "{key}");
        }
        whole["output"][0].clone()
    };
    let switch = call(json!({"type": "function", "name": "switch"}));
    assert_eq!((&switch["type"], &switch["name"]), (&json!("function_call"), &json!("switch")), "{switch}");
    let arguments: Value = serde_json::from_str(switch["arguments"].as_str().unwrap()).unwrap();
    assert!(arguments["on"].is_boolean());
    let patch = call(json!({"type": "custom", "name": "patch"}));
    assert_eq!((&patch["type"], patch["input"].is_string()), (&json!("custom_tool_call"), true), "{patch}");
    let read = call(json!({"type": "function", "name": "mcp__files__read"}));
    assert_eq!((&read["namespace"], &read["name"]), (&json!("mcp__files"), &json!("read")));

    let tools = json!([{"name": "switch", "input_schema": schema(), "cache_control": {"type": "ephemeral"}}]);
    let body = json!({"tools": tools, "tool_choice": {"type": "any", "disable_parallel_tool_use": true}, "max_tokens": 200, "temperature": 0});
    let reply = messages(&lab, body).json();
    assert_eq!(
        (&reply["content"][0]["type"], &reply["stop_reason"]),
        (&json!("tool_use"), &json!("tool_use")),
        "{reply}"
    );
    assert!(reply["content"][0]["input"]["on"].is_boolean());

    let functions = json!([{"name": "switch", "parameters": schema()}]);
    let body =
        json!({"functions": functions, "function_call": {"name": "switch"}, "max_tokens": 200, "temperature": 0});
    let reply = lab.chat(body).json();
    let choice = &reply["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["function_call"]["name"]),
        (&json!("function_call"), &json!("switch"))
    );
}

/// The second turn of an agent: its prompt begins with what was computed for the first.
#[test]
fn a_second_turn_finds_the_first_in_the_cache() {
    let lab = Setup::default().start();
    let system = "You are a fish. ".repeat(40);
    let tools = json!([{"name": "switch", "input_schema": schema()}]);
    let mut before = 0;
    for (turn, billing) in [(0, "a"), (1, "b"), (2, "c")] {
        let header = format!("x-anthropic-billing-header: cc_version={billing};");
        let system = json!([{"type": "text", "text": header}, {"type": "text", "text": system}]);
        let mut talk = vec![json!({"role": "user", "content": "a fish"})];
        for at in 0..turn {
            let id = format!("c{at}");
            talk.push(json!({"role": "assistant", "content": [{"type": "tool_use", "id": id, "name": "switch", "input": {"on": true}}]}));
            talk.push(
                json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": "on"}]}),
            );
        }
        let usage = messages(&lab, json!({"system": system, "messages": talk, "tools": tools, "max_tokens": 2})).json()
            ["usage"]
            .clone();
        let all = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
        // All of it but the page that was not full.
        let hit = usage["cache_read_input_tokens"].as_u64().unwrap();
        assert!(hit + 2 * 16 >= before, "{usage}, and {before} before");
        before = all;
    }
}

#[test]
fn errors_are_in_each_apis_shape() {
    let lab = Setup::default().start();
    let wrong = messages(&lab, json!({"temperature": 9}));
    assert_eq!((wrong.status, &wrong.json()["error"]["type"]), (400, &json!("invalid_request_error")));
    assert!(wrong.json()["error"]["message"].as_str().unwrap().contains("temperature"));
    let other = messages(&lab, json!({"model": "claude"}));
    assert_eq!((other.status, &other.json()["error"]["type"]), (404, &json!("not_found_error")));
    let stored = responses(&lab, json!({"previous_response_id": "resp_1"}));
    assert_eq!((stored.status, stored.param().as_str()), (400, "previous_response_id"));
    for address in ["/messages", "/anthropic/messages", "/anthropic/v1/messages"] {
        let body = json!({"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "a"}]});
        assert_eq!(lab.post(address, &body).status, 200, "{address}");
    }
    let key = lab.key.clone();
    let mut stream = lab.connect();
    let body = json!({"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "a"}]}).to_string();
    let head = format!(
        "POST /v1/messages HTTP/1.1\r\nHost: t\r\nConnection: close\r\nX-Api-Key: {key}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    std::io::Write::write_all(&mut stream, (head + &body).as_bytes()).unwrap();
    assert_eq!(Response::read(stream).status, 200);
}

#[test]
fn texts_have_vectors() {
    let lab = Setup::default().start();
    let post = |more: Value| post(&lab, "/v1/embeddings", json!({}), more);
    let ask = |input: Value| {
        let mut body = json!({"model": "tiny", "input": input});
        body["encoding_format"] = json!("float");
        lab.post("/v1/embeddings", &body)
    };
    let two = ask(json!(["a fish", "another fish ".repeat(60)])).json();
    let vector = |value: &Value| -> Vec<f64> {
        value["embedding"].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    };
    for entry in two["data"].as_array().unwrap() {
        let length: f64 = vector(entry).iter().map(|number| number * number).sum();
        assert!((length - 1.0).abs() < 1e-6 && vector(entry).len() == 24, "{entry}");
    }
    // Alone, beside others, and once the cache holds its beginning: the same.
    assert_eq!(ask(json!("a fish")).json()["data"][0]["embedding"], two["data"][0]["embedding"]);
    assert_eq!(ask(json!("another fish ".repeat(60))).json()["data"][0]["embedding"], two["data"][1]["embedding"]);
    let coded = lab.post("/v1/embeddings", &json!({"model": "tiny", "input": "a fish", "encoding_format": "base64"}));
    assert_eq!(coded.json()["data"][0]["embedding"].as_str().unwrap().len(), (24 * 4_usize).div_ceil(3) * 4);
    assert_eq!(two["usage"]["prompt_tokens"], two["usage"]["total_tokens"]);
    let entries = lab.settled();
    assert!(entries.iter().all(|entry| entry.tokens.output == 0 && entry.tokens.miss > 0 && entry.cost.0 > 0));
    for (wrong, param) in [
        (json!({"input": ""}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": "x", "dimensions": 3}), "dimensions"),
        (json!({"input": "x", "encoding_format": "hex"}), "encoding_format"),
        (json!({"input": "a fish ".repeat(3000)}), "input"),
    ] {
        let mut body = json!({"model": "tiny"});
        body.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
        let refused = lab.post("/v1/embeddings", &body);
        assert_eq!((refused.status, refused.param().as_str()), (400, param), "{wrong}");
    }
    assert_eq!(post(json!({"input": "x"})).status, 400, "a seed is nothing for it");
}
