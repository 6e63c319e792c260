//! A model that answers conversations, as the loop of the agent wants it: template, engine, calls read from the answer.

use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use anyhow::Result;
use wels_agent::{Call, Context, Event as Shown, Host, Model, ModelError, Reply, ReplyEnd};
use wels_data::tokenizer::Tokenizer;
use wels_engine::{Engine, Event, FinishReason, Finished, Request, RequestError, Sampling, Usage};
use wels_pipeline::refusal::refuse;
use wels_server::answer::{Answer, Start};
use wels_server::prompt::{Known, Plan, ServedModel};
use wels_server::wire::{
    ApiError, ChatDelta, ChatRequest, Choice, Format, SamplingFields, Thinking, Tool, ToolChoice, take_pictures,
};

use crate::janus::WHICH;

/// How answers are made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The most tokens of an answer.
    pub max_tokens: usize,
}

/// An engine with its model.
pub struct Answers {
    engine: Engine,
    served: ServedModel,
    /// The last prompt and what was answered, whose tokens the engine's cache holds.
    known: Known,
    /// One moment for the whole conversation, so that a template that tells the day does not rewrite its beginning.
    now_unix_s: i64,
    /// May be changed between questions.
    pub settings: Settings,
    /// How often the last question was asked again: each time draws other random numbers.
    pub retries: u32,
    /// What was thought since the last question.
    pub thinking: String,
    /// What the answers since the last question took.
    pub figures: Figures,
}

/// What answers took.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    answers: usize,
    /// Of the last answer.
    reason: Option<FinishReason>,
    /// Tokens of the last prompt, and of those the ones that the cache had.
    pub prompt: usize,
    pub cached: usize,
    /// Of all answers.
    pub generated: usize,
    drafted: usize,
    accepted: usize,
    /// From the question to the first token of its first answer.
    first_token_seconds: f64,
    /// From the first token of each answer to its last.
    writing_seconds: f64,
}

/// One answer under way.
struct Running {
    answer: Answer,
    choice: Choice,
    raw: String,
    ids: Vec<u32>,
    begin: Instant,
    first_token: Option<Instant>,
}

impl Answers {
    pub fn new(engine: Engine, served: ServedModel, settings: Settings) -> Answers {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Answers {
            engine,
            served,
            known: Known::default(),
            now_unix_s: now.map_or(0, |now| now.as_secs() as i64),
            settings,
            retries: 0,
            thinking: String::new(),
            figures: Figures::default(),
        }
    }

    /// Whether it was trained to talk; else questions are continued like any text.
    pub fn can_chat(&self) -> bool {
        self.served.template.is_some()
    }

    /// Whether questions can be about pictures.
    pub fn sees(&self) -> bool {
        self.served.pictures.is_some() && self.can_chat()
    }

    fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.served.tokenizer
    }

    /// Prompt, request and reader of an answer.
    fn plan(&self, context: &Context) -> Result<(String, Request, Answer), ModelError<anyhow::Error>> {
        let max_tokens = context.tokens_max.unwrap_or(usize::MAX).min(self.settings.max_tokens);
        if !self.can_chat() {
            let question = context.messages.last().and_then(|message| message.content.as_str()).unwrap_or_default();
            let mut ids: Vec<u32> = self.tokenizer().special().bos.into_iter().collect();
            let encoded = self.tokenizer().encode_ordinary(question);
            ids.extend(encoded.map_err(|error| ModelError::Other(error.into()))?);
            let request = Request { stop_tokens: self.served.stop_tokens.clone(), ..Request::new(ids, max_tokens) };
            return Ok((question.to_owned(), self.own(request), Answer::new(Start::Plain, None, None)));
        }
        let asked = asked(context, max_tokens).map_err(|error| self.refused(error))?;
        if !asked.pictures.is_empty() && !self.sees() {
            return Err(ModelError::Other(refuse("the model is a model of text, and sees no pictures", WHICH)));
        }
        let limit = self.served.prompt_limit();
        let plan = self.served.plan_chat_behind(&self.known, &asked, self.now_unix_s, &limit);
        let plan: Plan = plan.map_err(|error| self.refused(error))?;
        let answer = plan.answer();
        let request = plan.requests.into_iter().next().expect("one answer was asked for");
        let room = self.served.context - request.prompt.len();
        if !context.tools.is_empty() && room < self.served.context / 16 {
            return Err(ModelError::Full { context: self.served.context }); // no answer with a call would fit
        }
        Ok((plan.text, self.own(request), answer))
    }

    /// With this conversation's settings.
    fn own(&self, request: Request) -> Request {
        Request { sampling: self.settings.sampling.clone(), choice: self.retries, ..request }
    }

    fn refused(&self, error: ApiError) -> ModelError<anyhow::Error> {
        match error.code {
            Some("context_length_exceeded") => ModelError::Full { context: self.served.context },
            _ => ModelError::Other(refuse(error.message, "change what was said, or begin anew with /clear")),
        }
    }

    /// Lets the engine run until the answer has ended.
    fn read(&mut self, request: Request, running: &mut Running, host: &mut dyn Host) -> Result<Finished> {
        let id = self.engine.enqueue(request).map_err(too_long)?;
        loop {
            if host.is_stopped() {
                self.engine.cancel(id);
            }
            let mut end = None;
            for event in self.engine.step() {
                match event {
                    Event::Token(token) => {
                        running.first_token.get_or_insert_with(Instant::now);
                        running.ids.push(token.token);
                        running.raw.push_str(&token.text);
                        let deltas = running.answer.push(&token.text);
                        running.take(deltas, host);
                    }
                    Event::Embedding { .. } => {} // nobody asks for one here
                    Event::Finished(finished) => end = Some(finished),
                }
            }
            if let Some(end) = end {
                let deltas = running.answer.finish();
                running.take(deltas, host);
                return Ok(end);
            }
        }
    }

    /// What the cache holds now.
    fn remember(&mut self, mut text: String, mut prompt: Vec<u32>, running: &Running) {
        text.push_str(&running.raw);
        let stop = running.ids.last().is_some_and(|last| self.served.stop_tokens.contains(last));
        prompt.extend(&running.ids[..running.ids.len() - usize::from(stop)]);
        self.known = Known { text, ids: prompt };
    }
}

impl Model for Answers {
    type Error = anyhow::Error;

    fn answer(&mut self, context: &Context, host: &mut dyn Host) -> Result<Reply, ModelError<anyhow::Error>> {
        let (text, request, answer) = self.plan(context)?;
        let prompt = request.prompt.clone();
        let mut running = Running {
            answer,
            choice: Choice::default(),
            raw: String::new(),
            ids: Vec::new(),
            begin: Instant::now(),
            first_token: None,
        };
        let end = self.read(request, &mut running, host).map_err(ModelError::Other)?;
        if end.reason == FinishReason::Error {
            let hint = "its weights are damaged";
            return Err(ModelError::Other(refuse("the model's logits are not finite", hint)));
        }
        self.remember(text, prompt, &running);
        self.figures.add(&end, &running);
        let Choice { reasoning, content, calls, .. } = running.choice;
        self.thinking.push_str(reasoning.as_deref().unwrap_or_default());
        let calls = calls.into_iter().map(|(_, name, arguments)| Call { name, arguments }).collect();
        let why = match end.reason {
            FinishReason::Length => ReplyEnd::Length,
            FinishReason::Cancelled => ReplyEnd::Stopped,
            _ => ReplyEnd::Stop,
        };
        Ok(Reply { reasoning: reasoning.unwrap_or_default(), content, calls, end: why, tokens: end.usage.generated })
    }
}

/// The request of the API that this would be.
fn asked(context: &Context, max_tokens: usize) -> Result<ChatRequest, ApiError> {
    let mut messages = context.messages.to_vec();
    let pictures = take_pictures(&mut messages)?;
    let tool = |tool: &wels_agent::Definition| Tool::new(tool.name.clone(), &tool.description, tool.parameters.clone());
    let tool_choice = match (context.tools.is_empty(), context.must_call) {
        (true, _) => ToolChoice::None,
        (false, true) => ToolChoice::Required,
        (false, false) => ToolChoice::Auto,
    };
    let sampling = SamplingFields {
        temperature: 0.0, // the engine's request gets the conversation's own settings
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        repetition_penalty: 1.0,
        logit_bias: Vec::new(),
        seed: Some(0),
        stop: Vec::new(),
        max_tokens: Some(max_tokens),
        n: 1,
    };
    Ok(ChatRequest {
        model: String::new(),
        messages,
        pictures,
        prefix: None,
        sampling,
        streams: false,
        logprobs: None,
        tools: context.tools.iter().map(tool).collect(),
        tool_choice,
        parallel_tool_calls: true,
        format: Format::Text,
        thinking: Thinking::default(),
        template_variables: serde_json::Map::new(),
    })
}

impl Running {
    fn take(&mut self, deltas: Vec<ChatDelta>, host: &mut dyn Host) {
        for delta in deltas {
            match &delta {
                ChatDelta::Reasoning(text) => host.show(Shown::Reasoning(text)),
                ChatDelta::Content(text) => host.show(Shown::Content(text)),
                ChatDelta::Call(_) => {} // shown as a whole, when it is made
            }
            self.choice.push(&delta);
        }
    }
}

fn too_long(refusal: RequestError) -> anyhow::Error {
    let hint = match refusal {
        RequestError::PromptTooLong { .. } => "forget what was said with /new, or start with a larger --context",
        _ => "change the setting",
    };
    refuse(refusal.to_string(), hint)
}

impl Figures {
    fn add(&mut self, end: &Finished, running: &Running) {
        let Usage { prompt, cached, generated, drafted, accepted } = end.usage;
        if let Some(first) = running.first_token {
            if self.answers == 0 {
                self.first_token_seconds = (first - running.begin).as_secs_f64();
            }
            self.writing_seconds += first.elapsed().as_secs_f64();
        }
        self.answers += 1;
        self.reason = Some(end.reason);
        (self.prompt, self.cached) = (prompt, cached);
        self.generated += generated;
        self.drafted += drafted;
        self.accepted += accepted;
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.generated.saturating_sub(self.answers) as f64 / self.writing_seconds.max(1e-9);
        if self.answers > 1 {
            write!(f, "{} answers, ", self.answers)?;
        }
        write!(f, "{} tokens, {rate:.1} tokens/s", self.generated)?;
        write!(f, "; first after {:.2} s, ", self.first_token_seconds)?;
        write!(f, "{} of {} before it from the cache", self.cached, self.prompt)?;
        if self.drafted > 0 {
            write!(f, "; {} of {} drafted tokens accepted", self.accepted, self.drafted)?;
        }
        match self.reason {
            Some(FinishReason::Length) => write!(f, "; cut at the limit"),
            Some(FinishReason::Cancelled) => write!(f, "; stopped"),
            _ => Ok(()),
        }
    }
}
