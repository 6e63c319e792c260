//! The first two stages: the tokenizer, and the corpus as shards of tokens.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use wels_data::chat::{DEEPSEEK_R1, DEEPSEEK_V3, JANUS};
use wels_data::corpus::Corpus;
use wels_data::shards::{Dataset, Manifest, Phase, ShardError, ShardOptions, build};
use wels_data::tokenizer::{BpeTrainer, SpecialTokens, Tokenizer};
use wels_runs::checkpoint;
use wels_runs::files;
use wels_runs::ledger::{Entry, STAGE_DONE};
use wels_runs::recipe::{Recipe, TokenizerSection};

use crate::documents::open_corpus;
use crate::host::Event;
use crate::model::named_tokenizer;
use crate::named;
use crate::refusal::refuse;
use crate::session::{PREPARE, Session, Spending, record_of};
use crate::words::short;
use crate::{pictures, task};

/// Scenes of a world whose captions and questions a tokenizer is trained on.
const SCENES: u64 = 2000;

/// Text that is counted at a time while a tokenizer is trained.
const TRAINING_BATCH_BYTES: usize = 4 << 20;

/// The run's tokenizer, trained or copied if it is not there yet.
pub(crate) fn tokenizer(session: &mut Session, recipe: &Recipe) -> Result<Tokenizer> {
    let folder = session.rank.run.path().join("tokenizer");
    if !folder.exists() {
        let tokenizer = match &recipe.tokenizer {
            TokenizerSection::Load { path } => {
                let cannot = || format!("cannot load the tokenizer {}", path.display());
                let place = path.to_str().map_or(Ok(Cow::Borrowed(path.as_path())), named::text_of_model)?;
                named_tokenizer(&place).with_context(cannot)?
            }
            TokenizerSection::Train { vocab_size, training_bytes, number_digits, chat_template } => {
                let special = match chat_template.as_str() {
                    "janus" => SpecialTokens::of_janus(),
                    _ => SpecialTokens::default(),
                };
                let trainer = BpeTrainer::new(*vocab_size, special)?.number_digits(*number_digits)?;
                let mut tokenizer = train(session, recipe, trainer, *training_bytes)?;
                tokenizer.set_chat_template(match chat_template.as_str() {
                    "deepseek_v3" => Some(DEEPSEEK_V3.into()),
                    "deepseek_r1" => Some(DEEPSEEK_R1.into()),
                    "janus" => Some(JANUS.into()),
                    _ => None,
                });
                tokenizer
            }
        };
        let context_length = recipe.model.config().rope.max_positions;
        files::write_folder_atomically(&folder, |temporary| -> Result<()> {
            Ok(tokenizer.save(temporary, context_length)?)
        })
        .with_context(|| format!("cannot write {}", folder.display()))?;
    }
    // Also behind a kill that came before the line was written.
    if session.ledger.stage_done("tokenizer").is_none() {
        session.record(Entry {
            event: STAGE_DONE.into(),
            stage: "tokenizer".into(),
            kind: PREPARE.into(),
            files: checkpoint::records_within(&folder)?,
            ..Entry::default()
        })?;
    }
    let tokenizer = Tokenizer::load(&folder)?;
    let (ids, vocab_size) = (tokenizer.vocab_size(), recipe.model.config().vocab_size);
    if ids > vocab_size {
        let message = format!("the tokenizer has {ids} tokens, and the model's vocab_size is {vocab_size}");
        return Err(refuse(message, format!("set model.vocab_size to {ids} or more")));
    }
    let special = tokenizer.special();
    if recipe.pretrains()
        && recipe.data.fim_rate > 0.0
        && [special.fim_begin, special.fim_hole, special.fim_end].contains(&None)
    {
        let message = format!("data.fim_rate is {}, and the tokenizer has no FIM tokens", recipe.data.fim_rate);
        return Err(refuse(message, "set data.fim_rate to 0, or name a tokenizer that has them"));
    }
    Ok(tokenizer)
}

fn train(session: &mut Session, recipe: &Recipe, mut trainer: BpeTrainer, training_bytes: u64) -> Result<Tokenizer> {
    let mut texts = task::trace_texts(recipe)?;
    texts.extend(pictures::data::texts(recipe, SCENES)?);
    let corpus = match recipe.data.sources.is_empty() {
        true if texts.is_empty() => {
            return Err(refuse("data.sources names no source, and no stage has text", "name files or folders"));
        }
        true => None,
        false => Some(open_corpus(&recipe.data)?),
    };
    let (label, unit, total) = ("tokenizer", "bytes", Some(training_bytes));
    session.host.event(Event::Began { label, unit, done: 0, total });
    let (mut texts_bytes, mut bytes) = (0, 0);
    for document in corpus.iter().flat_map(Corpus::documents) {
        let document = document?;
        texts_bytes += document.len();
        bytes += document.len() as u64;
        texts.push(document);
        if texts_bytes >= TRAINING_BATCH_BYTES || bytes >= training_bytes {
            trainer.feed(&texts);
            texts.clear();
            texts_bytes = 0;
            session.host.event(Event::Reached { done: bytes.min(training_bytes), words: &String::new });
            if let Some(why) = session.why_stop(Spending::default(), Spending::default()) {
                return Err(session.stop(why, preparing("tokenizer")));
            }
        }
        if bytes >= training_bytes {
            break;
        }
    }
    trainer.feed(&texts);
    let tokenizer = trainer.train()?;
    let own = if recipe.stages.iter().any(|stage| stage.work.is_of_pictures()) { "captions" } else { "episodes" };
    let learnt = if corpus.is_some() { format!("{}B of text", short(bytes as f64)) } else { own.into() };
    let words = format!("{} tokens, learnt from {learnt}", tokenizer.vocab_size());
    session.host.event(Event::Ended(&words));
    Ok(tokenizer)
}

/// The run's shards, built if they are not complete.
pub(crate) fn shards(session: &mut Session, recipe: &Recipe, tokenizer: &Tokenizer) -> Result<Arc<Dataset>> {
    let folder = session.rank.run.path().join("data");
    if Manifest::load(&folder)?.is_none() {
        let corpus = open_corpus(&recipe.data)?;
        let options = ShardOptions { validation_fraction: recipe.data.validation_fraction, ..ShardOptions::default() };
        tokenized(session, &corpus, tokenizer, &folder, &options)?;
    }
    if session.ledger.stage_done("data").is_none()
        && let Some(manifest) = Manifest::load(&folder)?
    {
        session.record(Entry {
            event: STAGE_DONE.into(),
            stage: "data".into(),
            kind: PREPARE.into(),
            tokens: manifest.train.tokens + manifest.validation.tokens,
            files: BTreeMap::from([("manifest.json".to_string(), record_of(&folder.join("manifest.json"))?)]),
            ..Entry::default()
        })?;
    }
    Ok(Arc::new(Dataset::open(&folder)?))
}

/// The corpus as shards, unless the run stops.
fn tokenized(
    session: &mut Session,
    corpus: &Corpus,
    tokenizer: &Tokenizer,
    folder: &Path,
    options: &ShardOptions,
) -> Result<Manifest> {
    session.host.event(Event::Began { label: "data", unit: "bytes", done: 0, total: None });
    let mut stop = None;
    let built = build(corpus, tokenizer, folder, options, &mut |at| {
        let doing = match at.phase {
            Phase::Hash => "hashed",
            Phase::Scan => "read",
            Phase::Tokenize => "tokenised",
        };
        let words = || format!("{doing}, {} tokens", short(at.tokens as f64));
        session.host.event(Event::Reached { done: at.bytes, words: &words });
        stop = session.why_stop(Spending::default(), Spending::default());
        if stop.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let manifest = match (built, stop) {
        (Err(ShardError::Stopped), Some(why)) => return Err(session.stop(why, preparing("data"))),
        (built, _) => built?,
    };
    let (train, validation) = (&manifest.train, &manifest.validation);
    session.host.event(Event::Ended(&format!(
        "{}B of text from {} files, {} documents; {} tokens to train on, {} to validate on",
        short((train.bytes + validation.bytes) as f64),
        manifest.sources,
        train.documents + validation.documents,
        short(train.tokens as f64),
        short(validation.tokens as f64),
    )));
    Ok(manifest)
}

fn preparing(stage: &str) -> Entry {
    Entry { stage: stage.into(), kind: PREPARE.into(), ..Entry::default() }
}
