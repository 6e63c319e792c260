//! From a request of the API to requests of the engine: template, token ids, constraints, limits.

mod render;

mod pictures;

pub use pictures::ServedPictures;

use std::sync::Arc;

use serde_json::{Value, json};
use wels_data::{ChatTemplate, Tokenizer};
use wels_engine::{Adapter, Constraint, Pooling, Request, Sampling};

use crate::answer::{Answer, Held, KnownTools, Start, ToolFormat, grammar};
use crate::wire::{
    ApiError, ChatRequest, CompletionRequest, EmbeddingRequest, Format, Prompt, SamplingFields, Thinking, ToolChoice,
};

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
    /// Of a model that sees and draws.
    pub pictures: Option<ServedPictures>,
    /// Tokens that end an answer.
    pub stop_tokens: Vec<u32>,
    /// Tokens that prompt and answer may have together.
    pub context: usize,
    /// The most tokens of an answer, and their number where a request does not say.
    pub output_tokens_max: usize,
    /// Numbers of an embedding.
    pub embedding_width: usize,
    /// Names the weights and the version of the program.
    pub fingerprint: String,
    /// When it was made ready, in seconds since 1970.
    pub created_unix_s: i64,
    /// What it answers with, if it is an adapter of a model.
    pub adapter: Option<ServedAdapter>,
}

/// An adapter that clients ask for as for a model.
#[derive(Clone)]
pub struct ServedAdapter {
    /// For the engine.
    pub adapter: Arc<Adapter>,
    /// Of its weights.
    pub sha256: String,
    /// The name of the model that it belongs to.
    pub base: String,
}

impl ServedAdapter {
    /// As the API shows it.
    pub fn describe(&self) -> Value {
        let config = self.adapter.config();
        json!({"base": self.base, "sha256": self.sha256, "rank": config.rank, "alpha": config.alpha})
    }
}

/// The beginning of a conversation's text whose tokens are known, the model's own among them: what follows it is
/// encoded apart. Encoding all of it anew could divide the model's text otherwise, and a cache of its tokens would be
/// missed.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub text: String,
    pub ids: Vec<u32>,
}

/// Requests for the engine that answer one request of the API.
pub struct Plan {
    /// A prompt's answers follow one another.
    pub requests: Vec<Request>,
    /// A conversation's prompt as text; else empty.
    pub text: String,
    /// Tokens of a conversation's prompt that are places of pictures.
    pub image_tokens: usize,
    /// Answers to each prompt.
    pub n: usize,
    /// Where each answer begins.
    start: Start,
    /// That may be called.
    tools: Option<KnownTools>,
    /// The form of calls that the model is held to from the answer's first token on.
    held_to: Option<ToolFormat>,
    /// Whether an answer ends with its first call.
    pub single_call: bool,
}

impl Plan {
    /// What reads an answer.
    pub fn answer(&self) -> Answer {
        Answer::new(self.start, self.tools.clone(), self.held_to)
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
    /// What is said of a prompt in this parameter that has more.
    fn beyond(&self, param: &str) -> ApiError {
        let beyond = self.beyond.clone();
        match beyond.status {
            400 => ApiError { param: Some(param.to_owned()), ..beyond },
            _ => beyond,
        }
    }

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

    /// The same with an adapter, by another name.
    ///
    /// # Errors
    /// A model of pictures, whose weights are its own.
    pub fn with_adapter(&self, name: &str, adapter: ServedAdapter) -> Result<ServedModel, String> {
        if self.pictures.is_some() {
            return Err(format!("`{}` is a model of pictures, which takes no adapters.", self.names[0]));
        }
        Ok(ServedModel {
            names: vec![name.to_owned()],
            tokenizer: Arc::clone(&self.tokenizer),
            template: ChatTemplate::of(&self.tokenizer).map_err(|error| error.to_string())?,
            template_source: self.template_source.clone(),
            pictures: None,
            stop_tokens: self.stop_tokens.clone(),
            fingerprint: format!("{}-{}", self.fingerprint, adapter.sha256),
            adapter: Some(adapter),
            ..*self
        })
    }

    fn engine_adapter(&self) -> Option<Arc<Adapter>> {
        self.adapter.as_ref().map(|served| Arc::clone(&served.adapter))
    }

    /// Plans the answers to a conversation.
    ///
    /// # Errors
    /// 400 for what the template or the model's context refuses; what `prompt_limit` says.
    pub fn plan_chat(
        &self,
        request: &ChatRequest,
        now_unix_s: i64,
        prompt_limit: &PromptLimit,
    ) -> Result<Plan, ApiError> {
        self.plan_chat_behind(&Known::default(), request, now_unix_s, prompt_limit)
    }

    /// As [`ServedModel::plan_chat`], for a conversation that may begin with a text that is known.
    pub fn plan_chat_behind(
        &self,
        known: &Known,
        request: &ChatRequest,
        now_unix_s: i64,
        prompt_limit: &PromptLimit,
    ) -> Result<Plan, ApiError> {
        let mut rendered = self.render(request, now_unix_s)?;
        let constraint = self.constraint(request);
        if let Some(prefix) = &request.prefix {
            rendered.begin(prefix);
        } else if constraint.as_ref().is_some_and(|constraint| constraint.strict) && self.think_tokens().is_none() {
            // What the answer is held to begins behind the thinking, whose end is known by a token.
            rendered.close();
        }
        let rest = rendered.text.strip_prefix(known.text.as_str());
        let (mut ids, rest) = rest.map_or((Vec::new(), &*rendered.text), |rest| (known.ids.clone(), rest));
        let mut rest = self.encode_within(rest, Form::Rendered, prompt_limit, "messages")?;
        let bos = self.tokenizer.special().bos.filter(|_| self.pictures.is_some() && self.tokenizer.adds_bos());
        // Janus' template leaves it to the tokenizer.
        if let Some(bos) = bos.filter(|bos| ids.is_empty() && rest.first() != Some(bos)) {
            rest.insert(0, bos);
        }
        if let Some(pictures) = self.pictures.as_ref().filter(|_| !request.pictures.is_empty()) {
            pictures.widen(&mut rest);
        }
        ids.extend(rest);
        if ids.len() > prompt_limit.tokens {
            return Err(prompt_limit.beyond("messages"));
        }
        let pictures = match &self.pictures {
            Some(pictures) if !request.pictures.is_empty() => pictures.place(&request.pictures, &ids)?,
            _ => Vec::new(),
        };
        let template = Request {
            pictures,
            logprobs: request.logprobs,
            thinking: self.engine_thinking(rendered.start, &request.thinking),
            constraint_may_fail: constraint.as_ref().is_some_and(|constraint| !constraint.strict),
            constraint: constraint.as_ref().map(|constraint| constraint.of.clone()),
            adapter: self.engine_adapter(),
            ..Request::new(ids, 1)
        };
        let callable = request.tool_choice != ToolChoice::None;
        let required = matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Named(_));
        Ok(Plan {
            requests: self.requests(vec![template], &request.sampling, "messages")?,
            text: rendered.text,
            image_tokens: self.pictures.as_ref().map_or(0, |served| served.places * request.pictures.len()),
            n: request.sampling.n as usize,
            start: rendered.start,
            tools: callable.then(|| KnownTools::new(request.tools.clone())),
            held_to: constraint.filter(|constraint| constraint.strict && required).map(|_| self.tool_format()),
            single_call: callable && !request.parallel_tool_calls,
        })
    }

    /// What the answers are held to: a format, calls, or both.
    fn constraint(&self, request: &ChatRequest) -> Option<AnswerConstraint> {
        let required = matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Named(_));
        let format = match &request.format {
            Format::Text => None,
            Format::JsonObject => Some(json!({"type": "object"})),
            Format::JsonSchema(schema) => Some(schema.clone()),
        };
        let strict = required || format.is_some();
        if request.tool_choice == ToolChoice::None {
            return format.map(|schema| AnswerConstraint { of: Constraint::JsonSchema(schema.to_string()), strict });
        }
        let token = |text: &str| self.tokenizer.id(text).filter(|id| self.tokenizer.is_special(*id));
        let held = Held {
            choice: &request.tool_choice,
            parallel: request.parallel_tool_calls && !matches!(request.tool_choice, ToolChoice::Named(_)),
            format: format.as_ref(),
            token: &token,
        };
        let grammar = grammar(self.tool_format(), &request.tools, &held)?;
        Some(AnswerConstraint { of: Constraint::Lark(grammar), strict })
    }

    /// The tokens around thinking, if the end of it is one.
    fn think_tokens(&self) -> Option<(Option<u32>, u32)> {
        let special = self.tokenizer.special();
        Some((special.think_begin, special.think_end?))
    }

    fn engine_thinking(&self, start: Start, asked: &Thinking) -> Option<wels_engine::Thinking> {
        let (begin, end) = self.think_tokens().filter(|_| start != Start::Plain)?;
        // A model whose template knows of no thinking may begin it all the same, but is not offered it.
        let begin = begin.filter(|_| self.template_thinks());
        Some(wels_engine::Thinking { begin, end, begun: start == Start::Thinking, budget: asked.budget })
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
        let adapter = self.engine_adapter();
        let template = |ids| Request { logprobs: request.logprobs, adapter: adapter.clone(), ..Request::new(ids, 1) };
        let requests = self.requests(ids.into_iter().map(template).collect(), &request.sampling, "prompt")?;
        let n = request.sampling.n as usize;
        Ok(Plan {
            requests,
            text: String::new(),
            image_tokens: 0,
            n,
            start: Start::Plain,
            tools: None,
            held_to: None,
            single_call: false,
        })
    }

    /// Plans the vectors of texts: the mean of the states of all tokens of each.
    ///
    /// # Errors
    /// As [`ServedModel::plan_completion`].
    pub fn plan_embeddings(
        &self,
        request: &EmbeddingRequest,
        prompt_limit: &PromptLimit,
    ) -> Result<Vec<Request>, ApiError> {
        let plan = |input: &Prompt| {
            let ids = match input {
                Prompt::Ids(ids) => ids.clone(),
                Prompt::Text(text) => self.encode_within(text, Form::Whole, prompt_limit, "input")?,
            };
            if ids.len() >= self.context {
                return Err(ApiError { param: Some("input".to_owned()), ..self.prompt_limit().beyond });
            }
            let adapter = self.engine_adapter();
            Ok(Request { embedding: Some(Pooling::Mean), adapter, ..Request::new(ids, 1) })
        };
        request.inputs.iter().map(plan).collect()
    }

    /// A text with what the tokenizer puts before every text.
    fn whole_text(&self, text: &str, prompt_limit: &PromptLimit) -> Result<Vec<u32>, ApiError> {
        let ids = self.encode_within(text, Form::Whole, prompt_limit, "prompt")?;
        // An empty prompt begins a text, if the model knows how texts begin.
        let bos = self.tokenizer.special().bos;
        Ok(if ids.is_empty() { bos.into_iter().collect() } else { ids })
    }

    /// Before a prefix, before a suffix, before what is between them: DeepSeek's, or those of Qwen or StarCoder.
    fn fill_in_tokens(&self) -> Option<[u32; 3]> {
        let special = self.tokenizer.special();
        let own = special.fim_begin.zip(special.fim_hole).zip(special.fim_end);
        let named = |names: [&str; 3]| -> Option<[u32; 3]> {
            let [begin, hole, end] = names.map(|name| self.tokenizer.id(name));
            Some([begin?, hole?, end?])
        };
        own.map(|((begin, hole), end)| [begin, hole, end])
            .or_else(|| named(["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]))
            .or_else(|| named(["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]))
    }

    /// Prefix, suffix, then what is between them (DeepSeek-Coder's PSM form).
    fn fill_in(&self, prefix: &str, suffix: &str, prompt_limit: &PromptLimit) -> Result<Vec<u32>, ApiError> {
        let special = self.tokenizer.special();
        let Some([begin, hole, end]) = self.fill_in_tokens() else {
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
            return Err(prompt_limit.beyond(param));
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

    /// The requests for `n` answers to each prompt. Answers get no more tokens than server and context leave them: who
    /// asks for more gets what there is, and is told by `length` where that was too little.
    fn requests(
        &self,
        templates: Vec<Request>,
        sampling: &SamplingFields,
        param: &str,
    ) -> Result<Vec<Request>, ApiError> {
        let mut requests = Vec::new();
        let seed = match sampling.seed {
            Some(seed) => seed,
            None => getrandom::u64().map_err(|_| ApiError::internal("The system has no random numbers."))?,
        };
        for template in templates {
            let room = self.context.saturating_sub(template.prompt.len());
            if room == 0 {
                let error = ApiError::context_length(format!(
                    "The prompt has {} tokens; the model's context is {} tokens, the answer's among them.",
                    template.prompt.len(),
                    self.context
                ));
                return Err(ApiError { param: Some(param.to_owned()), ..error });
            }
            let wanted = sampling.max_tokens.unwrap_or(usize::MAX).min(self.output_tokens_max).min(room);
            for choice in 0..sampling.n {
                requests.push(Request {
                    max_tokens: wanted,
                    sampling: engine_sampling(sampling, seed),
                    choice,
                    stop_tokens: self.stop_tokens.clone(),
                    stop: sampling.stop.clone(),
                    ..template.clone()
                });
            }
        }
        Ok(requests)
    }
}

/// What answers are held to.
struct AnswerConstraint {
    of: Constraint,
    /// Whether it is part of what the client asked for. One that is not is left out where it cannot be followed: then
    /// what is no call by its schema stays text.
    strict: bool,
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
            pictures: None,
            stop_tokens: Vec::new(),
            context: 2048,
            output_tokens_max: 16,
            embedding_width: 8,
            fingerprint: String::new(),
            created_unix_s: 0,
            adapter: None,
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
