//! Questions of documents ([`wels_tasks::cloze`]) as a run has them: candidates before a model was asked, and those
//! that a stage of kind `questions` has kept, as a task and as examples.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use wels_data::chat::{ChatTemplate, Message};
use wels_data::corpus::Skipped;
use wels_data::tokenizer::Tokenizer;
use wels_runs::files;
use wels_runs::hash::sha256;
use wels_runs::recipe::{DataSection, Questions, Recipe, Work};
use wels_runs::rundir::{RunDir, RunError};
use wels_tasks::cloze::{Cloze, clozes};
use wels_tasks::file::{self, Checker};
use wels_tasks::{Item, Listed, Presentation, Prompt, Reference, Split, Style};
use wels_train::example::Example;
use wels_train::sft;

use crate::documents::open_corpus;
use crate::refusal::refuse;

/// What the documents of a stage give.
pub(crate) const CANDIDATES: &str = "candidates.jsonl";

/// A question of the documents, before a model was asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Candidate {
    pub id: String,
    /// The document, by its name in the corpus.
    pub source: String,
    pub heading: String,
    pub passage: String,
    pub sentence: String,
    /// Bytes of the sentence that are blanked out.
    pub blank: Range<usize>,
}

impl Candidate {
    fn cloze(&self) -> Cloze {
        let Candidate { heading, passage, sentence, blank, .. } = self.clone();
        Cloze { heading, passage, sentence, blank }
    }

    /// By the sentence alone, so that all that is asked of it stays together.
    pub fn is_held_out(&self, share: f64) -> bool {
        let hash = sha256(self.sentence.as_bytes());
        let drawn = u32::from_str_radix(&hash[..8], 16).expect("hexadecimal digits");
        f64::from(drawn) < share * f64::from(u32::MAX)
    }

    fn item(&self, open: bool) -> Item {
        let cloze = self.cloze();
        let id = if open { self.id.clone() } else { format!("{}-without", self.id) };
        Item {
            id,
            prompt: Prompt::Text(cloze.beginning(open)),
            reference: Reference::Begins(cloze.answer().to_owned()),
        }
    }
}

/// A question that is kept, as its file has it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    id: String,
    messages: Vec<Message>,
    answer: String,
    source: String,
    passage: String,
}

impl From<&Candidate> for Kept {
    fn from(it: &Candidate) -> Kept {
        let cloze = it.cloze();
        let (messages, answer) = (cloze.messages(), cloze.answer().to_owned());
        Kept { id: it.id.clone(), messages, answer, source: it.source.clone(), passage: cloze.passage }
    }
}

/// Questions with the same answer, at most: of a word that is everywhere, a model learns to say it always.
const SAME_ANSWER_MAX: usize = 5;

/// What the documents of `data` give, `most` at most, each sentence once; with what was left out of the documents.
pub(crate) fn candidates(data: &DataSection, most: u64) -> Result<(Vec<Candidate>, Skipped)> {
    let corpus = open_corpus(data)?;
    let (mut documents, mut read) = (corpus.documents(), 0);
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    while let Some(text) = documents.next() {
        let (text, source) = (text?, documents.source().map_or(String::new(), |source| source.name.clone()));
        read += 1;
        for Cloze { heading, passage, sentence, blank } in clozes(stem(&source), &text) {
            let hash = sha256(sentence.as_bytes());
            let id = format!("{}-{}", &hash[..16], blank.start);
            if seen.insert(id.clone()) {
                found.push(Candidate { id, source: source.clone(), heading, passage, sentence, blank });
            }
        }
    }
    if found.is_empty() {
        let message = format!("{read} documents of data.sources give no question");
        let hint = "questions come of sentences of 8 to 45 words with a code span, a number or a name in them";
        return Err(refuse(message, hint));
    }
    Ok((drawn(found, most), documents.skipped()))
}

/// At most `most` of them, and [`SAME_ANSWER_MAX`] of one answer, drawn by their ids, in the order in which they came.
fn drawn(mut found: Vec<Candidate>, most: u64) -> Vec<Candidate> {
    let mut order: Vec<&Candidate> = found.iter().collect();
    order.sort_by_cached_key(|it| sha256(it.id.as_bytes()));
    let mut times = BTreeMap::new();
    let is_rare = |it: &&Candidate| {
        let times = times.entry(it.sentence[it.blank.clone()].to_lowercase()).or_insert(0);
        *times += 1;
        *times <= SAME_ANSWER_MAX
    };
    let kept: BTreeSet<String> =
        order.into_iter().filter(is_rare).take(most as usize).map(|it| it.id.clone()).collect();
    found.retain(|it| kept.contains(&it.id));
    found
}

/// The name of a document without folders and extension.
fn stem(source: &str) -> &str {
    let name = source.rsplit('/').next().unwrap_or(source);
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// How many questions the documents of a recipe will give, and texts of some, for its plan.
pub(crate) fn expected(recipe: &Recipe, of: &Questions, texts: usize) -> Result<(u64, Vec<Vec<Message>>)> {
    let (found, _) = candidates(&recipe.data, of.most)?;
    Ok((found.len() as u64, found.iter().take(texts).map(|it| it.cloze().messages()).collect()))
}

/// What the model of the stage is asked: all candidates with their passages, and behind them, if the recipe wants to
/// know, all without.
pub(crate) fn put_to_model(run: &RunDir, stage: &str, of: &Questions) -> Result<Listed> {
    let found: Vec<Candidate> = read_lines(&run.path().join(stage).join(CANDIDATES))?;
    let mut items: Vec<Item> = found.iter().map(|it| it.item(true)).collect();
    if of.right_without_passage < 1.0 {
        items.extend(found.iter().map(|it| it.item(false)));
    }
    Ok(listed(stage, items))
}

/// Short answers, of which all is compared.
fn listed(name: &str, items: Vec<Item>) -> Listed {
    let format = Presentation::from(Style::Terse).format;
    Listed { name: name.to_owned(), items, format, language: None, jail: None }
}

/// The stage of this name, if it makes questions.
pub(crate) fn maker<'a>(recipe: &'a Recipe, name: &str) -> Option<&'a Questions> {
    recipe.stages.iter().find_map(|stage| match &stage.work {
        Work::Questions(of) if stage.name == name => Some(&**of),
        _ => None,
    })
}

/// The questions of a stage as a task.
pub(crate) fn task(run: &RunDir, stage: &str, split: Split) -> Result<Listed> {
    let file = if split == Split::HeldOut { "held_out.jsonl" } else { "train.jsonl" };
    let path = made(run, stage, file)?;
    let (items, _) = file::read(&path, Checker::Exact, &Style::Terse.into(), false)?;
    Ok(listed(stage, items))
}

/// The questions of a stage as examples, whose answers are learnt.
pub(crate) fn examples(
    run: &RunDir,
    stage: &str,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
) -> Result<Vec<Example>> {
    let kept: Vec<Kept> = read_lines(&made(run, stage, "train.jsonl")?)?;
    let example = |it: &Kept| sft::reply(tokenizer, template, &it.messages, &it.answer);
    Ok(kept.iter().map(example).collect::<Result<_, _>>()?)
}

/// A file of a stage that is done.
fn made(run: &RunDir, stage: &str, file: &str) -> Result<PathBuf> {
    let path = run.path().join(stage).join(file);
    match path.is_file() {
        true => Ok(path),
        false => {
            let message = format!("the stage {stage} has made no questions");
            Err(refuse(message, "let it come before the stages that ask or learn them"))
        }
    }
}

/// Writes lines, all or none.
pub(crate) fn write_lines<T: Serialize>(path: &Path, lines: &[T]) -> Result<()> {
    let text: String = lines.iter().map(|line| serde_json::to_string(line).expect("plain data") + "\n").collect();
    Ok(files::write_atomically(path, text.as_bytes()).map_err(RunError::io("write", path))?)
}

/// Reads JSON Lines; the first line that is none ends it, with its number.
pub(crate) fn read_lines<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Vec<T>> {
    let text = fs::read_to_string(path).map_err(RunError::io("read", path))?;
    let line = |(number, line): (usize, &str)| {
        serde_json::from_str(line).with_context(|| format!("line {} of {} is damaged", number + 1, path.display()))
    };
    text.lines().enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_answer_is_asked_for_more_than_a_few_times() {
        let of = |answer: &str, count: usize| -> Vec<Candidate> {
            let one = |n: usize| Candidate {
                id: format!("{answer}-{n}"),
                source: String::new(),
                heading: String::new(),
                passage: String::new(),
                sentence: answer.to_owned(),
                blank: 0..answer.len(),
            };
            (0..count).map(one).collect()
        };
        let found = [of("csv", 7), of("Rust", 2), of("CSV", 2)].concat();
        let ids = |found: Vec<Candidate>| found.into_iter().map(|it| it.id).collect::<BTreeSet<String>>();
        let kept = ids(drawn(found.clone(), 100));
        assert_eq!(kept.len(), SAME_ANSWER_MAX + 2);
        assert!(kept.contains("Rust-0") && kept.contains("Rust-1"));
        assert_eq!(ids(drawn(found.iter().rev().cloned().collect(), 100)), kept);
        let few = ids(drawn(found, 3));
        assert!(few.len() == 3 && few.is_subset(&kept), "{few:?}");
    }
}
