//! `wels eval MODEL --probe PAIRS.jsonl`: the same question about different persons, places or events, and how the
//! answers differ.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use wels_data::Message;
use wels_engine::Sampling;
use wels_pipeline::refusal::refuse;
use wels_runs::files::write_atomically;
use wels_tasks::Prompt;
use wels_tasks::probe::{Pair, ProbeResponse, read, response};
use wels_tasks::statistics::mcnemar;

use super::Args;
use super::answer::{Answerer, Questions};
use crate::interrupt::Interrupt;
use crate::model::default_name;
use crate::output;
use crate::progress::Progress;

/// Pairs that are shown.
const SHOWN: usize = 5;
/// Characters of an answer that are shown.
const SHOWN_CHARS: usize = 160;

/// Pairs as questions: pair n is asked as 2n and 2n + 1.
struct Asked<'a> {
    pairs: &'a [Pair],
    chat: bool,
    sampling: Sampling,
    max_tokens: usize,
}

/// What is written.
#[derive(Serialize)]
struct Probe {
    model: String,
    pairs: usize,
    both_refused: usize,
    first_refused: usize,
    second_refused: usize,
    /// Of so uneven a split of pairs of which one was refused, by chance (McNemar's test, exact).
    p: f64,
    /// Median over pairs without a refusal of second / first, in words.
    length_ratio: Option<f64>,
    /// The most uneven first.
    results: Vec<Outcome>,
}

#[derive(Serialize)]
struct Outcome {
    id: String,
    prompts: [String; 2],
    treatments: [ProbeResponse; 2],
}

/// Asks the pairs in `file`.
pub fn probe(args: &Args, file: &Path, answerer: &mut dyn Answerer) -> Result<()> {
    let pairs = read(file)?;
    if pairs.is_empty() {
        return Err(refuse(format!("{} has no pairs", file.display()), "write one a line: {\"a\": …, \"b\": …}"));
    }
    let how = &args.how;
    let sampling = Sampling { temperature: how.temperature, top_p: how.top_p, ..Sampling::default() };
    let asked = Asked { pairs: &pairs, chat: answerer.can_chat(), sampling, max_tokens: how.max_tokens.get() };
    let mut answers = vec![None; 2 * pairs.len()];
    let mut progress = Progress::new("probe", "answers", 0, Some(answers.len() as u64));
    let interrupt = Interrupt::listen()?;
    let mut done = 0;
    answerer.answer(&asked, 0..answers.len(), &|| interrupt.asked(), &mut |number, answer| {
        // A prompt that opens the thinking leaves the opening tag out of the answer.
        let opening = if answer.opened { "<think>" } else { "" };
        answers[number] = Some(response(&format!("{opening}{}", answer.text)));
        done += 1;
        progress.at(done, String::new);
        Ok(())
    })?;
    progress.finish(&format!("{done} answers"));
    let treatments: Option<Vec<ProbeResponse>> = answers.into_iter().collect();
    let treatments = treatments.ok_or_else(|| refuse("interrupted", "start again"))?;
    let model = default_name(args.model.as_deref().expect("clap requires it"));
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from("evals").join(&model));
    let probe = Probe::of(model, pairs, treatments);
    let cannot = || format!("cannot write to {}", out.display());
    std::fs::create_dir_all(&out).with_context(cannot)?;
    let text = serde_json::to_string_pretty(&probe).expect("plain data") + "\n";
    write_atomically(&out.join("probe.json"), text.as_bytes()).with_context(cannot)?;
    eprintln!("{:>9} {}", "answers", out.join("probe.json").display());
    match args.json {
        true => output::json(&probe)?,
        false => probe.print()?,
    }
    Ok(())
}

impl Questions for Asked<'_> {
    fn shots(&self) -> usize {
        0
    }

    fn prompt(&self, number: usize, _shots: usize) -> Prompt {
        let text = &self.pairs[number / 2].prompts[number % 2];
        match self.chat {
            true => Prompt::Messages(vec![Message::new("user", text)]),
            false => Prompt::Text(text.clone()),
        }
    }

    fn continuations(&self, _number: usize) -> Option<Vec<String>> {
        None
    }

    fn sample(&self, _number: usize) -> u32 {
        0
    }

    /// Both of a pair by the same random numbers.
    fn sampling(&self, number: usize, seed: u64) -> Sampling {
        Sampling { seed: wels_data::random::bits(seed, 0, number as u64 / 2, 0), ..self.sampling.clone() }
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    fn stops(&self) -> Vec<String> {
        Vec::new()
    }
}

impl Probe {
    fn of(model: String, pairs: Vec<Pair>, treatments: Vec<ProbeResponse>) -> Probe {
        let mut of_pairs = treatments.into_iter();
        let mut results: Vec<Outcome> = pairs
            .into_iter()
            .map(|Pair { id, prompts }| {
                let mut next = || of_pairs.next().expect("two for each pair");
                Outcome { id, prompts, treatments: [next(), next()] }
            })
            .collect();
        let refused = |first: bool, second: bool| {
            let as_asked = |outcome: &&Outcome| outcome.treatments.each_ref().map(|t| t.refused) == [first, second];
            results.iter().filter(as_asked).count()
        };
        let (both_refused, first_refused, second_refused) =
            (refused(true, true), refused(true, false), refused(false, true));
        let mut ratios: Vec<f64> = results.iter().filter_map(Outcome::length_ratio).collect();
        ratios.sort_by(f64::total_cmp);
        results.sort_by(|a, b| b.unevenness().total_cmp(&a.unevenness()));
        Probe {
            model,
            pairs: results.len(),
            both_refused,
            first_refused,
            second_refused,
            p: mcnemar(first_refused, second_refused),
            length_ratio: ratios.get(ratios.len() / 2).copied(),
            results,
        }
    }

    fn print(&self) -> std::io::Result<()> {
        let Probe { pairs, both_refused, first_refused, second_refused, p, length_ratio, .. } = self;
        output::line(&format!(
            "{pairs} pairs: both refused in {both_refused}, the first alone in {first_refused}, the second alone in \
             {second_refused} (p = {p:.3})"
        ))?;
        if let Some(ratio) = length_ratio {
            output::line(&format!("the second answer has {ratio:.2} times the words of the first, in the median"))?;
        }
        for Outcome { id, prompts, treatments } in self.results.iter().take(SHOWN) {
            output::line(&format!("{id}:"))?;
            for (prompt, ProbeResponse { refused, words, answer, .. }) in prompts.iter().zip(treatments) {
                let short: String = answer.chars().take(SHOWN_CHARS).collect();
                let refused = if *refused { "refused, " } else { "" };
                output::line(&format!("  {prompt:?}\n    {refused}{words} words: {short:?}"))?;
            }
        }
        output::line("refusals are told by phrases at the beginning of an answer: read them before you judge")
    }
}

impl Outcome {
    /// Of two answers that are none of them refused.
    fn length_ratio(&self) -> Option<f64> {
        let [first, second] = &self.treatments;
        let answered = !first.refused && !second.refused && first.words > 0;
        answered.then(|| second.words as f64 / first.words as f64)
    }

    /// A refusal of one alone before any difference in length.
    fn unevenness(&self) -> f64 {
        let [first, second] = &self.treatments;
        let length = ((first.words + 1) as f64 / (second.words + 1) as f64).ln().abs();
        length + if first.refused == second.refused { 0.0 } else { 1e6 }
    }
}
