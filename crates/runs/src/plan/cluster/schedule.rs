//! Pipeline schedules: the order of each rank's work, and how long all of it takes.
//!
//! A micro-batch goes forward through the stages and back. B is the gradient of a stage's input, W that of its weights;
//! where they are apart, W waits. The order of work is that of the publications:
//!
//! * 1F1B: Narayanan et al. 2021, §2.2. B and W are one.
//! * ZB1P: ZB-H1 of Qi et al. 2023 (arXiv 2401.10241): rank r puts off r of its W's, and fills the end with them.
//! * DualPipe: DeepSeek-V3 report §3.2.1, in the order of deepseek-ai/DualPipe. Micro-batches enter at both ends, each
//!   rank holds two stages, and a forward of one direction goes together with a backward of the other.
//!
//! [`simulate`] walks these orders with each stage's own durations; for equal stages its bubbles are those of the
//! formulas, [`Schedule::bubble`].

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Which schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    #[serde(rename = "1f1b")]
    OneForwardOneBackward,
    Zb1p,
    DualPipe,
}

impl Schedule {
    /// The oldest first.
    pub const ALL: [Schedule; 3] = [Schedule::OneForwardOneBackward, Schedule::Zb1p, Schedule::DualPipe];

    pub fn name(self) -> &'static str {
        match self {
            Schedule::OneForwardOneBackward => "1f1b",
            Schedule::Zb1p => "zb1p",
            Schedule::DualPipe => "dualpipe",
        }
    }

    /// Stages that a rank holds, and so copies of the parameters.
    pub fn copies(self) -> usize {
        if self == Schedule::DualPipe { 2 } else { 1 }
    }

    /// Micro-batches of a stage that a rank keeps at most, of `ranks`: DeepSeek-V3 report, table 2.
    pub fn in_flight(self, ranks: usize) -> usize {
        if self == Schedule::DualPipe { ranks + 1 } else { ranks }
    }

    /// Idle time of `ranks` ranks of equal stages (DeepSeek-V3 report, table 2): seconds of a forward F, of a whole
    /// backward B, of its part W, and of both together, F&B.
    pub fn bubble(self, ranks: usize, f: f64, b: f64, w: f64, both: f64) -> f64 {
        let others = ranks as f64 - 1.0;
        match self {
            Schedule::OneForwardOneBackward => others * (f + b),
            Schedule::Zb1p => others * (f + b - 2.0 * w),
            Schedule::DualPipe => (ranks as f64 / 2.0 - 1.0) * (both + b - 3.0 * w),
        }
    }

    /// Why `ranks` ranks cannot do `micro_batches` so, if they cannot.
    pub fn refuses(self, ranks: usize, micro_batches: usize) -> Option<String> {
        let even = ranks.is_multiple_of(2) && micro_batches.is_multiple_of(2);
        match self {
            Schedule::DualPipe if !even || ranks < 2 => {
                Some("DualPipe needs an even number of stages and of micro-batches".into())
            }
            Schedule::DualPipe if micro_batches < 2 * ranks => Some(format!(
                "DualPipe needs {} micro-batches at least, two for each stage, and there are {micro_batches}",
                2 * ranks
            )),
            _ => None,
        }
    }

    fn order(self, rank: usize, ranks: usize, micro_batches: usize) -> Vec<Work> {
        match self {
            Schedule::DualPipe => Dual::new(rank, ranks).order(micro_batches),
            Schedule::OneForwardOneBackward => one_direction(rank, ranks, micro_batches, false),
            Schedule::Zb1p => one_direction(rank, ranks, micro_batches, true),
        }
    }
}

/// A micro-batch of a direction: 0 enters at rank 0, 1 at the last rank.
type Chunk = (usize, usize);

/// What a rank does next.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Work {
    Forward(Chunk),
    /// The gradient of the input.
    Backward(Chunk),
    /// That of input and weights.
    WholeBackward(Chunk),
    Weight(Chunk),
    /// A forward together with a whole backward.
    Both(Chunk, Chunk),
}

fn one_direction(rank: usize, ranks: usize, micro_batches: usize, apart: bool) -> Vec<Work> {
    let backward = |chunk| if apart { Work::Backward((0, chunk)) } else { Work::WholeBackward((0, chunk)) };
    let warm_up = (ranks - rank - 1).min(micro_batches);
    let mut order: Vec<Work> = (0..warm_up).map(|chunk| Work::Forward((0, chunk))).collect();
    let mut weights = 0;
    for chunk in 0..micro_batches {
        if warm_up + chunk < micro_batches {
            order.push(Work::Forward((0, warm_up + chunk)));
        }
        order.push(backward(chunk));
        let at_the_end = warm_up + chunk >= micro_batches;
        if apart && (at_the_end || chunk + 1 > weights + rank) {
            order.push(Work::Weight((0, weights)));
            weights += 1;
        }
    }
    if apart {
        order.extend((weights..micro_batches).map(|chunk| Work::Weight((0, chunk))));
    }
    order
}

/// DualPipe's order as it comes about. Phase 0 is the direction that enters nearer to the rank.
struct Dual {
    half: usize,
    /// Distance to the nearer end.
    from_end: usize,
    second_half: bool,
    forwards: [usize; 2],
    backwards: [usize; 2],
    waiting: VecDeque<Chunk>,
    order: Vec<Work>,
}

impl Dual {
    fn new(rank: usize, ranks: usize) -> Dual {
        Dual {
            half: ranks / 2,
            from_end: rank.min(ranks - 1 - rank),
            second_half: rank >= ranks / 2,
            forwards: [0; 2],
            backwards: [0; 2],
            waiting: VecDeque::new(),
            order: Vec::new(),
        }
    }

    fn next(counts: &mut [usize; 2], phase: usize, second_half: bool) -> Chunk {
        let direction = phase ^ usize::from(second_half);
        counts[direction] += 1;
        (direction, counts[direction] - 1)
    }

    fn forward(&mut self, phase: usize) {
        let chunk = Dual::next(&mut self.forwards, phase, self.second_half);
        self.order.push(Work::Forward(chunk));
    }

    fn backward(&mut self, phase: usize, apart: bool) {
        let chunk = Dual::next(&mut self.backwards, phase, self.second_half);
        if apart {
            self.waiting.push_back(chunk);
        }
        self.order.push(if apart { Work::Backward(chunk) } else { Work::WholeBackward(chunk) });
    }

    fn weight(&mut self) {
        let chunk = self.waiting.pop_front().expect("no more W than B");
        self.order.push(Work::Weight(chunk));
    }

    fn both(&mut self, forward: usize, backward: usize) {
        let forward = Dual::next(&mut self.forwards, forward, self.second_half);
        let backward = Dual::next(&mut self.backwards, backward, self.second_half);
        self.order.push(Work::Both(forward, backward));
    }

    fn order(mut self, micro_batches: usize) -> Vec<Work> {
        let (before, inner) = (self.half - self.from_end - 1, self.from_end + 1);
        (0..2 * before).for_each(|_| self.forward(0));
        for _ in 0..inner {
            self.forward(0);
            self.forward(1);
        }
        for _ in 0..before {
            self.backward(1, true);
            self.weight();
            self.forward(1);
        }
        for i in 0..micro_batches / 2 + inner - 2 * self.half {
            // The two ranks in the middle do their first two one after the other.
            match i == 0 && before == 0 {
                true => {
                    self.forward(0);
                    self.backward(1, false);
                }
                false => self.both(0, 1),
            }
            self.both(1, 0);
        }
        for _ in 0..before {
            self.backward(1, false);
            self.both(1, 0);
        }
        // Of the last backwards the second half puts off its W.
        for i in 0..2 * inner {
            let phase = (i + 1) % 2;
            self.backward(phase, i >= inner);
        }
        for _ in 0..before {
            self.weight();
            self.backward(0, true);
        }
        (0..inner).for_each(|_| self.weight());
        self.order
    }
}

/// Seconds that a stage takes for one micro-batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StageTime {
    /// Computing forward.
    pub forward: f64,
    /// Computing the gradient of the input, what is recomputed included.
    pub input_gradient: f64,
    pub weight_gradient: f64,
    /// Dispatch and combine of the forward pass.
    pub exchange: f64,
    /// Those of the backward pass.
    pub exchange_back: f64,
    /// The part of `exchange` during which a forward on its own computes: shared experts.
    pub hidden: f64,
}

impl StageTime {
    /// A forward on its own.
    pub fn forward_alone(&self) -> f64 {
        self.forward + self.exchange - self.hidden
    }

    /// A backward of the input on its own.
    pub fn backward_alone(&self) -> f64 {
        self.input_gradient + self.exchange_back
    }

    /// This stage's forward together with a whole backward of `other`: each computes while the other communicates.
    pub fn with_backward_of(&self, other: &StageTime) -> f64 {
        let compute = self.forward + other.input_gradient + other.weight_gradient;
        compute.max(self.exchange + other.exchange_back)
    }

    /// What is computed backward for a micro-batch.
    pub fn backward(&self) -> f64 {
        self.input_gradient + self.weight_gradient
    }

    /// All that is computed for a micro-batch.
    pub fn compute(&self) -> f64 {
        self.forward + self.backward()
    }
}

/// Seconds of a pipeline's step, the mean over its ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PipelineTime {
    /// Forwards on their own.
    pub forward: f64,
    /// Backwards on their own: gradients of inputs, and of weights where they are not apart.
    pub backward: f64,
    /// Gradients of weights apart.
    pub weight: f64,
    /// A forward and a backward together.
    pub both: f64,
    /// Waiting.
    pub bubble: f64,
    /// Dispatch and combine while nothing is computed; in the four above.
    pub exchange_exposed: f64,
    /// All dispatch and combine.
    pub exchange: f64,
    pub total: f64,
}

/// When chunks of a direction leave a stage.
struct Done {
    stages: usize,
    micro_batches: usize,
    at: Vec<Option<f64>>,
}

impl Done {
    fn new(stages: usize, micro_batches: usize) -> Done {
        Done { stages, micro_batches, at: vec![None; 2 * stages * micro_batches] }
    }

    fn index(&self, (direction, chunk): Chunk, stage: usize) -> usize {
        (direction * self.stages + stage) * self.micro_batches + chunk
    }
}

struct Simulation<'a> {
    stages: &'a [StageTime],
    hop: f64,
    forwards: Done,
    backwards: Done,
}

impl Simulation<'_> {
    fn stage(&self, rank: usize, chunk: Chunk) -> usize {
        if chunk.0 == 0 { rank } else { self.stages.len() - 1 - rank }
    }

    /// When what a forward takes is there.
    fn input(&self, rank: usize, chunk: Chunk) -> Option<f64> {
        match self.stage(rank, chunk) {
            0 => Some(0.0),
            stage => self.forwards.at[self.forwards.index(chunk, stage - 1)].map(|at| at + self.hop),
        }
    }

    /// When what a backward takes is there.
    fn gradient(&self, rank: usize, chunk: Chunk) -> Option<f64> {
        let stage = self.stage(rank, chunk);
        match stage + 1 == self.stages.len() {
            true => self.forwards.at[self.forwards.index(chunk, stage)],
            false => self.backwards.at[self.backwards.index(chunk, stage + 1)].map(|at| at + self.hop),
        }
    }

    fn ready(&self, rank: usize, work: Work) -> Option<f64> {
        match work {
            Work::Forward(chunk) => self.input(rank, chunk),
            Work::Backward(chunk) | Work::WholeBackward(chunk) => self.gradient(rank, chunk),
            Work::Weight(_) => Some(0.0),
            Work::Both(forward, backward) => Some(self.input(rank, forward)?.max(self.gradient(rank, backward)?)),
        }
    }

    /// Adds the work's seconds to `sum` and says how many these are.
    fn work(&self, rank: usize, work: Work, sum: &mut PipelineTime) -> f64 {
        let of = |chunk| &self.stages[self.stage(rank, chunk)];
        let (seconds, part) = match work {
            Work::Forward(chunk) => {
                sum.exchange += of(chunk).exchange;
                sum.exchange_exposed += of(chunk).exchange - of(chunk).hidden;
                (of(chunk).forward_alone(), &mut sum.forward)
            }
            Work::Backward(chunk) | Work::WholeBackward(chunk) => {
                sum.exchange += of(chunk).exchange_back;
                sum.exchange_exposed += of(chunk).exchange_back;
                let whole = matches!(work, Work::WholeBackward(_));
                let weight = if whole { of(chunk).weight_gradient } else { 0.0 };
                (of(chunk).backward_alone() + weight, &mut sum.backward)
            }
            Work::Weight(chunk) => (of(chunk).weight_gradient, &mut sum.weight),
            Work::Both(forward, backward) => {
                let exchange = of(forward).exchange + of(backward).exchange_back;
                let seconds = of(forward).with_backward_of(of(backward));
                let compute = of(forward).forward + of(backward).input_gradient + of(backward).weight_gradient;
                sum.exchange += exchange;
                sum.exchange_exposed += seconds - compute;
                (seconds, &mut sum.both)
            }
        };
        *part += seconds;
        seconds
    }

    fn leave(&mut self, rank: usize, work: Work, at: f64) {
        let (forward, backward) = match work {
            Work::Forward(chunk) => (Some(chunk), None),
            Work::Backward(chunk) | Work::WholeBackward(chunk) => (None, Some(chunk)),
            Work::Weight(_) => (None, None),
            Work::Both(forward, backward) => (Some(forward), Some(backward)),
        };
        if let Some(chunk) = forward {
            let index = self.forwards.index(chunk, self.stage(rank, chunk));
            self.forwards.at[index] = Some(at);
        }
        if let Some(chunk) = backward {
            let index = self.backwards.index(chunk, self.stage(rank, chunk));
            self.backwards.at[index] = Some(at);
        }
    }
}

/// The time of one step of a pipeline with these stages; what one hands the next takes `hop` seconds.
///
/// # Panics
/// If the schedule [refuses](Schedule::refuses).
pub fn simulate(schedule: Schedule, stages: &[StageTime], micro_batches: usize, hop: f64) -> PipelineTime {
    let ranks = stages.len();
    assert_eq!(schedule.refuses(ranks, micro_batches), None, "{ranks} ranks, {micro_batches} micro-batches");
    let orders: Vec<Vec<Work>> = (0..ranks).map(|rank| schedule.order(rank, ranks, micro_batches)).collect();
    let done = || Done::new(ranks, micro_batches);
    let mut simulation = Simulation { stages, hop, forwards: done(), backwards: done() };
    let (mut next, mut clock, mut sum) = (vec![0; ranks], vec![0.0f64; ranks], PipelineTime::default());
    loop {
        let mut moved = false;
        for rank in 0..ranks {
            while let Some(work) = orders[rank].get(next[rank]) {
                let Some(ready) = simulation.ready(rank, *work) else { break };
                clock[rank] = clock[rank].max(ready) + simulation.work(rank, *work, &mut sum);
                simulation.leave(rank, *work, clock[rank]);
                next[rank] += 1;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    assert!((0..ranks).all(|rank| next[rank] == orders[rank].len()), "{schedule:?} waits for itself");
    let total = clock.iter().fold(0.0, |a: f64, b| a.max(*b));
    let mean = |seconds: f64| seconds / ranks as f64;
    let busy = mean(sum.forward + sum.backward + sum.weight + sum.both);
    PipelineTime {
        forward: mean(sum.forward),
        backward: mean(sum.backward),
        weight: mean(sum.weight),
        both: mean(sum.both),
        bubble: total - busy,
        exchange_exposed: mean(sum.exchange_exposed),
        exchange: mean(sum.exchange),
        total,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn equal(f: f64, b: f64, w: f64) -> StageTime {
        StageTime { forward: f, input_gradient: b, weight_gradient: w, ..StageTime::default() }
    }

    #[test]
    fn bubbles_of_equal_stages_are_those_of_the_table() {
        for ranks in [2, 4, 8, 16] {
            for micro_batches in [2 * ranks, 2 * ranks + 6, 120] {
                for (f, b, w) in [(1.0, 1.0, 1.0), (1.0, 1.25, 0.75)] {
                    let stages = vec![equal(f, b, w); ranks];
                    for schedule in Schedule::ALL {
                        let time = simulate(schedule, &stages, micro_batches, 0.0);
                        let formula = schedule.bubble(ranks, f, b + w, w, f + b + w);
                        // The table's DualPipe takes B and F as equally long where their order matters.
                        let off =
                            if schedule == Schedule::DualPipe { (b - f) * (ranks as f64 / 2.0 - 1.0) } else { 0.0 };
                        assert!(
                            time.bubble <= formula + 1e-9 && time.bubble >= formula - off - 1e-9,
                            "{schedule:?} {ranks} {micro_batches}: {} {formula}",
                            time.bubble
                        );
                        let work = micro_batches as f64 * (f + b + w);
                        assert!((time.total - work - time.bubble).abs() < 1e-9);
                    }
                }
            }
        }
    }

    #[test]
    fn every_micro_batch_is_done_once_and_keeps_its_place() {
        for schedule in Schedule::ALL {
            for (ranks, micro_batches) in [(2, 4), (6, 14), (8, 16), (16, 120)] {
                for rank in 0..ranks {
                    let order = schedule.order(rank, ranks, micro_batches);
                    let (mut open, mut most) = (0i64, 0);
                    let mut counts = [0; 3];
                    for work in order {
                        match work {
                            Work::Forward(_) => (open, counts[0]) = (open + 1, counts[0] + 1),
                            Work::Backward(_) => counts[1] += 1,
                            Work::Weight(_) => (open, counts[2]) = (open - 1, counts[2] + 1),
                            Work::WholeBackward(_) => {
                                (open, counts[1], counts[2]) = (open - 1, counts[1] + 1, counts[2] + 1)
                            }
                            Work::Both(..) => counts = counts.map(|count| count + 1),
                        }
                        // Both at once is one more for a while.
                        most = most.max(open + i64::from(matches!(work, Work::Both(..))));
                    }
                    assert_eq!((counts, open), ([micro_batches; 3], 0), "{schedule:?}");
                    assert!(most as usize <= schedule.in_flight(ranks), "{schedule:?} {rank} of {ranks}: {most}");
                }
            }
        }
    }

    #[test]
    fn a_slow_stage_is_waited_for() {
        let mut stages = vec![equal(1.0, 1.0, 1.0); 8];
        let even = simulate(Schedule::DualPipe, &stages, 64, 0.0);
        stages[7] = equal(1.5, 1.5, 1.5);
        let uneven = simulate(Schedule::DualPipe, &stages, 64, 0.0);
        assert!(uneven.bubble > even.bubble + 0.5 * 32.0, "{even:?} {uneven:?}");
        assert!(simulate(Schedule::DualPipe, &stages, 64, 0.1).total > uneven.total);
    }
}
