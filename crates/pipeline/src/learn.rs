//! Stages of kind `pretrain` and `sft`: the mean loss over worked examples, over every token or the answers alone; and
//! `distil` on given answers, with the divergence from a teacher as the loss.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use wels_data::chat::{ChatTemplate, Message};
use wels_data::tokenizer::Tokenizer;
use wels_kernels::random::Key;
use wels_runs::checkpoint::Checkpoint;
use wels_runs::plan::stages::{TokenFlops, learning_flops};
use wels_runs::recipe::{DEMONSTRATIONS, DOCUMENTS, DataSection, StageSection, Supervised, TRACES, Work};
use wels_runs::rundir::RunDir;
use wels_train::doctor::{Learnt, LossDoctor};
use wels_train::example::{Example, batches, pack};
use wels_train::prompter::Prompter;
use wels_train::trainer::StepReport;
use wels_train::{distil, sft};

use crate::blanks;
use crate::doctor;
use crate::documents::open_corpus;
use crate::experts::ExchangeLine;
use crate::host::{Event, Host};
use crate::learner::{Learner, Learns};
use crate::named;
use crate::rank::Rank;
use crate::refusal::refuse;
use crate::samples::{self, Kept};
use crate::session::Session;
use crate::start::config_for;
use crate::task::{self, HeldOutLines};
use crate::teacher::TeacherModel;
use crate::training::{Position, Stage, Trained, Training};
use crate::words::short;

/// Text that a stage learns from `[data]`.
const DOCUMENT_BYTES_MAX: usize = 256 << 20;

/// Stream of the run's seed that orders examples.
const STREAM_ORDER: u64 = 0x6c65_6172;

/// One line of `metrics.jsonl`; the last three depend on the machine.
#[derive(Serialize)]
pub(crate) struct SupervisedMetrics {
    #[serde(flatten)]
    position: Position,
    loss: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    divergence: Option<f64>,
    mtp_losses: Vec<f64>,
    targets: u64,
    balance: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    indexer_loss: Option<f64>,
    max_violation: f64,
    grad_norm: f64,
    learning_rate: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exchange: Option<ExchangeLine>,
    seconds: f64,
    tokens_per_second: f64,
}

/// Does what is left of the stage; with a teacher, learns from what it makes of the same examples.
pub(crate) fn learn(
    session: &mut Session,
    tokenizer: &Tokenizer,
    stage: &StageSection,
    section: &Supervised,
    teacher: Option<TeacherModel>,
) -> Result<()> {
    let data = TrainingSet::prepare(&session.rank.run, tokenizer, stage, section, teacher, session.host)?;
    let at = Stage {
        name: &stage.name,
        label: "learn",
        tokenizer,
        checkpoints: &section.optimization.checkpoints,
        steps: data.plan.len() as u64,
        samples: false,
        flops: data.flops,
    };
    let Some((running, latest)) = at.open(session)? else { return Ok(()) };
    session.host.event(Event::Examples { stage: &stage.name, count: data.examples.len() });
    let learning = data.begin(&session.rank, tokenizer, stage, section, latest.as_ref())?;
    running.run(session, learning)
}

/// What a stage learns from, and in which order.
pub(crate) struct TrainingSet {
    examples: Vec<Example>,
    /// The examples of each step.
    plan: Vec<Vec<usize>>,
    context: usize,
    flops: TokenFlops,
    teacher: Option<TeacherModel>,
}

impl TrainingSet {
    /// Reads the examples and puts them in order.
    pub fn prepare(
        run: &RunDir,
        tokenizer: &Tokenizer,
        stage: &StageSection,
        section: &Supervised,
        teacher: Option<TeacherModel>,
        host: &mut dyn Host,
    ) -> Result<TrainingSet> {
        let config = config_for(run, &section.start)?;
        let context = teacher.as_ref().map_or(usize::MAX, TeacherModel::context).min(config.rope.max_positions);
        let examples = examples(run, tokenizer, section, matches!(stage.work, Work::Pretrain(_)), context, host)?;
        let rows: Vec<usize> = examples.iter().map(Example::rows).collect();
        let mean_rows = (rows.iter().sum::<usize>() / rows.len()).max(1);
        let key = Key { seed: run.recipe().run.seed, stream: STREAM_ORDER };
        let plan = batches(&rows, section.batch_tokens, section.epochs, key);
        let theirs = teacher.as_ref().map(TeacherModel::config);
        let flops = TokenFlops::counted(learning_flops(&config, &section.optimization, theirs, mean_rows));
        Ok(TrainingSet { examples, plan, context, flops, teacher })
    }

    /// Ready to go on behind a checkpoint, or from the stage's beginning.
    pub fn begin(
        self,
        rank: &Rank,
        tokenizer: &Tokenizer,
        stage: &StageSection,
        section: &Supervised,
        latest: Option<&Checkpoint>,
    ) -> Result<Learning> {
        let learns = Learns {
            stage: &stage.name,
            precision: stage.precision,
            start: &section.start,
            optimization: &section.optimization,
            updates: self.plan.len() as u64,
            context: self.context,
        };
        let trainer = Learner::begin(rank, learns, tokenizer, latest)?;
        let doctor = doctor::of_losses(&rank.run, &stage.name, latest)?;
        Ok(Learning { data: self, trainer, micro_rows: section.optimization.micro_rows, doctor })
    }
}

/// A stage that learns from examples.
pub(crate) struct Learning {
    data: TrainingSet,
    trainer: Learner,
    micro_rows: usize,
    doctor: LossDoctor,
}

impl Training for Learning {
    type Metrics = SupervisedMetrics;

    fn step(&mut self, at: Position) -> Result<(Position, SupervisedMetrics)> {
        let started = Instant::now();
        let TrainingSet { examples, plan, teacher, .. } = &self.data;
        let Some(chosen) = plan.get(at.step as usize) else {
            let message = format!("the data has {} steps, and step {} is asked for", plan.len(), at.step + 1);
            return Err(refuse(message, "it is not what the stage began with"));
        };
        let batch = pack(chosen.iter().map(|index| &examples[*index]));
        let report = match teacher {
            None => self.trainer.step(&batch, self.micro_rows)?,
            Some(teacher) => distil::step(&mut self.trainer, &teacher.teacher(), &batch, self.micro_rows)?,
        };
        let tokens = batch.tokens.len() as u64;
        let position = Position { step: at.step + 1, updates: at.updates + 1, tokens: at.tokens + tokens, ..at };
        let divergence = teacher.as_ref().map(|_| report.divergence);
        let (loss, grad_norm) = (report.loss, report.grad_norm);
        let warnings = self.doctor.look(Learnt { loss, grad_norm, ..Learnt::default() });
        let line = SupervisedMetrics::new(report, position, tokens, started.elapsed().as_secs_f64());
        let exchange = ExchangeLine::of(&mut self.trainer);
        Ok((position, SupervisedMetrics { divergence, warnings, exchange, ..line }))
    }

    fn trained(&self) -> &dyn Trained {
        &self.trainer
    }

    fn next_tokens(&self, at: Position) -> Option<u64> {
        let chosen = self.data.plan.get(at.step as usize)?;
        Some(chosen.iter().map(|index| self.data.examples[*index].rows() as u64).sum())
    }

    fn in_words(&self, line: &SupervisedMetrics) -> String {
        let divergence = line.divergence.map_or(String::new(), |nats| format!("divergence {nats:.3}, "));
        format!("{divergence}loss {:.3}, {} tok/s", line.loss, short(line.tokens_per_second))
    }

    fn remarks(&self, line: &SupervisedMetrics) -> Vec<String> {
        doctor::in_lines(&line.warnings).collect()
    }
}

impl SupervisedMetrics {
    fn new(report: StepReport, position: Position, tokens: u64, seconds: f64) -> SupervisedMetrics {
        SupervisedMetrics {
            position,
            loss: report.loss,
            divergence: None,
            mtp_losses: report.mtp_losses,
            targets: report.targets,
            balance: report.balance,
            indexer_loss: report.indexer,
            max_violation: report.experts.iter().map(|experts| experts.max_violation).fold(0.0, f64::max),
            grad_norm: report.grad_norm,
            learning_rate: report.learning_rate,
            warnings: Vec::new(),
            exchange: None,
            seconds,
            tokens_per_second: tokens as f64 / seconds,
        }
    }
}

/// What the stage learns from. Examples that the context does not hold are left out, and their number is noted.
fn examples(
    run: &RunDir,
    tokenizer: &Tokenizer,
    section: &Supervised,
    learn_prompts: bool,
    context: usize,
    host: &mut dyn Host,
) -> Result<Vec<Example>> {
    let template = || {
        let none = || {
            let hint = "train one with tokenizer.chat_template, or put chat_template into its tokenizer_config.json";
            refuse("the tokenizer has no chat template", hint)
        };
        ChatTemplate::of(tokenizer)?.ok_or_else(none)
    };
    let mut examples: Vec<Example> = match section.data.as_str() {
        DOCUMENTS => documents(&run.recipe().data, tokenizer, context)?,
        TRACES => {
            let template = template()?;
            let answer = |(question, answer): &(String, String)| sft::answer(tokenizer, &template, question, answer);
            let pairs = task::traces(section, run.recipe().run.seed, section.traces)?;
            pairs.iter().map(answer).collect::<Result<_, _>>()?
        }
        DEMONSTRATIONS => {
            let template = template()?;
            let prompter = Prompter { tokenizer, template: Some(&template) };
            let played = task::demonstrations(section, run.recipe().run.seed, section.traces)?;
            played.iter().map(|played| sft::demonstration(&prompter, played)).collect::<Result<_, _>>()?
        }
        data if blanks::maker(run.recipe(), data).is_some() => blanks::examples(run, data, tokenizer, &template()?)?,
        data if run.path().join(data).is_dir() => {
            let template = template()?;
            let prompter = Prompter { tokenizer, template: Some(&template) };
            let kept = samples::kept(&run.path().join(data))?;
            let example = |it: &Kept| sft::transcript(&prompter, &it.prompt, &it.answer, &it.said);
            kept.iter().map(example).collect::<Result<_, _>>()?
        }
        path => {
            let (path, template) = (named::file(path)?, template()?);
            let held_out = HeldOutLines::of(run.recipe(), &path);
            let (examples, left_out) = conversations(&path, tokenizer, &template, held_out.as_ref())?;
            if left_out > 0 {
                let words = format!("{left_out} lines of {} are held out by a task, and not learnt", path.display());
                host.event(Event::Note(&words));
            }
            examples
        }
    };
    let all = examples.len();
    examples.retain(|example| example.rows() <= context && example.has_target());
    if examples.len() < all {
        let longer = all - examples.len();
        host.event(Event::Note(&format!("{longer} of {all} examples are longer than the context of {context} tokens")));
    }
    if examples.is_empty() {
        return Err(refuse(format!("{} holds no example", section.data), "give it examples that fit the context"));
    }
    if learn_prompts {
        examples.iter_mut().for_each(|example| example.learn.fill(true));
    }
    Ok(examples)
}

/// The text of `[data]`, each document ended by the end of a text and cut into as many tokens as a sequence has.
pub(crate) fn documents(data: &DataSection, tokenizer: &Tokenizer, context: usize) -> Result<Vec<Example>> {
    let (rows, end) = (data.sequence_length.min(context), tokenizer.special().eos);
    let (mut examples, mut bytes) = (Vec::new(), 0);
    for text in open_corpus(data)?.documents() {
        let text = text?;
        bytes += text.len();
        if bytes > DOCUMENT_BYTES_MAX {
            let message =
                format!("data.sources has more than {DOCUMENT_BYTES_MAX} bytes of text, all of which is in memory");
            return Err(refuse(message, "name fewer files, or learn them by [pretrain]"));
        }
        let mut tokens = tokenizer.encode_ordinary(&text)?;
        tokens.extend(end);
        for first in (0..tokens.len().saturating_sub(1)).step_by(rows) {
            let tokens = tokens[first..(first + rows + 1).min(tokens.len())].to_vec();
            examples.push(Example { learn: vec![true; tokens.len()], tokens });
        }
    }
    Ok(examples)
}

/// Conversations from a JSONL file: `{"messages": [{"role": …, "content": …}, …]}`, or `{"question": …, "answer": …}`;
/// and how many lines were left out, since they are held out.
pub(crate) fn conversations(
    path: &Path,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    held_out: Option<&HeldOutLines>,
) -> Result<(Vec<Example>, usize)> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (mut examples, mut left_out) = (Vec::new(), 0);
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    for (index, (number, line)) in lines.enumerate() {
        let place = || format!("{}:{number}", path.display());
        let value: Value =
            serde_json::from_str(line).with_context(|| format!("{}:{number} is not JSON", path.display()))?;
        if held_out.is_some_and(|lines| lines.has(index, &value)) {
            left_out += 1;
            continue;
        }
        if let (Some(question), Some(answer)) = (value["question"].as_str(), value["answer"].as_str()) {
            examples.push(sft::answer(tokenizer, template, question, answer).with_context(place)?);
            continue;
        }
        let Some(messages) = value.get("messages") else {
            let hint =
                "a line is {\"messages\": [{\"role\": …, \"content\": …}, …]} or {\"question\": …, \"answer\": …}";
            return Err(refuse(format!("{} has neither messages nor question and answer", place()), hint));
        };
        let messages: Vec<Message> = serde_json::from_value(messages.clone()).with_context(place)?;
        examples.extend(sft::conversation(tokenizer, template, &messages).with_context(place)?);
    }
    Ok((examples, left_out))
}
