//! The last stage: the trained model continues the recipe's prompts, for the host and in `sample/samples.json`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use std::sync::Arc;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use wels_data::tokenizer::Tokenizer;
use wels_model::count;
use wels_model::generate::{Request, Sampling, generate};
use wels_model::model::Model;
use wels_model::tape::Execution;
use wels_runs::checkpoint;
use wels_runs::ledger::{Entry, STAGE_DONE};
use wels_runs::recipe::{Recipe, SampleSection};
use wels_runs::rundir::write_json;

use crate::host::{Event, Outcome};
use crate::model::{Location, load_params, model_folder};
use crate::session::{GENERATE, Session, Spending, record_of};

/// A prompt, and how it was continued.
#[derive(Serialize, Deserialize)]
struct Sample {
    prompt: String,
    text: String,
    /// At most.
    tokens: usize,
    temperature: f64,
}

/// Writes the samples, and says where the model is.
pub(crate) fn sample(session: &mut Session, recipe: &Recipe, tokenizer: &Tokenizer) -> Result<()> {
    if !recipe.pretrains() {
        return tell(session);
    }
    let section = &recipe.sample;
    let file = session.rank.run.stage("sample")?.join("samples.json");
    if is_written(session, section, &file) {
        return tell(session);
    }
    let stage = session.rank.run.path().join("pretrain");
    let checkpoint = checkpoint::latest(&stage)?.context("the stage pretrain has no checkpoint")?;
    let config = recipe.model.config();
    let params = load_params(&session.rank.device, &Location::Directory(checkpoint.path.clone()), config)?;
    let model = Model::new(config.clone(), config.rope.max_positions);
    let execution = Execution::new(Arc::clone(&session.rank.device));
    let sampling = match section.temperature {
        0.0 => Sampling::Greedy,
        temperature => Sampling::Random { temperature: temperature as f32, top_p: 1.0, seed: recipe.run.seed },
    };
    let special = tokenizer.special();
    let stop: Vec<u32> = special.eos.into_iter().collect();
    let (mut samples, mut tokens, mut flops) = (Vec::new(), 0, 0.0);
    for prompt in &section.prompts {
        let mut ids: Vec<u32> = special.bos.into_iter().collect();
        ids.extend(tokenizer.encode_ordinary(prompt)?);
        ids.truncate(config.rope.max_positions);
        if ids.is_empty() {
            continue; // no text and no BOS: there is nothing to continue
        }
        let next = Spending { sampled: (ids.len() + section.tokens) as u64, ..Spending::default() };
        if let Some(why) = session.why_stop(Spending { sampled: tokens, ..Spending::default() }, next) {
            let (stage, kind) = ("sample".into(), GENERATE.into());
            return Err(session.stop(why, Entry { stage, kind, tokens, flops, ..Entry::default() }));
        }
        let request = Request { prompt: &ids, max_new_tokens: section.tokens, stop: &stop, sampling };
        let new = generate(&model, &params, &execution, request, |_| ControlFlow::Continue(()));
        let text = tokenizer.decode(&new)?;
        session.host.result(Outcome::Sample { prompt, text: &text })?;
        let forward = count::forward_flops(config, count::Context::Causal { tokens: ids.len() + new.len() });
        tokens += (ids.len() + new.len()) as u64;
        flops += forward.total().0 as f64 * (ids.len() + new.len()) as f64;
        let temperature = section.temperature;
        samples.push(Sample { prompt: prompt.clone(), text, tokens: section.tokens, temperature });
    }
    write_json(&file, &samples)?;
    session.record(Entry {
        event: STAGE_DONE.into(),
        stage: "sample".into(),
        kind: GENERATE.into(),
        tokens,
        flops,
        files: BTreeMap::from([("samples.json".to_string(), record_of(&file)?)]),
        ..Entry::default()
    })?;
    tell(session)
}

/// Whether the ledger knows the file, and the file is what the recipe asks for now: its keys may change under a run.
fn is_written(session: &Session, section: &SampleSection, file: &Path) -> bool {
    let done = session.ledger.entries().iter().rfind(|entry| entry.stage == "sample");
    let known = done.and_then(|done| done.files.get("samples.json"));
    if known.is_none() || record_of(file).ok().as_ref() != known {
        return false;
    }
    let samples: Option<Vec<Sample>> =
        std::fs::read_to_string(file).ok().and_then(|text| serde_json::from_str(&text).ok());
    let as_asked = |it: &Sample| (it.tokens, it.temperature) == (section.tokens, section.temperature);
    let same = |samples: Vec<Sample>| {
        samples.iter().all(as_asked) && samples.iter().map(|it| &it.prompt).eq(section.prompts.iter())
    };
    samples.is_some_and(same)
}

/// Says where the last model is.
fn tell(session: &mut Session) -> Result<()> {
    let recipe = session.rank.run.recipe();
    if !recipe.pretrains() && !recipe.stages.iter().any(|stage| stage.work.trains()) {
        return Ok(());
    }
    let folder = model_folder(session.rank.run.path())?;
    session.host.event(Event::Model(&folder));
    Ok(())
}
