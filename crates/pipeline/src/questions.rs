//! Stages of kind `questions`: out of the documents of `[data]` come beginnings of sentences ([`wels_tasks::cloze`]); a
//! model has to go on with them behind their passage, several times; what it does not find there is refused. A share of
//! the sentences is held out, and what is left to be learnt shares no run of words with them.
//!
//! ```text
//! candidates.jsonl             what the documents give; made once, and read by all ranks
//! part-0000.jsonl …            the model's answers, with the passage and, if that is asked for, without
//! train.jsonl  held_out.jsonl  {"id", "messages", "answer", …}: a later stage's `data`, and its `task`
//! questions.json               what became of all of them
//! ```

use anyhow::Result;
use wels_data::tokenizer::Tokenizer;
use wels_runs::recipe::{DataSection, Questions, StageSection};
use wels_runs::report::{QUESTIONS, QuestionsMade};
use wels_runs::rundir::write_json;
use wels_tasks::overlap::{Index, RUN_WORDS};

use crate::blanks::{CANDIDATES, Candidate, Kept, candidates, read_lines, write_lines};
use crate::documents::open_corpus;
use crate::host::Event;
use crate::refusal::refuse;
use crate::samples::{Parts, Sampled, SampledAnswer, open};
use crate::session::Session;

/// Does what is left of the stage.
pub(crate) fn make(session: &mut Session, tokenizer: &Tokenizer, stage: &StageSection, of: &Questions) -> Result<()> {
    let folder = session.rank.run.stage(&stage.name)?;
    let done = folder.join(QUESTIONS);
    if done.exists() && session.ledger.stage_done(&stage.name).is_some() {
        return Ok(());
    }
    let data = session.rank.run.recipe().data.clone();
    let path = folder.join(CANDIDATES);
    if !path.exists() {
        let (found, skipped) = candidates(&data, of.most)?;
        write_lines(&path, &found)?;
        let (no_text, bad) = (skipped.invalid_utf8, skipped.bad_records);
        if no_text + bad > 0 {
            let words = format!("of the documents {no_text} pieces are not UTF-8 and {bad} cannot be read: left out");
            session.host.event(Event::Note(&words));
        }
    }
    let found: Vec<Candidate> = read_lines(&path)?;
    let answerer = open(session, tokenizer, None, stage, &of.from)?;
    let mut sampled = Sampled::new(session, &stage.name);
    let parts = Parts { folder: &folder, label: &stage.name, total: answerer.items(), answerer: &answerer };
    let lines = parts.write(session, &mut sampled)?;
    let (train, held_out, judged) = judge(&found, &lines, of);
    let (documents, in_documents) = in_documents(&data, &held_out)?;
    let made = QuestionsMade { documents, held_out_in_documents: in_documents, ..judged };
    check_enough(&made)?;
    for (file, questions) in [("train.jsonl", &train), ("held_out.jsonl", &held_out)] {
        write_lines(&folder.join(file), &questions.iter().map(|it| Kept::from(*it)).collect::<Vec<_>>())?;
    }
    write_json(&done, &made)?;
    session.host.event(Event::Note(&in_words(&stage.name, &made)));
    sampled.done(session, &folder)
}

fn check_enough(made: &QuestionsMade) -> Result<()> {
    let what = match (made.train, made.held_out) {
        (0, _) => "to be learnt",
        (_, 0) => "held out",
        _ => return Ok(()),
    };
    let message = format!(
        "of {} questions none is left that is {what}: {} were answered wrong with the passage, {} right without, {} \
         share words with one that is held out",
        made.asked, made.wrong_with_passage, made.right_without_passage, made.overlapping
    );
    Err(refuse(message, "give it more documents, another model, or a lower right_with_passage"))
}

fn in_words(stage: &str, made: &QuestionsMade) -> String {
    format!(
        "{stage}: of {} questions {} to be learnt and {} held out; refused: {} wrong with the passage, {} right \
         without, {} that share {} words with a held-out one",
        made.asked,
        made.train,
        made.held_out,
        made.wrong_with_passage,
        made.right_without_passage,
        made.overlapping,
        made.run_words
    )
}

/// Those to be learnt, those held out, and what became of the others. `lines` has for each candidate its answers with
/// the passage, and behind all of these those without, if they were asked for.
fn judge<'a>(
    found: &'a [Candidate],
    lines: &[SampledAnswer],
    of: &Questions,
) -> (Vec<&'a Candidate>, Vec<&'a Candidate>, QuestionsMade) {
    let samples = of.answering.samples;
    let right: Vec<f64> = lines
        .chunks(samples)
        .map(|answers| answers.iter().filter(|line| line.correct).count() as f64 / samples as f64)
        .collect();
    let mut made = QuestionsMade { asked: found.len() as u64, run_words: RUN_WORDS as u64, ..QuestionsMade::default() };
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for (at, candidate) in found.iter().enumerate() {
        let without = right.get(found.len() + at).copied().unwrap_or(0.0);
        if right[at] < of.right_with_passage {
            made.wrong_with_passage += 1;
        } else if candidate.is_held_out(of.held_out) {
            held_out.push(candidate);
        } else if without > of.right_without_passage {
            made.right_without_passage += 1;
        } else {
            train.push(candidate);
        }
    }
    let before = train.len();
    train = without_overlap(train, &held_out);
    made.overlapping = (before - train.len()) as u64;
    let mut index = index_of(&held_out);
    train.iter().for_each(|it| index.search(&it.id, &it.sentence));
    made.held_out_in_train = index.items().iter().filter(|item| item.found > 0).count() as u64;
    made.held_out_too_short = index.items().iter().filter(|item| item.runs == 0).count() as u64;
    (made.train, made.held_out) = (train.len() as u64, held_out.len() as u64);
    (train, held_out, made)
}

fn index_of(questions: &[&Candidate]) -> Index {
    let mut index = Index::default();
    questions.iter().for_each(|it| index.add(&it.id, &it.sentence));
    index
}

/// Those of `train` that share no run of words with one that is held out, whichever of the two is the longer.
fn without_overlap<'a>(train: Vec<&'a Candidate>, held_out: &[&Candidate]) -> Vec<&'a Candidate> {
    let mut index = index_of(&train);
    held_out.iter().for_each(|it| index.search(&it.id, &it.sentence));
    let mut left: Vec<&Candidate> =
        train.into_iter().zip(index.items()).filter(|(_, item)| item.found == 0).map(|(it, _)| it).collect();
    loop {
        // A run that was found is not found again, so this goes on until there is none.
        let (mut index, before) = (index_of(held_out), left.len());
        let found = |index: &Index| index.items().iter().map(|item| item.found).sum::<usize>();
        left.retain(|it| {
            let so_far = found(&index);
            index.search(&it.id, &it.sentence);
            found(&index) == so_far
        });
        if left.len() == before {
            return left;
        }
    }
}

/// How many documents there are, and of how many questions they hold the sentence.
fn in_documents(data: &DataSection, questions: &[&Candidate]) -> Result<(u64, u64)> {
    let corpus = open_corpus(data)?;
    let (mut index, mut documents) = (index_of(questions), 0);
    for text in corpus.documents() {
        index.search("document", &text?);
        documents += 1;
    }
    Ok((documents, index.items().iter().filter(|item| item.found > 0).count() as u64))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use wels_runs::recipe::Recipe;

    use super::*;
    use crate::blanks::maker;

    fn candidate(id: &str, sentence: &str) -> Candidate {
        let text = |text: &str| text.to_owned();
        let (source, heading, passage) = (text("d.md"), text("d"), sentence.to_owned());
        Candidate { id: text(id), source, heading, passage, sentence: sentence.to_owned(), blank: 0..3 }
    }

    fn ids(of: &[&Candidate]) -> Vec<String> {
        of.iter().map(|it| it.id.clone()).collect()
    }

    #[test]
    fn what_is_learnt_shares_no_words_with_what_is_held_out() {
        let held_out = candidate("held", "one two three four five six seven eight nine");
        let cases = [
            ("same", "one two three four five six seven eight nine", false),
            ("longer", "so zero one two three four five six seven eight nine ten eleven twelve thirteen", false),
            ("again", "or zero one two three four five six seven eight nine ten eleven twelve thirteen", false),
            ("other", "one two three four six five seven eight nine ten eleven twelve thirteen fourteen", true),
        ];
        let train: Vec<Candidate> = cases.iter().map(|(id, sentence, _)| candidate(id, sentence)).collect();
        let left = without_overlap(train.iter().collect(), &[&held_out]);
        let expected: Vec<&str> = cases.iter().filter(|case| case.2).map(|case| case.0).collect();
        assert_eq!(ids(&left), expected);
    }

    #[test]
    fn questions_are_refused_by_their_answers_and_held_out_ones_by_the_passage_alone() {
        let words = ["zero", "ten", "red", "green", "blue", "north", "south", "east", "west", "iron"];
        let sentence = |n: usize| format!("{} is what the part number {n} of these is called by all of them", words[n]);
        let found: Vec<Candidate> = (0..10).map(|n| candidate(&n.to_string(), &sentence(n))).collect();
        let recipe = Recipe::parse("r", RECIPE, Path::new("/")).unwrap();
        let of = maker(&recipe, "asked").unwrap();
        // Number 0 is not found in its passage, and all are known without.
        let line = |n: usize| SampledAnswer::verdict(n != 0 && n != 1);
        let lines: Vec<SampledAnswer> = (0..20).flat_map(|n| [line(n), line(n)]).collect();
        let (train, held_out, made) = judge(&found, &lines, of);
        let expected: Vec<String> =
            found.iter().skip(2).filter(|it| it.is_held_out(of.held_out)).map(|it| it.id.clone()).collect();
        assert_eq!(ids(&held_out), expected);
        assert!(train.is_empty() && !held_out.is_empty());
        assert_eq!((made.asked, made.wrong_with_passage), (10, 2));
        assert_eq!(made.right_without_passage, 8 - made.held_out);
        assert!(check_enough(&made).unwrap_err().to_string().contains("none is left that is to be learnt"));
    }

    const RECIPE: &str = "[model]\npreset = \"smollm2-135m\"\n[tokenizer]\npath = \"t\"\n[[stage]]\nname = \"asked\"\n\
        kind = \"questions\"\nfrom = \"m\"\nheld_out = 0.5\nsamples = 2\nright_without_passage = 0.5\n";
}
