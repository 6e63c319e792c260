//! From a conversation to the text that the model goes on with: the chat template, tools, and the thinking that is to
//! come.

use serde_json::{Map, Value, json};
use wels_data::Message;
use wels_data::chat::{ChatError, RenderOptions};

use super::{ServedModel, THINK_BEGIN, THINK_END};
use crate::answer::{ANSWER_BEGIN, FINAL_BEGIN, Start, ToolFormat};
use crate::wire::{ApiError, ChatRequest, Prefix, Thinking, Tool, ToolChoice};

/// A prompt's text, and how the answer to it begins.
pub(super) struct Rendered {
    pub text: String,
    pub start: Start,
}

impl ServedModel {
    /// How the model is told to write calls: as its template has it, or else in a general form.
    pub(super) fn tool_format(&self) -> ToolFormat {
        ToolFormat::of_template(&self.template_source).unwrap_or(ToolFormat::Hermes)
    }

    /// The conversation as text, up to where the answer begins.
    pub(super) fn render(&self, request: &ChatRequest, now_unix_s: i64) -> Result<Rendered, ApiError> {
        let native = ToolFormat::of_template(&self.template_source);
        let mut messages = request.messages.clone();
        match native {
            Some(ToolFormat::DeepSeek) => {}
            Some(_) => messages.iter_mut().for_each(parse_arguments),
            None => messages = messages_as_text(messages),
        }
        let mut options = RenderOptions { add_generation_prompt: true, now_unix_s, ..RenderOptions::default() };
        options.variables = variables(request);
        if request.tool_choice == ToolChoice::None {
            let text = self.render_any(&messages, &options)?;
            return Ok(self.opened(text, &request.thinking));
        }
        let without = self.render_any(&messages, &options);
        let definitions: Vec<Value> = request.tools.iter().map(|tool| tool.definition.clone()).collect();
        let with = native.map(|_| {
            let options = RenderOptions { tools: definitions, ..options.clone() };
            self.render_any(&messages, &options)
        });
        let text = match with {
            Some(Ok(with)) if without.as_ref().is_err() || without.as_ref().is_ok_and(|without| *without != with) => {
                with
            }
            // Templates without a form for tools, and those, as DeepSeek-V3's, that write calls and say nothing of the
            // tools.
            _ => {
                describe_tools(&mut messages, &tools_text(self.tool_format(), &request.tools));
                self.render_any(&messages, &options)?
            }
        };
        Ok(self.opened(text, &request.thinking))
    }

    /// Renders; templates that know no system message get it with the user's first.
    fn render_any(&self, messages: &[Message], options: &RenderOptions) -> Result<String, ApiError> {
        let Some(template) = &self.template else {
            return Err(ApiError::param("model", "This model has no chat template: use `completions`."));
        };
        let render = |messages: &[Message]| match &self.pictures {
            None => template.render(messages, options),
            Some(pictures) => {
                let messages: Vec<Message> = messages.iter().map(|message| pictures.message(message)).collect();
                template.render(&messages, options)
            }
        };
        let first = render(messages);
        let again = match (&first, messages) {
            (Err(ChatError::Refused { .. } | ChatError::Failed { .. }), [system, user, rest @ ..])
                if system.role == "system" && user.role == "user" =>
            {
                let mut both = user.clone();
                let text = |message: &Message| message.content.as_str().unwrap_or_default().to_owned();
                both.content = format!("{}\n\n{}", text(system), text(user)).into();
                render(&[&[both], rest].concat()).ok()
            }
            _ => None,
        };
        again.map_or(first, Ok).map_err(|error| match error {
            ChatError::Tokenizer(_) => ApiError::invalid(error.to_string()),
            error => ApiError::param("messages", error.to_string()),
        })
    }

    /// Whether the model's thinking is told apart from its answers.
    pub(crate) fn thinks(&self) -> bool {
        self.tokenizer.special().think_end.is_some() || self.template_thinks()
    }

    pub(super) fn template_thinks(&self) -> bool {
        self.template_source.contains(THINK_END) || self.template_source.contains(THINK_BEGIN)
    }

    /// Opens or closes the thinking, where that is asked for and the template has not done it.
    fn opened(&self, mut text: String, thinking: &Thinking) -> Rendered {
        let end = text.trim_end();
        if end.ends_with(ANSWER_BEGIN) {
            let mut rendered = Rendered { text, start: Start::Channels };
            if thinking.on == Some(false) {
                rendered.close();
            }
            return rendered;
        }
        let (opened, closed) = (end.ends_with(THINK_BEGIN), end.ends_with(THINK_END));
        let start = match (self.thinks(), opened, closed) {
            (true, true, _) => Start::Thinking,
            (true, false, false) => Start::Open,
            _ => Start::Plain,
        };
        let start = match (start, thinking.on) {
            (Start::Thinking, Some(false)) => {
                text += &format!("\n{THINK_END}\n\n");
                Start::Plain
            }
            (Start::Open, Some(false)) if self.template_thinks() => {
                text += &format!("{THINK_BEGIN}\n\n{THINK_END}\n\n");
                Start::Plain
            }
            (Start::Open, Some(true)) if self.template_thinks() => {
                text += &format!("{THINK_BEGIN}\n");
                Start::Thinking
            }
            (start, _) => start,
        };
        Rendered { text, start }
    }
}

impl Rendered {
    /// Ends the thinking before it has begun.
    pub(super) fn close(&mut self) {
        match self.start {
            Start::Thinking => self.text += &format!("\n{THINK_END}\n\n"),
            Start::Channels => self.text += FINAL_BEGIN,
            Start::Open | Start::Plain => {}
        }
        self.start = Start::Plain;
    }

    /// Puts the beginning of the answer behind the prompt.
    pub(super) fn begin(&mut self, prefix: &Prefix) {
        match (self.start, &prefix.reasoning) {
            (Start::Thinking, reasoning) => {
                let reasoning = reasoning.as_deref().unwrap_or_default();
                self.text += &format!("{reasoning}\n{THINK_END}\n\n");
            }
            (Start::Open, Some(reasoning)) => {
                self.text += &format!("{THINK_BEGIN}\n{reasoning}\n{THINK_END}\n\n");
            }
            (Start::Channels, reasoning) => {
                if let Some(reasoning) = reasoning {
                    self.text += &format!("<|channel|>analysis<|message|>{reasoning}<|end|>{ANSWER_BEGIN}");
                }
                self.text += FINAL_BEGIN;
            }
            (Start::Open | Start::Plain, _) => {}
        }
        self.text += &prefix.content;
        self.start = Start::Plain;
    }
}

/// What the client gave, and the names by which templates know of thinking: Qwen3's, DeepSeek-V3.1's, gpt-oss's.
fn variables(request: &ChatRequest) -> Map<String, Value> {
    let mut variables = request.template_variables.clone();
    let on = request.thinking.on.map(Value::from);
    let effort = request.thinking.effort.map(Value::from);
    let own = [("enable_thinking", on.clone()), ("thinking", on), ("reasoning_effort", effort)];
    for (name, value) in own {
        if let Some(value) = value.filter(|_| !variables.contains_key(name)) {
            variables.insert(name.to_owned(), value);
        }
    }
    variables
}

/// Templates other than DeepSeek's print arguments as JSON themselves. What is no JSON stays text.
fn parse_arguments(message: &mut Message) {
    let Some(Value::Array(calls)) = message.other.get_mut("tool_calls") else { return };
    for call in calls {
        let arguments = &mut call["function"]["arguments"];
        if let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok()) {
            *arguments = parsed;
        }
    }
}

/// Calls and their results as text of the assistant's and the user's, in the general form, for templates that have
/// none.
fn messages_as_text(messages: Vec<Message>) -> Vec<Message> {
    let mut texts: Vec<Message> = Vec::with_capacity(messages.len());
    for mut message in messages {
        parse_arguments(&mut message);
        let calls = message.other.shift_remove("tool_calls");
        let mut text = message.content.as_str().unwrap_or_default().to_owned();
        for call in calls.as_ref().and_then(Value::as_array).into_iter().flatten() {
            let call = json!({"name": call["function"]["name"], "arguments": call["function"]["arguments"]});
            let separator = if text.is_empty() { "" } else { "\n" };
            text += &format!("{separator}<tool_call>\n{call}\n</tool_call>");
        }
        if message.role == "tool" {
            text = format!("<tool_response>\n{text}\n</tool_response>");
            message = Message::new("user", "");
        }
        match texts.last_mut() {
            Some(last) if last.role == "user" && message.role == "user" => {
                let before = last.content.as_str().unwrap_or_default();
                last.content = format!("{before}\n{text}").into();
            }
            _ => {
                message.content = text.into();
                texts.push(message);
            }
        }
    }
    texts
}

/// Puts what is said of the tools at the end of the system message.
fn describe_tools(messages: &mut Vec<Message>, text: &str) {
    match messages.first_mut() {
        Some(system) if system.role == "system" => {
            let before = system.content.as_str().unwrap_or_default();
            system.content = format!("{before}\n\n{text}").into();
        }
        _ => messages.insert(0, Message::new("system", text)),
    }
}

/// The tools, for models whose template leaves them out: in the words of DeepSeek-V3.1's template, or else of Hermes'.
fn tools_text(format: ToolFormat, tools: &[Tool]) -> String {
    if format == ToolFormat::DeepSeek {
        let mut text = "## Tools\nYou have access to the following tools:\n".to_owned();
        for tool in tools {
            let description = tool.definition["function"]["description"].as_str().unwrap_or_default();
            text += &format!("\n### {}\nDescription: {description}\n\nParameters: {}\n", tool.name, tool.parameters);
        }
        return text
            + "\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n\
               <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>tool_call_name\n```json\n\
               tool_call_arguments\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>\n";
    }
    let listed: Vec<String> = tools.iter().map(|tool| tool.definition.to_string()).collect();
    format!(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function \
         signatures within <tools></tools> XML tags:\n<tools>\n{}\n</tools>\n\nFor each function call, return a json \
         object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{{\"name\": \
         <function-name>, \"arguments\": <args-json-object>}}\n</tool_call>",
        listed.join("\n")
    )
}
