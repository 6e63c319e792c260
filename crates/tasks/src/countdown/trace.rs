//! Worked puzzles to pretrain on, often wrong on purpose.
//!
//! A trace tries candidates one after the other, says of each whether it is too low, too high or right, and gives up at
//! some point by answering with the last candidate though it is wrong. What RL then has to find is not to give up. The
//! parts: some traces answer at once; some hit with the first try; sums are wrong now and then, and the trace goes on
//! with the wrong value; each trace has its own probability of giving up after a failed try.

use super::{Candidate, Countdown, Step, candidates, prompt_text};
use crate::draw::Draw;
use crate::task::{Task, TaskError};

const STREAM_TRACE: u64 = 7;

/// How a trace is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceStyle {
    /// `<think>\n7-6=1,1*1=1<\n7*1=7,7+6=13!\n</think>\n(7*1)+6`: `<` too low, `>` too high, `!` right. In DeepSeek's
    /// pre-tokenisation a verdict with its line end is one piece. Goes with [`crate::Style::Terse`].
    Compact,
    /// `<think> 7 - 6 = 1 , 1 * 1 = 1 low 7 * 1 = 7 , 7 + 6 = 13 yes </think> <answer> ( 7 * 1 ) + 6 </answer>`: one
    /// word a token, `low`, `high`, `yes`. Goes with [`crate::Format::TAGS`].
    Words,
}

/// What share of traces is how.
#[derive(Clone, Debug)]
pub struct TraceOptions {
    /// How they are written.
    pub style: TraceStyle,
    /// Most tries of a trace, all different.
    pub tries: usize,
    /// Each try is the nearest to the target of this many candidates drawn from those that are left; 1 for any.
    pub nearest_of: usize,
    /// Probability that an equation is wrong.
    pub slips: f64,
    /// Probability that the first try is a solution.
    pub luck: f64,
    /// Probability of an answer at once, by a random candidate.
    pub direct: f64,
    /// Each trace takes one of these as its probability of giving up after a failed try.
    pub quit: Vec<f64>,
    /// Of the traces; apart from the seed of the puzzles.
    pub seed: u64,
}

impl Default for TraceOptions {
    fn default() -> Self {
        TraceOptions {
            style: TraceStyle::Compact,
            tries: 20,
            nearest_of: 1,
            slips: 0.005,
            luck: 0.25,
            direct: 0.35,
            quit: vec![0.75, 0.45, 0.05],
            seed: 0,
        }
    }
}

/// A worked puzzle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// As [`Task::item`] gives it in [`crate::Style::Terse`].
    pub prompt: String,
    /// From `<think>` on.
    pub response: String,
    /// Whether the answer is right.
    pub correct: bool,
    /// How many candidates it tries.
    pub tries: usize,
}

/// A generator of traces over the puzzles of one split.
pub struct Traces<'a> {
    puzzles: &'a Countdown,
    options: TraceOptions,
}

impl<'a> Traces<'a> {
    /// Traces over `puzzles`: those of the train split, if held-out ones are to stay unseen.
    pub fn new(puzzles: &'a Countdown, options: TraceOptions) -> Result<Traces<'a>, TaskError> {
        let refuse = |reason: String| Err(TaskError::Options { task: "countdown traces", reason });
        let probabilities = [&options.quit[..], &[options.slips, options.luck, options.direct]].concat();
        if let Some(bad) = probabilities.iter().find(|probability| !(0.0..=1.0).contains(*probability)) {
            return refuse(format!("{bad} is no probability"));
        }
        if options.quit.is_empty() || options.tries == 0 || options.nearest_of == 0 {
            return refuse("a trace needs one try, of one candidate, and one probability of giving up".to_owned());
        }
        Ok(Traces { puzzles, options })
    }

    /// The trace number `index`, without end; always the same one.
    pub fn trace(&self, index: u64) -> Result<Trace, TaskError> {
        let mut draw = Draw::new(self.options.seed, STREAM_TRACE, index);
        let puzzle = match self.puzzles.len() {
            Some(len) => draw.below(len as usize) as u64,
            None => index,
        };
        let (puzzle, shown) = self.puzzles.puzzle(puzzle)?;
        let target = puzzle.target;
        let bounds = self.puzzles.options();
        let mut all = candidates(&shown, &bounds.operations, bounds.value_max);
        draw.shuffle(&mut all);
        let mut writer = Writer::new(self.options.style);
        let direct = draw.chance(self.options.direct);
        let quit = *draw.one(&self.options.quit);
        let lucky = !direct && draw.chance(self.options.luck);
        if lucky {
            let hit =
                all.iter().position(|candidate| candidate.value() == target).expect("every puzzle has a solution");
            all.swap(0, hit);
        }
        let mut tries = 0;
        while !direct && tries < self.options.tries.min(all.len()) {
            if tries > 0 || !lucky {
                let others: Vec<usize> =
                    (1..self.options.nearest_of).map(|_| tries + draw.below(all.len() - tries)).collect();
                let distance = |at: &usize| all[*at].value().abs_diff(target);
                let nearest = others.into_iter().fold(tries, |a, b| if distance(&b) < distance(&a) { b } else { a });
                all.swap(tries, nearest);
            }
            let candidate = &all[tries];
            tries += 1;
            let steps = with_slips(candidate, self.options.slips, bounds.value_max, &mut draw);
            let value = steps.last().expect("two numbers at least").value;
            writer.attempt(&steps, value, target);
            if value == target || draw.chance(quit) {
                break;
            }
        }
        let answer = &all[tries.max(1) - 1];
        let correct = answer.value() == target;
        Ok(Trace { prompt: prompt_text(&shown, target), response: writer.finish(answer), correct, tries })
    }
}

/// The candidate's equations, some of them miscalculated by 1 or 10; what follows goes on with the wrong value.
fn with_slips(candidate: &Candidate, probability: f64, value_max: u64, draw: &mut Draw) -> Vec<Step> {
    let mut steps = candidate.steps().to_vec();
    for at in 0..steps.len() {
        if !draw.chance(probability) {
            continue;
        }
        let right = steps[at].value;
        let wrong: Vec<u64> = [right.checked_sub(10), right.checked_sub(1), Some(right + 1), Some(right + 10)]
            .into_iter()
            .flatten()
            .filter(|value| *value <= value_max)
            .collect();
        let Some(&value) = wrong.get(draw.below(wrong.len().max(1))) else { continue };
        steps[at].value = value;
        // Only a last equation slips alone; an earlier one changes what the next begins with.
        let Some(next) = steps.get_mut(at + 1) else { continue };
        let operand = if next.a == right { &mut next.a } else { &mut next.b };
        let before = std::mem::replace(operand, value);
        match next.recomputed().filter(|result| *result <= value_max) {
            Some(result) => next.value = result,
            None => {
                let operand = if next.a == value { &mut next.a } else { &mut next.b };
                *operand = before;
                steps[at].value = right;
            }
        }
    }
    steps
}

struct Writer {
    style: TraceStyle,
    text: String,
}

impl Writer {
    fn new(style: TraceStyle) -> Writer {
        let text = match style {
            TraceStyle::Compact => "<think>\n",
            TraceStyle::Words => "<think> ",
        };
        Writer { style, text: text.to_owned() }
    }

    fn attempt(&mut self, steps: &[Step], value: u64, target: u64) {
        let spaced = self.style == TraceStyle::Words;
        let equation = |step: &Step| {
            let Step { a, operation, b, value } = step;
            let symbol = operation.symbol();
            if spaced { format!("{a} {symbol} {b} = {value}") } else { format!("{a}{symbol}{b}={value}") }
        };
        let equations: Vec<String> = steps.iter().map(equation).collect();
        self.text.push_str(&equations.join(if spaced { " , " } else { "," }));
        let verdict = match value.cmp(&target) {
            std::cmp::Ordering::Less => ["<\n", " low "],
            std::cmp::Ordering::Greater => [">\n", " high "],
            std::cmp::Ordering::Equal => ["!\n", " yes "],
        };
        self.text.push_str(verdict[usize::from(spaced)]);
    }

    fn finish(mut self, answer: &Candidate) -> String {
        match self.style {
            TraceStyle::Compact => self.text.push_str(&format!("</think>\n{}", answer.expression())),
            TraceStyle::Words => {
                let mut spaced = String::new();
                for c in answer.expression().chars() {
                    if !(spaced.is_empty() || c.is_ascii_digit() && spaced.ends_with(|c: char| c.is_ascii_digit())) {
                        spaced.push(' ');
                    }
                    spaced.push(c);
                }
                self.text.push_str(&format!("</think> <answer> {spaced} </answer>"));
            }
        }
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::*;
    use crate::completion::Format;
    use crate::prompt::{Presentation, Style};
    use crate::task::Split;

    fn puzzles(presentation: Presentation) -> Countdown {
        Countdown::new(Options::default(), presentation, Split::Train).unwrap()
    }

    #[test]
    fn traces_are_graded_as_they_say() {
        for (style, format) in
            [(TraceStyle::Compact, Presentation::from(Style::Terse).format), (TraceStyle::Words, Format::TAGS)]
        {
            let puzzles = puzzles(Presentation { style: Style::Terse, format });
            let traces = Traces::new(&puzzles, TraceOptions { style, ..TraceOptions::default() }).unwrap();
            for index in 0..500 {
                let trace = traces.trace(index).unwrap();
                assert_eq!(trace, traces.trace(index).unwrap());
                let parsed = format.parse(&trace.response);
                assert_eq!(parsed.fault, None, "{}", trace.response);
                let (numbers, target) = trace.prompt.split_once(" -> ").unwrap();
                let numbers: Vec<u64> = numbers.split(' ').map(|n| n.parse().unwrap()).collect();
                let reason = super::super::check_expression(parsed.answer.unwrap(), &numbers, target.parse().unwrap());
                assert_eq!(reason == crate::Reason::Right, trace.correct, "{}", trace.response);
            }
        }
    }

    #[test]
    fn shares_are_as_asked() {
        let puzzles = puzzles(Style::Terse.into());
        // The prototype's first recipe.
        let options = TraceOptions {
            tries: 14,
            slips: 0.02,
            luck: 0.15,
            direct: 0.3,
            quit: vec![0.6, 0.3, 0.05],
            ..TraceOptions::default()
        };
        let traces: Vec<Trace> = {
            let traces = Traces::new(&puzzles, options).unwrap();
            (0..4000).map(|index| traces.trace(index).unwrap()).collect()
        };
        let share = |which: &dyn Fn(&Trace) -> bool| traces.iter().filter(|t| which(t)).count() as f64 / 4000.0;
        assert!((share(&|t| t.correct) - 0.33).abs() < 0.04, "{}", share(&|t| t.correct));
        assert!((share(&|t| t.tries == 0) - 0.3).abs() < 0.03);
        assert!(traces.iter().all(|t| t.tries <= 14));
    }

    #[test]
    fn slips_carry_on() {
        let puzzles = puzzles(Style::Terse.into());
        let options = TraceOptions { slips: 1.0, direct: 0.0, ..TraceOptions::default() };
        let traces = Traces::new(&puzzles, options).unwrap();
        let trace = traces.trace(0).unwrap();
        let first = trace.response.lines().nth(1).unwrap().trim_end_matches(['<', '>', '!']).to_owned();
        let (a, b) = first.split_once(',').unwrap();
        let value = a.split_once('=').unwrap().1;
        assert!(b.split(['+', '-', '*', '=']).any(|operand| operand == value), "{first}");
    }

    #[test]
    fn impossible_options_are_refused() {
        let puzzles = puzzles(Style::Terse.into());
        let new = |options| Traces::new(&puzzles, options).map(|_| ());
        assert!(new(TraceOptions { slips: 1.5, ..TraceOptions::default() }).is_err());
        assert!(new(TraceOptions { luck: f64::NAN, ..TraceOptions::default() }).is_err());
        assert!(new(TraceOptions { quit: vec![], ..TraceOptions::default() }).is_err());
        assert!(new(TraceOptions { tries: 0, ..TraceOptions::default() }).is_err());
    }
}
