//! The reply of Responses: a list of items that a stream builds up, event by event.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::tools::{CUSTOM_INPUT, Names, ToolKind};
use crate::answer::JsonStringArgument;
use crate::money::Tokens;
use crate::wire::ApiError;
use crate::wire::reply::{
    AnswerEnd, CallDelta, ChatDelta, Choice, ChoiceLogprobs, Head, Reply, StreamEvent, TokenLogprob, UsageCounts,
};

/// What stands before reasoning that was encoded for the way to the client and back. It is no secret of the server's:
/// the client sees its text, too.
const ENCODED: &str = "wels:";

pub(super) fn decode_reasoning(encoded: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(encoded.strip_prefix(ENCODED)?).ok()?).ok()
}

/// Writes the reply to one request.
pub struct ResponsesReply {
    /// Fields of the request that the reply repeats.
    echo: Map<String, Value>,
    names: Names,
    /// Whether reasoning comes encoded, too.
    encodes: bool,
    sequence: u64,
    /// As far as they have come; the last one may be open.
    items: Vec<Value>,
    open: Option<OpenItem>,
}

enum OpenItem {
    Reasoning(String),
    Message { text: String, logprobs: Vec<Value> },
    Function(String),
    Custom { input: String, argument: JsonStringArgument },
}

impl ResponsesReply {
    pub(super) fn new(echo: Map<String, Value>, names: Names, encodes: bool) -> ResponsesReply {
        ResponsesReply { echo, names, encodes, sequence: 0, items: Vec::new(), open: None }
    }

    fn event(&mut self, name: &'static str, mut value: Value) -> StreamEvent {
        value["type"] = name.into();
        value["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        StreamEvent::Named(name, value)
    }

    /// The place of the open item.
    fn place(&self) -> usize {
        self.items.len().saturating_sub(1)
    }

    /// An event about the open item; `content`: about its part.
    fn of_item(&mut self, name: &'static str, content: bool, mut value: Value) -> StreamEvent {
        let place = self.place();
        value["item_id"] = self.items[place]["id"].clone();
        value["output_index"] = place.into();
        if content {
            value["content_index"] = 0.into();
        }
        self.event(name, value)
    }

    fn begin_item(&mut self, head: &Head, prefix: &str, item: Value, open: OpenItem, events: &mut Vec<StreamEvent>) {
        self.end_item("completed", events);
        let place = self.items.len();
        let mut item = item;
        item["id"] = format!("{prefix}_{}_{place}", head.id.trim_start_matches("resp_")).into();
        item["status"] = "in_progress".into();
        self.items.push(item.clone());
        events.push(self.event("response.output_item.added", json!({"output_index": place, "item": item})));
        let part = match &open {
            OpenItem::Message { .. } => Some(text_part("", &[])),
            OpenItem::Reasoning(_) => Some(json!({"type": "reasoning_text", "text": ""})),
            OpenItem::Function(_) | OpenItem::Custom { .. } => None,
        };
        self.open = Some(open);
        if let Some(part) = part {
            events.push(self.of_item("response.content_part.added", true, json!({"part": part})));
        }
    }

    fn end_item(&mut self, status: &str, events: &mut Vec<StreamEvent>) {
        let Some(open) = self.open.take() else { return };
        let place = self.place();
        match open {
            OpenItem::Message { text, logprobs } => {
                let part = text_part(&text, &logprobs);
                let done = json!({"text": text, "logprobs": logprobs});
                events.push(self.of_item("response.output_text.done", true, done));
                events.push(self.of_item("response.content_part.done", true, json!({"part": part})));
                self.items[place]["content"] = json!([part]);
            }
            OpenItem::Reasoning(text) => {
                let part = json!({"type": "reasoning_text", "text": text});
                events.push(self.of_item("response.reasoning_text.done", true, json!({"text": text})));
                events.push(self.of_item("response.content_part.done", true, json!({"part": part})));
                self.items[place]["content"] = json!([part]);
                if self.encodes {
                    let encoded = format!("{ENCODED}{}", STANDARD.encode(&text));
                    self.items[place]["encrypted_content"] = encoded.into();
                }
            }
            OpenItem::Function(arguments) => {
                let done = json!({"arguments": arguments, "name": self.items[place]["name"]});
                events.push(self.of_item("response.function_call_arguments.done", false, done));
                self.items[place]["arguments"] = arguments.into();
            }
            OpenItem::Custom { input, .. } => {
                let done = json!({"input": input});
                events.push(self.of_item("response.custom_tool_call_input.done", false, done));
                self.items[place]["input"] = input.into();
            }
        }
        self.items[place]["status"] = status.into();
        let item = self.items[place].clone();
        events.push(self.event("response.output_item.done", json!({"output_index": place, "item": item})));
    }

    fn text(&mut self, head: &Head, text: &str, logprobs: Option<&ChoiceLogprobs>, events: &mut Vec<StreamEvent>) {
        if !matches!(self.open, Some(OpenItem::Message { .. })) {
            let item = json!({"type": "message", "role": "assistant", "content": []});
            let open = OpenItem::Message { text: String::new(), logprobs: Vec::new() };
            self.begin_item(head, "msg", item, open, events);
        }
        let tokens = logprobs.map(|logprobs| logprobs.tokens.as_slice()).unwrap_or_default();
        let tokens: Vec<Value> = tokens.iter().filter(|token| !token.reasoning).map(TokenLogprob::to_json).collect();
        if let Some(OpenItem::Message { text: whole, logprobs }) = &mut self.open {
            whole.push_str(text);
            logprobs.extend(tokens.iter().cloned());
        }
        let delta = json!({"delta": text, "logprobs": tokens});
        events.push(self.of_item("response.output_text.delta", true, delta));
    }

    fn reasoning(&mut self, head: &Head, text: &str, events: &mut Vec<StreamEvent>) {
        if !matches!(self.open, Some(OpenItem::Reasoning(_))) {
            let item = json!({"type": "reasoning", "summary": [], "content": []});
            self.begin_item(head, "rs", item, OpenItem::Reasoning(String::new()), events);
        }
        if let Some(OpenItem::Reasoning(whole)) = &mut self.open {
            whole.push_str(text);
        }
        events.push(self.of_item("response.reasoning_text.delta", true, json!({"delta": text})));
    }

    fn call(&mut self, head: &Head, id: &str, name: &str, events: &mut Vec<StreamEvent>) {
        let mut item = json!({"type": "function_call", "call_id": id, "name": name, "arguments": ""});
        match self.names.get(name) {
            Some(ToolKind::Custom) => {
                let item = json!({"type": "custom_tool_call", "call_id": id, "name": name, "input": ""});
                let argument = JsonStringArgument::new(CUSTOM_INPUT);
                self.begin_item(head, "ctc", item, OpenItem::Custom { input: String::new(), argument }, events);
                return;
            }
            Some(ToolKind::InNamespace { namespace, name }) => {
                item["namespace"] = namespace.clone().into();
                item["name"] = name.clone().into();
            }
            None => {}
        }
        self.begin_item(head, "fc", item, OpenItem::Function(String::new()), events);
    }

    fn arguments(&mut self, text: &str, events: &mut Vec<StreamEvent>) {
        match &mut self.open {
            Some(OpenItem::Function(whole)) => {
                whole.push_str(text);
                events.push(self.of_item("response.function_call_arguments.delta", false, json!({"delta": text})));
            }
            Some(OpenItem::Custom { input, argument }) => {
                let more = argument.push(text);
                input.push_str(&more);
                if !more.is_empty() {
                    events.push(self.of_item("response.custom_tool_call_input.delta", false, json!({"delta": more})));
                }
            }
            _ => {}
        }
    }

    /// The response as far as it has come.
    fn response(&self, head: &Head, status: &str, usage: Option<&UsageCounts>) -> Value {
        let mut response = Value::Object(self.echo.clone());
        let more = json!({
            "id": head.id, "object": "response", "created_at": head.created, "status": status, "model": head.model,
            "output": self.items, "error": null, "incomplete_details": null, "previous_response_id": null,
            "background": false, "store": false, "service_tier": "default", "frequency_penalty": 0.0,
            "presence_penalty": 0.0, "usage": usage.map(usage_json), "system_fingerprint": head.fingerprint,
        });
        let (Value::Object(to), Value::Object(more)) = (&mut response, more) else { unreachable!("both are objects") };
        to.extend(more);
        if status == "incomplete" {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        response
    }

    fn end(&mut self, end: &AnswerEnd, events: &mut Vec<StreamEvent>) -> &'static str {
        let status = if *end == AnswerEnd::Length { "incomplete" } else { "completed" };
        self.end_item(status, events);
        status
    }
}

impl Reply for ResponsesReply {
    fn id_prefix(&self) -> &'static str {
        "resp_"
    }

    fn whole(&mut self, head: &Head, choices: &[Choice], usage: &UsageCounts) -> Value {
        let choice = &choices[0];
        let events = &mut Vec::new();
        if let Some(reasoning) = choice.reasoning.as_ref().filter(|text| !text.is_empty()) {
            self.reasoning(head, reasoning, events);
        }
        if !choice.content.is_empty() || choice.calls.is_empty() {
            self.text(head, &choice.content, choice.logprobs.as_ref(), events);
        }
        for (id, name, arguments) in &choice.calls {
            self.call(head, id, name, events);
            self.arguments(arguments, events);
        }
        let status = self.end(&choice.end, events);
        self.response(head, status, Some(usage))
    }

    fn begin(&mut self, head: &Head, _answers: usize, _prompt_tokens: u64) -> Vec<StreamEvent> {
        let response = self.response(head, "in_progress", None);
        let created = self.event("response.created", json!({"response": response}));
        vec![created, self.event("response.in_progress", json!({"response": response}))]
    }

    fn delta(
        &mut self,
        head: &Head,
        _index: usize,
        delta: &ChatDelta,
        logprobs: Option<&ChoiceLogprobs>,
    ) -> Vec<StreamEvent> {
        let mut events = Vec::new();
        match delta {
            ChatDelta::Content(text) => self.text(head, text, logprobs, &mut events),
            ChatDelta::Reasoning(text) => self.reasoning(head, text, &mut events),
            ChatDelta::Call(CallDelta::Begin { id, name, .. }) => self.call(head, id, name, &mut events),
            ChatDelta::Call(CallDelta::Arguments { text, .. }) => self.arguments(text, &mut events),
        }
        events
    }

    fn finish(&mut self, head: &Head, _index: usize, end: &AnswerEnd, usage: Option<&UsageCounts>) -> Vec<StreamEvent> {
        let mut events = Vec::new();
        let status = self.end(end, &mut events);
        let response = self.response(head, status, usage);
        let name = if status == "incomplete" { "response.incomplete" } else { "response.completed" };
        events.push(self.event(name, json!({"response": response})));
        events
    }

    fn error(&mut self, head: &Head, error: &ApiError) -> Vec<StreamEvent> {
        let mut response = self.response(head, "failed", None);
        let code = error.code.unwrap_or("server_error");
        response["error"] = json!({"code": code, "message": error.message});
        vec![self.event("response.failed", json!({"response": response}))]
    }
}

fn text_part(text: &str, logprobs: &[Value]) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs})
}

fn usage_json(usage: &UsageCounts) -> Value {
    let Tokens { hit, miss, output } = usage.tokens;
    json!({
        "input_tokens": hit + miss, "input_tokens_details": {"cached_tokens": hit},
        "output_tokens": output, "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": hit + miss + output, "cost": usage.cost.to_f64(), "cost_exact": usage.cost.to_string(),
    })
}
