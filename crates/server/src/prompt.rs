//! From a request of the API to requests of the engine: template, token ids, constraints, limits.

use std::sync::Arc;

use serde_json::{Value, json};
use wels_data::chat::{ChatError, RenderOptions};
use wels_data::{ChatTemplate, Message, Tokenizer};
use wels_engine::{Constraint, Request, Sampling};

use crate::answer::{Answer, Start, ToolFormat};
use crate::wire::{ApiError, ChatRequest, CompletionRequest, Format, Prefix, Prompt, SamplingFields, Tool, ToolChoice};

const THINK_BEGIN: &str = "<think>";
const THINK_END: &str = "</think>";
/// Bytes of the text of a prompt, whatever the model's context: memory for encoding is 200 times as much.
const TEXT_BYTES_MAX: usize = 8 << 20;
/// Bytes of a text that are encoded at a time to count its tokens.
const PIECE_BYTES: usize = 64 << 10;
/// Tokens that a text may have more, for each place where it was cut, than it has whole: a word or a special token that
/// was cut in two.
const CUT_TOKENS_MAX: usize = 32;

/// The model that is served, as far as it is not the engine's business.
pub struct ServedModel {
    /// By which clients may ask for it; the first one is listed.
    pub names: Vec<String>,
    /// Its own.
    pub tokenizer: Arc<Tokenizer>,
    /// `None`: chat is refused.
    pub template: Option<ChatTemplate>,
    /// The template's text; empty without one.
    pub template_source: String,
    /// Tokens that end an answer.
    pub stop_tokens: Vec<u32>,
    /// Tokens that prompt and answer may have together.
    pub context: usize,
    /// The most tokens of an answer, and their number where a request does not say.
    pub output_tokens_max: usize,
    /// Names the weights and the version of the program.
    pub fingerprint: String,
    /// When it was made ready, in seconds since 1970.
    pub created_unix_s: i64,
}

/// Requests for the engine that answer one request of the API.
pub struct Plan {
    /// A prompt's answers follow one another.
    pub requests: Vec<Request>,
    /// Answers to each prompt.
    pub n: usize,
    /// Where each answer begins.
    start: Start,
    format: Option<ToolFormat>,
    tools: Vec<String>,
    given: String,
    /// Whether an answer ends with its first call.
    pub single_call: bool,
}

impl Plan {
    /// What reads an answer.
    pub fn answer(&self) -> Answer {
        Answer::new(self.start, self.format, self.tools.clone(), &self.given)
    }

    /// Tokens of all prompts, each counted once.
    pub fn prompt_tokens(&self) -> usize {
        self.requests.iter().step_by(self.n).map(|request| request.prompt.len()).sum()
    }

    /// The most tokens of all answers.
    pub fn output_tokens_max(&self) -> usize {
        self.requests.iter().map(|request| request.max_tokens).sum()
    }
}

/// The most tokens that a prompt may have.
pub struct PromptLimit {
    tokens: usize,
    /// What is said of a prompt that has more.
    beyond: ApiError,
}

impl PromptLimit {
    /// Lowers it to so many tokens, if it is higher.
    pub fn lower(&mut self, tokens: usize, beyond: ApiError) {
        if tokens < self.tokens {
            *self = PromptLimit { tokens, beyond };
        }
    }
}

/// How a text is encoded.
#[derive(Clone, Copy)]
enum Form {
    /// With special tokens where they are spelled out: what a template wrote.
    Rendered,
    /// The same, behind what the tokenizer puts before every text.
    Whole,
    /// As plain text.
    Ordinary,
}

impl ServedModel {
    /// What the model's context leaves room for.
    pub fn prompt_limit(&self) -> PromptLimit {
        let message = format!(
            "The prompt has more tokens than fit: the model's context is {} tokens, the answer's among them.",
            self.context
        );
        PromptLimit { tokens: self.context, beyond: ApiError::context_length(message) }
    }

    /// Whether clients may ask for it by this name.
    pub fn is_named(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    /// Whether its thinking is told apart from its answers.
    fn thinks(&self) -> bool {
        self.tokenizer.special().think_end.is_some() || self.template_source.contains(THINK_END)
    }

    /// Plans the answers to a conversation.
    pub fn plan_chat(
        &self,
        request: &ChatRequest,
        now_unix_s: i64,
        prompt_limit: &PromptLimit,
    ) -> Result<Plan, ApiError> {
        let callable = request.tool_choice != ToolChoice::None;
        let format = callable.then(|| self.tool_format()).transpose()?;
        let mut prompt = self.render(request, format, now_unix_s)?;
        let opened = prompt.trim_end().ends_with(THINK_BEGIN);
        let start = match (self.thinks(), opened) {
            (false, _) => Start::Plain,
            (true, false) => Start::Open,
            (true, true) => Start::Thinking,
        };
        let must_call = format.filter(|_| matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Named(_)));
        let mut given = String::new();
        let mut constraint = None;
        match (must_call, &request.format) {
            (Some(format), _) => {
                given = format.around_name().0;
                constraint = Some(call_grammar(format, &request.tools, &request.tool_choice));
            }
            (None, Format::JsonObject) => constraint = Some(Constraint::JsonObject),
            (None, Format::JsonSchema(schema)) => constraint = Some(Constraint::JsonSchema(schema.to_string())),
            (None, Format::Text) => {}
        }
        // An answer that is constrained from its first token, or whose beginning is given, has no room to think.
        let start = match &request.prefix {
            Some(prefix) => self.continue_prefix(&mut prompt, prefix, start),
            None if constraint.is_some() && start == Start::Thinking => {
                prompt += &format!("\n{THINK_END}\n\n");
                Start::Plain
            }
            None if constraint.is_some() => Start::Plain,
            None => start,
        };
        prompt += &given;
        let ids = self.encode_within(&prompt, Form::Rendered, prompt_limit, "messages")?;
        let requests =
            self.requests(vec![ids], &request.sampling, request.logprobs, constraint.as_ref(), "messages")?;
        Ok(Plan {
            requests,
            n: request.sampling.n as usize,
            start,
            format,
            tools: request.tools.iter().map(|tool| tool.name.clone()).collect(),
            given,
            single_call: !request.parallel_tool_calls || must_call.is_some(),
        })
    }

    /// Plans the continuations of texts.
    pub fn plan_completion(&self, request: &CompletionRequest, prompt_limit: &PromptLimit) -> Result<Plan, ApiError> {
        let ids: Vec<Vec<u32>> = request
            .prompts
            .iter()
            .map(|prompt| match (prompt, &request.suffix) {
                (Prompt::Ids(ids), _) => Ok(ids.clone()),
                (Prompt::Text(text), None) => self.whole_text(text, prompt_limit),
                (Prompt::Text(text), Some(suffix)) => self.fill_in(text, suffix, prompt_limit),
            })
            .collect::<Result<_, _>>()?;
        let requests = self.requests(ids, &request.sampling, request.logprobs, None, "prompt")?;
        let n = request.sampling.n as usize;
        let (start, given) = (Start::Plain, String::new());
        Ok(Plan { requests, n, start, format: None, tools: Vec::new(), given, single_call: false })
    }

    /// A text with what the tokenizer puts before every text.
    fn whole_text(&self, text: &str, prompt_limit: &PromptLimit) -> Result<Vec<u32>, ApiError> {
        let ids = self.encode_within(text, Form::Whole, prompt_limit, "prompt")?;
        // An empty prompt begins a text, if the model knows how texts begin.
        let bos = self.tokenizer.special().bos;
        Ok(if ids.is_empty() { bos.into_iter().collect() } else { ids })
    }

    /// Prefix, suffix, then what is between them (DeepSeek-Coder's PSM form).
    fn fill_in(&self, prefix: &str, suffix: &str, prompt_limit: &PromptLimit) -> Result<Vec<u32>, ApiError> {
        let special = self.tokenizer.special();
        let (Some(begin), Some(hole), Some(end)) = (special.fim_begin, special.fim_hole, special.fim_end) else {
            return Err(ApiError::param(
                "suffix",
                "This model's tokenizer has no tokens to fill in between two texts.",
            ));
        };
        let text = |text: &str| self.encode_within(text, Form::Ordinary, prompt_limit, "prompt");
        let mut ids: Vec<u32> = special.bos.into_iter().chain([begin]).collect();
        ids.extend(text(prefix)?);
        ids.push(hole);
        ids.extend(text(suffix)?);
        ids.push(end);
        Ok(ids)
    }

    /// A text's tokens, if they are not more than `prompt_limit`. A text that has more is not encoded further than
    /// shows it: encoding takes up to 200 bytes of memory and about a microsecond for each byte of a text.
    fn encode_within(
        &self,
        text: &str,
        form: Form,
        prompt_limit: &PromptLimit,
        param: &str,
    ) -> Result<Vec<u32>, ApiError> {
        if text.len() > TEXT_BYTES_MAX || self.surely_exceeds(text, form, prompt_limit.tokens)? {
            let beyond = prompt_limit.beyond.clone();
            return Err(match beyond.status {
                400 => ApiError { param: Some(param.to_owned()), ..beyond },
                _ => beyond,
            });
        }
        self.encode(text, form)
    }

    fn encode(&self, text: &str, form: Form) -> Result<Vec<u32>, ApiError> {
        let ids = match form {
            Form::Rendered => self.tokenizer.encode(text),
            Form::Whole => self.tokenizer.encode_with_added(text),
            Form::Ordinary => self.tokenizer.encode_ordinary(text),
        };
        ids.map_err(|error| ApiError::invalid(error.to_string()))
    }

    /// Whether a text has more than `limit` tokens, found out piece by piece. In doubt, near the limit, `false`.
    fn surely_exceeds(&self, text: &str, form: Form, limit: usize) -> Result<bool, ApiError> {
        // A token stands for a byte at least, whatever the vocabulary.
        if text.len() <= limit {
            return Ok(false);
        }
        if self.tokenizer.bytes_per_token_max().is_some_and(|longest| text.len().div_ceil(longest) > limit) {
            return Ok(true);
        }
        self.pieces_exceed(text, form, limit)
    }

    fn pieces_exceed(&self, text: &str, form: Form, limit: usize) -> Result<bool, ApiError> {
        let (mut tokens, mut allowed, mut rest) = (0, limit, text);
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(cut(rest));
            tokens += self.encode(piece, form)?.len();
            if tokens > allowed {
                return Ok(true);
            }
            allowed += CUT_TOKENS_MAX;
            rest = after;
        }
        Ok(false)
    }

    fn tool_format(&self) -> Result<ToolFormat, ApiError> {
        let none = || ApiError::param("tools", "This model's chat template has no form for calls of tools.");
        ToolFormat::of_template(&self.template_source).ok_or_else(none)
    }

    fn render(&self, request: &ChatRequest, format: Option<ToolFormat>, now_unix_s: i64) -> Result<String, ApiError> {
        let Some(template) = &self.template else {
            return Err(ApiError::param("model", "This model has no chat template: use `completions`."));
        };
        let mut options = RenderOptions { add_generation_prompt: true, now_unix_s, ..RenderOptions::default() };
        let mut messages = request.messages.clone();
        if ToolFormat::of_template(&self.template_source) != Some(ToolFormat::DeepSeek) {
            messages.iter_mut().for_each(parse_arguments);
        }
        let render = |messages: &[Message], options: &RenderOptions| {
            template.render(messages, options).map_err(|error| match error {
                ChatError::Tokenizer(_) => ApiError::invalid(error.to_string()),
                error => ApiError::param("messages", error.to_string()),
            })
        };
        if format.is_none() {
            return render(&messages, &options);
        }
        let without = render(&messages, &options)?;
        options.tools = request.tools.iter().map(|tool| tool.definition.clone()).collect();
        let with = render(&messages, &options)?;
        if with != without {
            return Ok(with);
        }
        // DeepSeek-V3's and R1's own templates write calls and say nothing of the tools.
        messages.insert(0, Message::new("system", &tools_text(&request.tools)));
        render(&messages, &options)
    }

    /// Puts the beginning of an answer behind its prompt.
    fn continue_prefix(&self, prompt: &mut String, prefix: &Prefix, start: Start) -> Start {
        match (start, &prefix.reasoning) {
            (Start::Thinking, reasoning) => {
                let reasoning = reasoning.as_deref().unwrap_or_default();
                *prompt += &format!("{reasoning}\n{THINK_END}\n\n");
            }
            (Start::Open, Some(reasoning)) => {
                *prompt += &format!("{THINK_BEGIN}\n{reasoning}\n{THINK_END}\n\n");
            }
            (Start::Open | Start::Plain, _) => {}
        }
        *prompt += &prefix.content;
        Start::Plain
    }

    fn requests(
        &self,
        prompts: Vec<Vec<u32>>,
        sampling: &SamplingFields,
        logprobs: Option<usize>,
        constraint: Option<&Constraint>,
        param: &str,
    ) -> Result<Vec<Request>, ApiError> {
        let mut requests = Vec::new();
        let seed = match sampling.seed {
            Some(seed) => seed,
            None => getrandom::u64().map_err(|_| ApiError::internal("The system has no random numbers."))?,
        };
        for prompt in prompts {
            let room = self.context.saturating_sub(prompt.len());
            let wanted = sampling.max_tokens.unwrap_or(self.output_tokens_max.min(room.max(1)));
            if wanted > self.output_tokens_max {
                let limit = self.output_tokens_max;
                return Err(ApiError::param(
                    "max_tokens",
                    format!("{wanted} is more than the {limit} of this server."),
                ));
            }
            if wanted > room {
                let error = ApiError::context_length(format!(
                    "The prompt has {} tokens and the answer may have {wanted}; the model's context is {} tokens.",
                    prompt.len(),
                    self.context
                ));
                return Err(ApiError { param: Some(param.to_owned()), ..error });
            }
            for choice in 0..sampling.n {
                requests.push(Request {
                    sampling: engine_sampling(sampling, seed),
                    choice,
                    stop_tokens: self.stop_tokens.clone(),
                    stop: sampling.stop.clone(),
                    logprobs,
                    constraint: constraint.cloned(),
                    ..Request::new(prompt.clone(), wanted)
                });
            }
        }
        Ok(requests)
    }
}

/// Where to cut a piece off a text: before a space, if there is one near, since words begin there.
fn cut(text: &str) -> usize {
    if text.len() <= PIECE_BYTES {
        return text.len();
    }
    let end = text.floor_char_boundary(PIECE_BYTES);
    let near = text.floor_char_boundary(PIECE_BYTES - PIECE_BYTES / 16);
    text[near..end].rfind(char::is_whitespace).map_or(end, |at| near + at)
}

fn engine_sampling(sampling: &SamplingFields, seed: u64) -> Sampling {
    Sampling {
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        logit_bias: sampling.logit_bias.clone(),
        seed,
    }
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

/// The tools, for models whose template leaves them out. The words are those of DeepSeek-V3.1's template.
fn tools_text(tools: &[Tool]) -> String {
    let mut text = "## Tools\nYou have access to the following tools:\n".to_owned();
    for tool in tools {
        let description = tool.definition["function"]["description"].as_str().unwrap_or_default();
        text += &format!("\n### {}\nDescription: {description}\n\nParameters: {}\n", tool.name, tool.parameters);
    }
    let (before, between) = ToolFormat::DeepSeek.around_name();
    text += &format!(
        "\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n\
         {before}tool_call_name{between}tool_call_arguments\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>\n"
    );
    text
}

/// A grammar of one call, from the function's name on; what stands before it is given with the prompt.
fn call_grammar(format: ToolFormat, tools: &[Tool], choice: &ToolChoice) -> Constraint {
    let allowed: Vec<&Tool> =
        tools.iter().filter(|tool| !matches!(choice, ToolChoice::Named(name) if *name != tool.name)).collect();
    let between = json!(format.around_name().1);
    let starts: Vec<String> = (0..allowed.len()).map(|at| format!("call{at}")).collect();
    let mut grammar = format!("start: {}\n", starts.join(" | "));
    for (at, tool) in allowed.iter().enumerate() {
        grammar += &format!("call{at}: {} {between} arguments{at}\n", json!(tool.name));
        grammar += &format!("arguments{at}: %json {}\n", tool.parameters);
    }
    Constraint::Lark(grammar)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wels_data::tokenizer::{BpeTrainer, SpecialTokens};

    fn served() -> ServedModel {
        let mut trainer = BpeTrainer::new(300, SpecialTokens::default()).unwrap();
        trainer.feed(&["the name of the fish: a fish and another fish"; 8]);
        ServedModel {
            names: vec!["tiny".to_owned()],
            tokenizer: Arc::new(trainer.train().unwrap()),
            template: None,
            template_source: String::new(),
            stop_tokens: Vec::new(),
            context: 2048,
            output_tokens_max: 16,
            fingerprint: String::new(),
            created_unix_s: 0,
        }
    }

    #[test]
    fn a_text_is_cut_near_a_space_and_nothing_of_it_is_lost() {
        for text in ["a fish ".repeat(40_000), "é".repeat(100_000), " ".repeat(70_000), String::new()] {
            let (mut rest, mut pieces) = (&text[..], Vec::new());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(cut(rest));
                pieces.push(piece);
                rest = after;
            }
            assert_eq!(pieces.concat(), text);
            assert!(pieces.iter().all(|piece| (1..=PIECE_BYTES).contains(&piece.len())));
        }
    }

    #[test]
    fn pieces_of_a_text_show_that_it_is_too_long_and_never_that_a_shorter_one_is() {
        let served = served();
        for text in ["the name of a fish ".repeat(20_000), "fish".repeat(60_000), "<｜User｜>é\n".repeat(20_000)] {
            for form in [Form::Rendered, Form::Whole, Form::Ordinary] {
                let tokens = served.encode(&text, form).unwrap().len();
                assert!(!served.pieces_exceed(&text, form, tokens).unwrap());
                assert!(served.pieces_exceed(&text, form, tokens - tokens / 50).unwrap());
                assert!(served.surely_exceeds(&text, form, 2048).unwrap());
            }
        }
        let prompt_limit = served.prompt_limit();
        let refused = served.encode_within(&"a fish ".repeat(5000), Form::Whole, &prompt_limit, "prompt").unwrap_err();
        assert_eq!((refused.code, refused.param.as_deref()), (Some("context_length_exceeded"), Some("prompt")));
        let fits = served.encode_within(&"a fish ".repeat(500), Form::Whole, &prompt_limit, "prompt").unwrap();
        assert_eq!(fits, served.tokenizer.encode_with_added(&"a fish ".repeat(500)).unwrap());
    }
}
