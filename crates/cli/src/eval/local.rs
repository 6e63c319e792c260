//! A model here: questions go to the engine, many at a time, so that what prompts share is computed once.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wels_data::chat::{ChatTemplate, RenderOptions};
use wels_data::tokenizer::Tokenizer;
use wels_engine::{
    Engine, Event, FinishReason, Finished, LoadedModel, Options, Request, RequestError, RequestId, Sampling, Token,
};
use wels_pipeline::identity::identity;
use wels_pipeline::refusal::refuse;
use wels_runs::hash::sha256;
use wels_tasks::Prompt;

use super::Args;
use super::answer::{Answer, AnswerSink, Answerer, Questions, TOO_LONG, Work};
use crate::model::{OpenModel, check_context};

/// An engine and what it works on.
pub struct Local {
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    /// What the vocabulary puts in front of a text.
    bos: Option<u32>,
    eos: Vec<u32>,
    seed: u64,
    parallel: usize,
    identity: Value,
    /// Of written answers.
    generated_tokens: u64,
    /// Questions under way, by their numbers.
    pending: HashMap<usize, PendingQuestion>,
    /// Whose a request is, and which choices the tokens that it has scored belong to.
    requests: HashMap<RequestId, (usize, Vec<usize>)>,
}

/// A question under way.
struct PendingQuestion {
    answer: Answer,
    begun: Instant,
    /// Requests that have not ended.
    open: usize,
}

impl Local {
    /// Opens the model at `path`.
    pub fn open(args: &Args, path: &Path) -> Result<Local> {
        let location = args.adapter.locate(path)?;
        let mut open = OpenModel::open(&location)?;
        let none = || refuse("the model has no tokenizer", "put its tokenizer.json beside the weights");
        let tokenizer = Arc::new(open.tokenizer.take().ok_or_else(none)?);
        let template = ChatTemplate::of(&tokenizer)?;
        let positions = open.config.rope.max_positions;
        let context = args.context.map_or(positions, |asked| asked.get().min(positions));
        check_context(&open.config, context)?;
        let (model, params, cache_bytes) = args.load.take_with_cache(&open, context, args.cache_mib)?;
        let options = args.load.options(params.placement(), &open.config);
        let (cache_dtype, layout) = (options.cache_dtype, options.layout);
        let special = tokenizer.special();
        let added = tokenizer.encode_with_added("")?;
        let identity = json!({
            "files": identity(&location)?,
            "quant": format!("{:?}", args.load.quant).to_lowercase(),
            "cache": format!("{cache_dtype:?} {layout:?}").to_lowercase(),
            "context": context,
        });
        let parallel = args.parallel.get();
        let options = Options { max_running: parallel, max_waiting: usize::MAX, cache_bytes, ..options };
        let eos = open.config.eos_ids.iter().copied().chain(special.eos).collect();
        let bos = special.bos.filter(|bos| added.first() == Some(bos));
        let loaded = LoadedModel {
            model: Arc::new(model),
            params: Arc::new(params),
            tokenizer: Some(Arc::clone(&tokenizer)),
            janus: None,
        };
        Ok(Local {
            engine: Engine::new(loaded, options)?,
            tokenizer,
            template,
            bos,
            eos,
            seed: args.what.seed,
            parallel,
            identity,
            generated_tokens: 0,
            pending: HashMap::new(),
            requests: HashMap::new(),
        })
    }

    /// Puts question `number` to the engine, with as many examples as fit.
    fn begin(&mut self, asked: &dyn Questions, number: usize, hand_over: AnswerSink) -> Result<()> {
        let mut answer = Answer { end: TOO_LONG, ..Answer::default() };
        for shots in (0..=asked.shots()).rev() {
            let (text, ids) = self.encode(&asked.prompt(number, shots))?;
            answer.shots = shots;
            answer.prompt_sha256 = sha256(text.as_bytes());
            answer.prompt_tokens = Some(ids.len() as u64);
            answer.opened = text.trim_end().ends_with("<think>");
            let requests = self.requests(asked, number, &text, ids)?;
            let mut taken = Vec::with_capacity(requests.len());
            for (request, choices) in requests {
                match self.engine.enqueue(request) {
                    Ok(id) => taken.push((id, choices)),
                    Err(RequestError::PromptTooLong { .. }) => {
                        // One of several beginnings may be a token longer than the others: all or none.
                        taken.drain(..).for_each(|(id, _)| _ = self.engine.cancel(id));
                        break;
                    }
                    Err(refusal) => return Err(refuse(refusal.to_string(), "change the setting")),
                }
            }
            if !taken.is_empty() {
                let choices = asked.continuations(number).map_or(0, |continuations| continuations.len());
                answer.choices = vec![Some(0.0); choices];
                let open = taken.len();
                self.requests.extend(taken.into_iter().map(|(id, choices)| (id, (number, choices))));
                self.pending.insert(number, PendingQuestion { answer, begun: Instant::now(), open });
                return Ok(());
            }
        }
        hand_over(number, answer)
    }

    /// The text of a prompt, and its tokens.
    fn encode(&self, prompt: &Prompt) -> Result<(String, Vec<u32>)> {
        match prompt {
            Prompt::Text(text) => {
                let ids = self.bos.into_iter().chain(self.tokenizer.encode_ordinary(text)?).collect();
                Ok((text.clone(), ids))
            }
            Prompt::Messages(messages) => {
                let template = self.template.as_ref().context("the model has no chat template")?;
                let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
                let text = template.render(messages, &options)?;
                let ids = self.tokenizer.encode(&text)?;
                Ok((text, ids))
            }
        }
    }

    /// What the engine is asked: for a written answer one request; for the likelihood of choices one for each different
    /// beginning of theirs, so one where each choice is a token.
    fn requests(
        &self,
        asked: &dyn Questions,
        number: usize,
        text: &str,
        ids: Vec<u32>,
    ) -> Result<Vec<(Request, Vec<usize>)>> {
        let Some(continuations) = asked.continuations(number) else {
            let request = Request {
                sampling: asked.sampling(number, self.seed),
                choice: asked.sample(number),
                stop_tokens: self.eos.clone(),
                stop: asked.stops(),
                ..Request::new(ids, asked.max_tokens())
            };
            return Ok(vec![(request, Vec::new())]);
        };
        let mut beginnings: BTreeMap<Vec<u32>, (Vec<u32>, Vec<usize>)> = BTreeMap::new();
        for (choice, continuation) in continuations.iter().enumerate() {
            let (_, whole) = self.encode(&Prompt::Text(format!("{text}{continuation}")))?;
            // Mostly all of the prompt; less where the continuation is merged with its end.
            let same = ids.iter().zip(&whole).take_while(|(a, b)| a == b).count();
            for at in same.min(whole.len().saturating_sub(1))..whole.len() {
                let (tokens, choices) = beginnings.entry(whole[..at].to_vec()).or_default();
                tokens.push(whole[at]);
                choices.push(choice);
            }
        }
        let request = |(beginning, (scored, choices))| {
            (Request { sampling: Sampling::greedy(), scored, ..Request::new(beginning, 1) }, choices)
        };
        Ok(beginnings.into_iter().map(request).collect())
    }

    fn token(&mut self, token: &Token) {
        let Some((number, choices)) = self.requests.get(&token.id) else { return };
        let answer = &mut self.pending.get_mut(number).expect("a request's question is under way").answer;
        for (choice, logprob) in choices.iter().zip(&token.scored) {
            if let Some(sum) = &mut answer.choices[*choice] {
                *sum += logprob;
            }
        }
        if choices.is_empty() {
            answer.text.push_str(&token.text);
        }
    }

    fn finished(&mut self, end: &Finished, hand_over: AnswerSink) -> Result<()> {
        let Some((number, choices)) = self.requests.remove(&end.id) else { return Ok(()) };
        let question = self.pending.get_mut(&number).expect("a request's question is under way");
        let answer = &mut question.answer;
        if end.reason == FinishReason::Error {
            return Err(refuse("the model's logits are not finite", "its weights are damaged"));
        }
        answer.end = if choices.is_empty() { reason(end.reason) } else { "scored" };
        let generated = if choices.is_empty() { end.usage.generated as u64 } else { 0 };
        answer.generated_tokens = Some(generated);
        self.generated_tokens += generated;
        answer.cached_tokens += end.usage.cached as u64;
        question.open -= 1;
        if question.open == 0 {
            let PendingQuestion { mut answer, begun, .. } = self.pending.remove(&number).expect("it is under way");
            answer.seconds = begun.elapsed().as_secs_f64();
            hand_over(number, answer)?;
        }
        Ok(())
    }
}

impl Answerer for Local {
    fn answer(
        &mut self,
        questions: &dyn Questions,
        numbers: Range<usize>,
        stop: &dyn Fn() -> bool,
        hand_over: AnswerSink,
    ) -> Result<()> {
        let mut numbers = numbers;
        loop {
            // As many again wait as run, so that those of another prefix begin while one is computed.
            while self.pending.len() < 2 * self.parallel
                && let Some(number) = numbers.next()
            {
                self.begin(questions, number, hand_over)?;
            }
            if stop() || self.pending.is_empty() && numbers.is_empty() {
                return Ok(());
            }
            for event in self.engine.step() {
                match event {
                    Event::Token(token) => self.token(&token),
                    Event::Embedding { .. } => {} // nobody asks for one here
                    Event::Finished(end) => self.finished(&end, hand_over)?,
                }
            }
        }
    }

    fn can_chat(&self) -> bool {
        self.template.is_some()
    }

    fn can_score(&self) -> bool {
        true
    }

    fn identity(&self) -> &Value {
        &self.identity
    }

    fn work(&self, elapsed: Duration) -> Work {
        let counters = self.engine.status().counters;
        Work {
            prompt_tokens: counters.prompt_tokens,
            cached_tokens: counters.cached_tokens,
            generated_tokens: self.generated_tokens,
            seconds: elapsed.as_secs_f64(),
            ..Work::default()
        }
    }
}

fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::StopString(_) => "stop string",
        FinishReason::Length => "length",
        FinishReason::Constraint => "constraint",
        FinishReason::ConstraintTooHard => "constraint too hard",
        FinishReason::Cancelled => "cancelled",
        FinishReason::Error => "error",
    }
}
