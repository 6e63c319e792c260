//! Replies of `chat/completions` and `completions`.

use serde_json::{Map, Value, json};

use super::ApiError;
use super::chat::ChatForm;
use super::reply::{
    AnswerEnd, CallDelta, Candidate, ChatDelta, Choice, ChoiceLogprobs, Head, Reply, StreamEvent, TokenLogprob,
    UsageCounts,
};
use crate::money::Tokens;

impl UsageCounts {
    /// The `usage` object, with DeepSeek's and OpenAI's counters. `cost` is a number for clients that want one there,
    /// `cost_exact` the amount itself.
    fn to_json(self) -> Value {
        let Tokens { hit, miss, output } = self.tokens;
        json!({
            "prompt_tokens": hit + miss,
            "completion_tokens": output,
            "total_tokens": hit + miss + output,
            "prompt_cache_hit_tokens": hit,
            "prompt_cache_miss_tokens": miss,
            "prompt_tokens_details": {"cached_tokens": hit, "image_tokens": self.images},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
            "cost": self.cost.to_f64(),
            "cost_exact": self.cost.to_string(),
        })
    }
}

impl Candidate {
    pub(super) fn to_json(&self) -> Value {
        json!({"token": self.token, "logprob": finite(self.logprob), "bytes": self.bytes})
    }
}

impl TokenLogprob {
    pub(super) fn to_json(&self) -> Value {
        let mut value = self.chosen.to_json();
        value["top_logprobs"] = self.top.iter().map(Candidate::to_json).collect();
        value
    }
}

/// JSON has no −∞; OpenAI writes −9999.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

impl ChoiceLogprobs {
    fn chat_json(&self) -> Value {
        let part = |reasoning: bool| -> Vec<Value> {
            self.tokens.iter().filter(|token| token.reasoning == reasoning).map(TokenLogprob::to_json).collect()
        };
        let (content, reasoning) = (part(false), part(true));
        let mut value = json!({"content": content, "refusal": null});
        if !reasoning.is_empty() {
            value["reasoning_content"] = reasoning.into();
        }
        value
    }

    fn completion_json(&self) -> Value {
        let offsets = self.tokens.iter().scan(self.offset, |offset, token| {
            let begin = *offset;
            *offset += token.chosen.token.len();
            Some(begin)
        });
        let offsets: Vec<usize> = offsets.collect();
        let top = |token: &TokenLogprob| -> Value {
            let entries = token.top.iter().map(|top| (top.token.clone(), json!(finite(top.logprob))));
            Value::Object(entries.collect::<Map<_, _>>())
        };
        json!({
            "tokens": self.tokens.iter().map(|token| &token.chosen.token).collect::<Vec<_>>(),
            "token_logprobs": self.tokens.iter().map(|token| finite(token.chosen.logprob)).collect::<Vec<_>>(),
            "top_logprobs": self.tokens.iter().map(top).collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    }
}

impl AnswerEnd {
    fn word(&self, functions: bool) -> &'static str {
        match self {
            AnswerEnd::Stop | AnswerEnd::StopString(_) => "stop",
            AnswerEnd::Length => "length",
            AnswerEnd::ToolCalls if functions => "function_call",
            AnswerEnd::ToolCalls => "tool_calls",
        }
    }
}

/// Writes replies of `chat/completions`.
pub struct ChatReply(pub ChatForm);

impl ChatReply {
    fn delta_json(&self, delta: &ChatDelta) -> Value {
        let ChatDelta::Call(call) = delta else {
            return match delta {
                ChatDelta::Reasoning(text) => json!({"reasoning_content": text}),
                ChatDelta::Content(text) => json!({"content": text}),
                ChatDelta::Call(_) => unreachable!("taken above"),
            };
        };
        match call {
            CallDelta::Begin { name, .. } if self.0.functions => {
                json!({"function_call": {"name": name, "arguments": ""}})
            }
            CallDelta::Arguments { text, .. } if self.0.functions => json!({"function_call": {"arguments": text}}),
            CallDelta::Begin { index, id, name } => json!({"tool_calls": [
                {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
            ]}),
            CallDelta::Arguments { index, text } => {
                json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
            }
        }
    }

    fn choice(&self, index: usize, choice: &Choice) -> Value {
        let silent = choice.content.is_empty() && !choice.calls.is_empty();
        let content = if silent { Value::Null } else { json!(choice.content) };
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if let Some(reasoning) = &choice.reasoning {
            message["reasoning_content"] = json!(reasoning);
        }
        match choice.calls.first() {
            Some((_, name, arguments)) if self.0.functions => {
                message["function_call"] = json!({"name": name, "arguments": arguments});
            }
            Some(_) => {
                let call = |(id, name, arguments): &(String, String, String)| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
                message["tool_calls"] = choice.calls.iter().map(call).collect();
            }
            None => {}
        }
        let logprobs = choice.logprobs.as_ref().map(ChoiceLogprobs::chat_json);
        let finish = choice.end.word(self.0.functions);
        json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
    }
}

impl Reply for ChatReply {
    fn id_prefix(&self) -> &'static str {
        "chatcmpl-"
    }

    fn whole(&mut self, head: &Head, choices: &[Choice], usage: &UsageCounts) -> Value {
        let choices = choices.iter().enumerate().map(|(at, choice)| self.choice(at, choice)).collect();
        let mut value = envelope(head, "chat.completion", choices);
        value["usage"] = usage.to_json();
        value
    }

    /// The first event of an answer has its role alone.
    fn begin(&mut self, head: &Head, answers: usize, _prompt_tokens: u64) -> Vec<StreamEvent> {
        let role = |index: usize| {
            let delta = json!({"role": "assistant", "content": ""});
            chunk(head, json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null}))
        };
        (0..answers).map(role).collect()
    }

    fn delta(
        &mut self,
        head: &Head,
        index: usize,
        delta: &ChatDelta,
        logprobs: Option<&ChoiceLogprobs>,
    ) -> Vec<StreamEvent> {
        let logprobs = logprobs.map(ChoiceLogprobs::chat_json);
        let delta = self.delta_json(delta);
        vec![chunk(head, json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null}))]
    }

    fn finish(&mut self, head: &Head, index: usize, end: &AnswerEnd, usage: Option<&UsageCounts>) -> Vec<StreamEvent> {
        let finish = end.word(self.0.functions);
        let choice = json!({"index": index, "delta": {}, "logprobs": null, "finish_reason": finish});
        last_events(head, CHUNK, choice, self.0.include_usage, usage)
    }

    fn error(&mut self, _head: &Head, error: &ApiError) -> Vec<StreamEvent> {
        vec![StreamEvent::Data(error.to_json()), StreamEvent::Done]
    }
}

/// Writes replies of `completions`.
pub struct CompletionReply {
    /// In a stream, a last event that has the usage and no choice.
    pub include_usage: bool,
}

const CHUNK: &str = "chat.completion.chunk";
const TEXT: &str = "text_completion";

impl Reply for CompletionReply {
    fn id_prefix(&self) -> &'static str {
        "cmpl-"
    }

    fn whole(&mut self, head: &Head, choices: &[Choice], usage: &UsageCounts) -> Value {
        let choice = |(index, choice): (usize, &Choice)| {
            let logprobs = choice.logprobs.as_ref().map(ChoiceLogprobs::completion_json);
            let finish = choice.end.word(false);
            json!({"index": index, "text": choice.content, "logprobs": logprobs, "finish_reason": finish})
        };
        let mut value = envelope(head, TEXT, choices.iter().enumerate().map(choice).collect());
        value["usage"] = usage.to_json();
        value
    }

    fn begin(&mut self, _head: &Head, _answers: usize, _prompt_tokens: u64) -> Vec<StreamEvent> {
        Vec::new()
    }

    fn delta(
        &mut self,
        head: &Head,
        index: usize,
        delta: &ChatDelta,
        logprobs: Option<&ChoiceLogprobs>,
    ) -> Vec<StreamEvent> {
        let text = match delta {
            ChatDelta::Content(text) | ChatDelta::Reasoning(text) => text.as_str(),
            ChatDelta::Call(_) => "",
        };
        let logprobs = logprobs.map(ChoiceLogprobs::completion_json);
        let choice = json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": null});
        vec![StreamEvent::Data(envelope(head, TEXT, vec![choice]))]
    }

    fn finish(&mut self, head: &Head, index: usize, end: &AnswerEnd, usage: Option<&UsageCounts>) -> Vec<StreamEvent> {
        let choice = json!({"index": index, "text": "", "logprobs": null, "finish_reason": end.word(false)});
        last_events(head, TEXT, choice, self.include_usage, usage)
    }

    fn error(&mut self, _head: &Head, error: &ApiError) -> Vec<StreamEvent> {
        vec![StreamEvent::Data(error.to_json()), StreamEvent::Done]
    }
}

fn chunk(head: &Head, choice: Value) -> StreamEvent {
    StreamEvent::Data(envelope(head, CHUNK, vec![choice]))
}

/// The events that end an answer. The usage stands in the last choice's, as DeepSeek has it, or, where that is asked
/// for, in an event of its own, as OpenAI has it.
fn last_events(
    head: &Head,
    object: &str,
    choice: Value,
    include_usage: bool,
    usage: Option<&UsageCounts>,
) -> Vec<StreamEvent> {
    let mut end = envelope(head, object, vec![choice]);
    let Some(usage) = usage else { return vec![StreamEvent::Data(end)] };
    if !include_usage {
        end["usage"] = usage.to_json();
        return vec![StreamEvent::Data(end), StreamEvent::Done];
    }
    let mut last = envelope(head, object, Vec::new());
    last["usage"] = usage.to_json();
    vec![StreamEvent::Data(end), StreamEvent::Data(last), StreamEvent::Done]
}

fn envelope(head: &Head, object: &str, choices: Vec<Value>) -> Value {
    json!({"id": head.id, "object": object, "created": head.created, "model": head.model,
        "system_fingerprint": head.fingerprint, "choices": choices})
}
