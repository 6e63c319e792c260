//! Replies: whole ones, and the events of streams.

use serde_json::{Map, Value, json};

use crate::money::{Nanos, Tokens};

/// What stands at the top of a reply and of each of its events.
#[derive(Clone, Debug)]
pub struct Head {
    /// The request's name.
    pub id: String,
    /// Seconds since 1970.
    pub created: i64,
    /// As the client named it.
    pub model: String,
    /// Changes when the same seed may give another answer.
    pub fingerprint: String,
}

/// Tokens of a reply, over all its choices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageCounts {
    /// As charged.
    pub tokens: Tokens,
    /// Of the output, those that thought.
    pub reasoning: u64,
    /// What they cost.
    pub cost: Nanos,
}

impl UsageCounts {
    /// The `usage` object, with DeepSeek's and OpenAI's counters. `cost` is an amount as a string.
    pub fn to_json(&self) -> Value {
        let Tokens { hit, miss, output } = self.tokens;
        json!({
            "prompt_tokens": hit + miss,
            "completion_tokens": output,
            "total_tokens": hit + miss + output,
            "prompt_cache_hit_tokens": hit,
            "prompt_cache_miss_tokens": miss,
            "prompt_tokens_details": {"cached_tokens": hit},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
            "cost": self.cost.to_string(),
        })
    }
}

/// The log-probability of a token that was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    pub chosen: Candidate,
    /// Likeliest tokens, the likeliest first.
    pub top: Vec<Candidate>,
    /// Whether the token is part of the reasoning.
    pub reasoning: bool,
}

/// A token that could be chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// As text; where it is a part of a character, with U+FFFD.
    pub token: String,
    /// Exactly.
    pub bytes: Vec<u8>,
    /// Natural logarithm.
    pub logprob: f32,
}

impl Candidate {
    fn to_json(&self) -> Value {
        json!({"token": self.token, "logprob": finite(self.logprob), "bytes": self.bytes})
    }
}

impl TokenLogprob {
    fn to_json(&self) -> Value {
        let mut value = self.chosen.to_json();
        value["top_logprobs"] = self.top.iter().map(Candidate::to_json).collect();
        value
    }
}

/// JSON has no −∞; OpenAI writes −9999.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// The log-probabilities of an answer or of a part of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChoiceLogprobs {
    /// In order.
    pub tokens: Vec<TokenLogprob>,
    /// Bytes of the answer's text before the first of them.
    pub offset: usize,
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

/// What an answer grows by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatDelta {
    /// Thinking.
    Reasoning(String),
    /// The answer.
    Content(String),
    /// A call of a tool.
    Call(CallDelta),
}

/// A part of a tool call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallDelta {
    Begin {
        /// From 0.
        index: usize,
        /// Unique.
        id: String,
        name: String,
    },
    /// More of its arguments, JSON as text.
    Arguments {
        /// From 0.
        index: usize,
        /// To be appended.
        text: String,
    },
}

impl ChatDelta {
    fn to_json(&self) -> Value {
        match self {
            ChatDelta::Reasoning(text) => json!({"reasoning_content": text}),
            ChatDelta::Content(text) => json!({"content": text}),
            ChatDelta::Call(CallDelta::Begin { index, id, name }) => json!({"tool_calls": [
                {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
            ]}),
            ChatDelta::Call(CallDelta::Arguments { index, text }) => {
                json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
            }
        }
    }
}

/// One of a reply's answers, put together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// Thinking; `None` if there was none.
    pub reasoning: Option<String>,
    pub content: String,
    /// Id, name and arguments of each call.
    pub calls: Vec<(String, String, String)>,
    /// `stop`, `length`, `tool_calls`, …
    pub finish: &'static str,
    /// Where they were asked for.
    pub logprobs: Option<ChoiceLogprobs>,
}

impl Choice {
    /// Appends a part.
    pub fn push(&mut self, delta: &ChatDelta) {
        match delta {
            ChatDelta::Reasoning(text) => self.reasoning.get_or_insert_default().push_str(text),
            ChatDelta::Content(text) => self.content.push_str(text),
            ChatDelta::Call(CallDelta::Begin { id, name, .. }) => {
                self.calls.push((id.clone(), name.clone(), String::new()));
            }
            ChatDelta::Call(CallDelta::Arguments { index, text }) => self.calls[*index].2.push_str(text),
        }
    }

    fn chat_json(&self, index: usize) -> Value {
        let content = if self.content.is_empty() && !self.calls.is_empty() { Value::Null } else { json!(self.content) };
        let mut message = json!({"role": "assistant", "content": content});
        if let Some(reasoning) = &self.reasoning {
            message["reasoning_content"] = json!(reasoning);
        }
        if !self.calls.is_empty() {
            let call = |(id, name, arguments): &(String, String, String)| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
            message["tool_calls"] = self.calls.iter().map(call).collect();
        }
        let logprobs = self.logprobs.as_ref().map(ChoiceLogprobs::chat_json);
        json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": self.finish})
    }

    fn completion_json(&self, index: usize) -> Value {
        let logprobs = self.logprobs.as_ref().map(ChoiceLogprobs::completion_json);
        json!({"index": index, "text": self.content, "logprobs": logprobs, "finish_reason": self.finish})
    }
}

/// Which endpoint a reply is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `chat/completions`.
    Chat,
    /// `completions`.
    Completion,
}

impl Reply {
    /// What a request's name begins with.
    pub fn id_prefix(self) -> &'static str {
        match self {
            Reply::Chat => "chatcmpl-",
            Reply::Completion => "cmpl-",
        }
    }

    /// A whole reply.
    pub fn whole(self, head: &Head, choices: &[Choice], usage: &UsageCounts) -> Value {
        let (object, choices): (_, Vec<Value>) = match self {
            Reply::Chat => ("chat.completion", choices.iter().zip(0..).map(|(c, at)| c.chat_json(at)).collect()),
            Reply::Completion => {
                ("text_completion", choices.iter().zip(0..).map(|(c, at)| c.completion_json(at)).collect())
            }
        };
        let mut value = self.envelope(head, object, choices);
        value["usage"] = usage.to_json();
        value
    }

    /// The first event of an answer, which has its role alone. Plain completions have none.
    pub fn begin(self, head: &Head, index: usize) -> Option<Value> {
        let delta = json!({"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": null,
            "finish_reason": null});
        (self == Reply::Chat).then(|| self.event(head, vec![delta]))
    }

    /// An event with a part of an answer.
    pub fn delta(self, head: &Head, index: usize, delta: &ChatDelta, logprobs: Option<&ChoiceLogprobs>) -> Value {
        let choice = match self {
            Reply::Chat => json!({"index": index, "delta": delta.to_json(),
                "logprobs": logprobs.map(ChoiceLogprobs::chat_json), "finish_reason": null}),
            Reply::Completion => {
                let text = match delta {
                    ChatDelta::Content(text) | ChatDelta::Reasoning(text) => text.as_str(),
                    ChatDelta::Call(_) => "",
                };
                json!({"index": index, "text": text, "logprobs": logprobs.map(ChoiceLogprobs::completion_json),
                    "finish_reason": null})
            }
        };
        self.event(head, vec![choice])
    }

    /// The event that ends an answer; `usage` goes with the last one of a reply.
    pub fn finish(self, head: &Head, index: usize, finish: &str, usage: Option<&UsageCounts>) -> Value {
        let choice = match self {
            Reply::Chat => json!({"index": index, "delta": {}, "logprobs": null, "finish_reason": finish}),
            Reply::Completion => json!({"index": index, "text": "", "logprobs": null, "finish_reason": finish}),
        };
        let mut event = self.event(head, vec![choice]);
        if let Some(usage) = usage {
            event["usage"] = usage.to_json();
        }
        event
    }

    /// The event after the last one, with the usage and no choice.
    pub fn usage(self, head: &Head, usage: &UsageCounts) -> Value {
        let mut event = self.event(head, Vec::new());
        event["usage"] = usage.to_json();
        event
    }

    fn event(self, head: &Head, choices: Vec<Value>) -> Value {
        let object = if self == Reply::Chat { "chat.completion.chunk" } else { "text_completion" };
        self.envelope(head, object, choices)
    }

    fn envelope(self, head: &Head, object: &str, choices: Vec<Value>) -> Value {
        json!({"id": head.id, "object": object, "created": head.created, "model": head.model,
            "system_fingerprint": head.fingerprint, "choices": choices})
    }
}
