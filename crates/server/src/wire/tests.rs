//! What is taken, what is refused, and by which name.

use serde_json::{Value, json};

use super::*;

fn chat(body: Value) -> Result<ChatRequest, ApiError> {
    ChatRequest::parse(body.to_string().as_bytes(), false).map(|(request, _)| request)
}

/// A least request, with more fields.
fn with(more: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn tool() -> Value {
    json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}})
}

#[test]
fn a_least_request_has_openais_defaults() {
    let request = chat(with(json!({"user": "me", "seed": null, "store": false}))).unwrap();
    assert_eq!((request.sampling.temperature, request.sampling.n, request.sampling.seed), (1.0, 1, None));
    assert_eq!((request.streams, request.logprobs, request.format), (false, None, Format::Text));
    assert_eq!(request.messages[0].content, "hi");
}

#[test]
fn what_is_wrong_is_named() {
    let cases = [
        (json!({"sed": 1}), "sed"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"seed": "1"}), "seed"),
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"n": 0}), "n"),
        (json!({"n": 17}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": 1, "max_completion_tokens": 2}), "max_tokens"),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": [1]}), "stop"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream": true, "stream_options": {"include_usages": true}}), "stream_options.include_usages"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias.x"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias.1"),
        (json!({"tools": [tool()], "tool_choice": "always"}), "tool_choice"),
        (json!({"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "g"}}}), "tool_choice"),
        (json!({"tools": [tool(), tool()]}), "tools[1]"),
        (json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}), "tools[0].function.name"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (
            json!({"response_format": {"type": "json_object"}, "tools": [tool()], "tool_choice": "required"}),
            "tool_choice",
        ),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"reasoning_effort": "extreme"}), "reasoning_effort"),
        (json!({"thinking": {"type": "perhaps"}}), "thinking.type"),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 0}}), "thinking.budget_tokens"),
        (json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs.messages"),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
        (json!({"audio": {"voice": "x"}}), "audio"),
        (json!({"web_search_options": {"user_location": 1}}), "web_search_options"),
        (json!({"functions": [{"name": "f"}], "tools": [tool()]}), "functions"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "king", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": "x", "mood": 1}]}), "messages[0].mood"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages[0].content[0].image_url",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "prefix": true}]}),
            "messages[1].prefix",
        ),
    ];
    for (more, param) in cases {
        let error = chat(with(more.clone())).expect_err(&more.to_string());
        assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{more}: {}", error.message);
    }
    assert_eq!(chat(json!({"messages": [{"role": "user", "content": "x"}]})).unwrap_err().param.unwrap(), "model");
}

#[test]
fn hostile_bodies_are_errors() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let bodies: [&[u8]; 7] = [
        b"",
        b"{",
        b"[]",
        deep.as_bytes(),
        b"{\"model\": \"\xff\xfe\"}",
        b"{\"model\": \"a\", \"model\": \"b\"}",
        b"{\"seed\": 1e999}",
    ];
    for body in bodies {
        assert_eq!(ChatRequest::parse(body, false).unwrap_err().status, 400);
        assert_eq!(CompletionRequest::parse(body).unwrap_err().status, 400);
        assert_eq!(messages::parse(body).unwrap_err().status, 400);
        assert_eq!(responses::parse(body).err().unwrap().status, 400);
    }
}

#[test]
fn messages_keep_what_templates_need() {
    let request = chat(json!({"model": "m", "messages": [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "x", "name": "Ann"},
        {"role": "assistant", "content": null, "refusal": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]}))
    .unwrap();
    assert_eq!((request.messages[0].role.as_str(), &request.messages[0].content), ("system", &json!("ab")));
    assert_eq!(request.messages[1].other["name"], "Ann");
    assert_eq!(request.messages[2].other["tool_calls"][0]["function"]["arguments"], "{}");
    assert_eq!(request.messages[3].other["tool_call_id"], "1");
}

#[test]
fn a_prefix_is_for_the_beta_address() {
    let body = json!({"model": "m", "messages": [
        {"role": "user", "content": "x"}, {"role": "assistant", "content": "```rust\n", "prefix": true}]});
    let (request, _) = ChatRequest::parse(body.to_string().as_bytes(), true).unwrap();
    assert_eq!((request.messages.len(), request.prefix.unwrap().content.as_str()), (1, "```rust\n"));
}

#[test]
fn prompts_come_in_four_forms() {
    let prompts = |prompt: Value| {
        let body = json!({"model": "m", "prompt": prompt}).to_string();
        CompletionRequest::parse(body.as_bytes()).map(|request| request.prompts)
    };
    let text = |text: &str| Prompt::Text(text.to_owned());
    assert_eq!(prompts(json!("a")).unwrap(), [text("a")]);
    assert_eq!(prompts(json!(["a", "b"])).unwrap(), [text("a"), text("b")]);
    assert_eq!(prompts(json!([1, 2])).unwrap(), [Prompt::Ids(vec![1, 2])]);
    assert_eq!(prompts(json!([[1], "b"])).unwrap(), [Prompt::Ids(vec![1]), text("b")]);
    for wrong in [json!([]), json!([1, "a"]), json!([-1]), json!(4), json!([null])] {
        assert_eq!(prompts(wrong).unwrap_err().param.as_deref(), Some("prompt"));
    }
}

#[test]
fn an_error_has_openais_shape() {
    let error = ApiError::param("seed", "No.").to_json();
    let expected = json!({"error": {"message": "No.", "type": "invalid_request_error", "param": "seed",
        "code": "invalid_value"}});
    assert_eq!(error, expected);
}

fn thought(request: ChatRequest) -> Option<String> {
    let message = request.messages.iter().find(|message| message.role == "assistant").expect("an answer");
    message.other.get("reasoning_content").map(|text| text.as_str().unwrap().to_owned())
}

#[test]
fn efforts_are_budgets_and_thinking_comes_first() {
    let thinking = |more: Value| chat(with(more)).unwrap().thinking;
    for (word, on, budget) in [
        ("none", false, None),
        ("minimal", true, Some(512)),
        ("low", true, Some(2048)),
        ("medium", true, Some(8192)),
        ("high", true, None),
    ] {
        let expected = Thinking { on: Some(on), budget, effort: Some(word) };
        assert_eq!(thinking(json!({"reasoning_effort": word})), expected);
        let body = json!({"model": "m", "input": "a", "reasoning": {"effort": word}}).to_string();
        assert_eq!(responses::parse(body.as_bytes()).unwrap().0.thinking, expected);
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "a"}],
            "output_config": {"effort": word}});
        assert_eq!(messages::parse(body.to_string().as_bytes()).unwrap().thinking, expected);
    }
    let both = json!({"reasoning_effort": "none", "thinking": {"type": "enabled", "budget_tokens": 7}});
    assert_eq!((thinking(both.clone()).on, thinking(both).budget), (Some(true), Some(7)));
}

#[test]
fn earlier_thinking_stays_where_tools_were_called() {
    let call = json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    let answer = |more: Value| {
        let mut answer = json!({"role": "assistant", "content": "x", "reasoning_content": "hm"});
        answer.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        chat(with(json!({"messages": [{"role": "user", "content": "a"}, answer, {"role": "user", "content": "b"}]})))
    };
    assert_eq!(thought(answer(json!({"tool_calls": call})).unwrap()), Some("hm".to_owned()));
    assert_eq!(thought(answer(json!({})).unwrap()), None);
    for called in [true, false] {
        let mut blocks = vec![json!({"type": "thinking", "thinking": "hm", "signature": "s"})];
        let use_tool = json!({"type": "tool_use", "id": "1", "name": "f", "input": {}});
        blocks.push(if called { use_tool } else { json!({"type": "text", "text": "x"}) });
        let result = json!([{"type": "tool_result", "tool_use_id": "1", "content": "y"}]);
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "a"},
            {"role": "assistant", "content": blocks}, {"role": "user", "content": result}]});
        let request = messages::parse(body.to_string().as_bytes()).unwrap();
        assert_eq!(thought(request), called.then(|| "hm".to_owned()));
        let said = json!({"type": "message", "role": "assistant", "content": "x"});
        let call = json!({"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"});
        let reasoning =
            json!({"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]});
        let output = json!({"type": "function_call_output", "call_id": "1", "output": "y"});
        let items = json!([{"role": "user", "content": "a"}, reasoning, if called { call } else { said }, output]);
        let body = json!({"model": "m", "input": items}).to_string();
        assert_eq!(thought(responses::parse(body.as_bytes()).unwrap().0), called.then(|| "hm".to_owned()));
    }
}

#[test]
fn tools_that_are_not_known_are_left_out_or_named() {
    let body =
        json!({"model": "m", "input": "a", "tools": [{"type": "web_search"}, {"type": "function", "name": "f"}]});
    let (request, _) = responses::parse(body.to_string().as_bytes()).unwrap();
    assert_eq!(request.tools.iter().map(|tool| tool.name.as_str()).collect::<Vec<_>>(), ["f"]);
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "a"}],
        "tools": [{"type": "web_search_20250305", "name": "web_search"}]});
    assert_eq!(messages::parse(body.to_string().as_bytes()).unwrap_err().param.unwrap(), "tools[0].type");
}
