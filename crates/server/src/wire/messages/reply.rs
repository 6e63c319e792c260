//! The reply of Messages: blocks, and the events that build them up.

use serde_json::{Value, json};

use crate::money::Tokens;
use crate::wire::ApiError;
use crate::wire::reply::{
    AnswerEnd, CallDelta, ChatDelta, Choice, ChoiceLogprobs, Head, Reply, StreamEvent, UsageCounts,
};

/// What stands where Anthropic's servers sign their thinking. It is not checked when it comes back.
const SIGNATURE: &str = "wels";

/// Writes the reply to one request.
#[derive(Default)]
pub struct MessagesReply {
    blocks: usize,
    open: Option<Block>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Thinking,
    Text,
    ToolUse,
}

impl MessagesReply {
    fn begin_block(&mut self, kind: Block, block: &Value, events: &mut Vec<StreamEvent>) {
        self.end_block(events);
        self.open = Some(kind);
        events.push(named("content_block_start", json!({"index": self.blocks, "content_block": block})));
    }

    fn end_block(&mut self, events: &mut Vec<StreamEvent>) {
        let Some(kind) = self.open.take() else { return };
        if kind == Block::Thinking {
            events.push(self.delta_event(json!({"type": "signature_delta", "signature": SIGNATURE})));
        }
        events.push(named("content_block_stop", json!({"index": self.blocks})));
        self.blocks += 1;
    }

    fn delta_event(&self, delta: Value) -> StreamEvent {
        named("content_block_delta", json!({"index": self.blocks, "delta": delta}))
    }
}

impl Reply for MessagesReply {
    fn id_prefix(&self) -> &'static str {
        "msg_"
    }

    fn whole(&mut self, head: &Head, choices: &[Choice], usage: &UsageCounts) -> Value {
        let choice = &choices[0];
        let mut content = Vec::new();
        if let Some(thinking) = choice.reasoning.as_ref().filter(|text| !text.is_empty()) {
            content.push(json!({"type": "thinking", "thinking": thinking, "signature": SIGNATURE}));
        }
        if !choice.content.is_empty() {
            content.push(json!({"type": "text", "text": choice.content}));
        }
        for (id, name, arguments) in &choice.calls {
            // Arguments that were cut off are no JSON.
            let input: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
            content.push(json!({"type": "tool_use", "id": id, "name": name, "input": input}));
        }
        let (reason, sequence) = stop(&choice.end);
        let mut message = message(head, content, usage_json(usage));
        message["stop_reason"] = reason.into();
        message["stop_sequence"] = sequence;
        message
    }

    /// How much of the prompt was in the cache is known at the end.
    fn begin(&mut self, head: &Head, _answers: usize, prompt_tokens: u64) -> Vec<StreamEvent> {
        let tokens = Tokens { miss: prompt_tokens, ..Tokens::default() };
        let usage = usage_json(&UsageCounts { tokens, ..UsageCounts::default() });
        vec![named("message_start", json!({"message": message(head, Vec::new(), usage)}))]
    }

    fn delta(
        &mut self,
        _head: &Head,
        _index: usize,
        delta: &ChatDelta,
        _logprobs: Option<&ChoiceLogprobs>,
    ) -> Vec<StreamEvent> {
        let mut events = Vec::new();
        match delta {
            ChatDelta::Reasoning(text) => {
                if self.open != Some(Block::Thinking) {
                    let block = json!({"type": "thinking", "thinking": "", "signature": ""});
                    self.begin_block(Block::Thinking, &block, &mut events);
                }
                events.push(self.delta_event(json!({"type": "thinking_delta", "thinking": text})));
            }
            ChatDelta::Content(text) => {
                if self.open != Some(Block::Text) {
                    self.begin_block(Block::Text, &json!({"type": "text", "text": ""}), &mut events);
                }
                events.push(self.delta_event(json!({"type": "text_delta", "text": text})));
            }
            ChatDelta::Call(CallDelta::Begin { id, name, .. }) => {
                let block = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                self.begin_block(Block::ToolUse, &block, &mut events);
            }
            ChatDelta::Call(CallDelta::Arguments { text, .. }) => {
                events.push(self.delta_event(json!({"type": "input_json_delta", "partial_json": text})));
            }
        }
        events
    }

    fn finish(
        &mut self,
        _head: &Head,
        _index: usize,
        end: &AnswerEnd,
        usage: Option<&UsageCounts>,
    ) -> Vec<StreamEvent> {
        let mut events = Vec::new();
        self.end_block(&mut events);
        let (reason, sequence) = stop(end);
        let usage = usage.map(usage_json);
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
        events.push(named("message_delta", json!({"delta": delta, "usage": usage})));
        events.push(named("message_stop", json!({})));
        events
    }

    fn error(&mut self, _head: &Head, error: &ApiError) -> Vec<StreamEvent> {
        vec![StreamEvent::Named("error", error_json(error))]
    }
}

fn named(name: &'static str, mut value: Value) -> StreamEvent {
    value["type"] = name.into();
    StreamEvent::Named(name, value)
}

fn message(head: &Head, content: Vec<Value>, usage: Value) -> Value {
    json!({"id": head.id, "type": "message", "role": "assistant", "model": head.model, "content": content,
        "stop_reason": null, "stop_sequence": null, "usage": usage})
}

fn stop(end: &AnswerEnd) -> (&'static str, Value) {
    match end {
        AnswerEnd::Stop => ("end_turn", Value::Null),
        AnswerEnd::StopString(stop) => ("stop_sequence", json!(stop)),
        AnswerEnd::Length => ("max_tokens", Value::Null),
        AnswerEnd::ToolCalls => ("tool_use", Value::Null),
    }
}

fn usage_json(usage: &UsageCounts) -> Value {
    let Tokens { hit, miss, output } = usage.tokens;
    json!({"input_tokens": miss, "cache_read_input_tokens": hit, "cache_creation_input_tokens": 0,
        "output_tokens": output, "service_tier": "standard", "cost": usage.cost.to_f64(),
        "cost_exact": usage.cost.to_string()})
}

/// An error in Anthropic's shape.
pub fn error_json(error: &ApiError) -> Value {
    let kind = match error.status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        400..500 => "invalid_request_error",
        _ => "api_error",
    };
    let message = match &error.param {
        Some(param) if !error.message.contains(param.as_str()) => format!("{param}: {}", error.message),
        _ => error.message.clone(),
    };
    json!({"type": "error", "error": {"type": kind, "message": message}})
}
