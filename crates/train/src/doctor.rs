//! Warnings in words about a training, from its own metrics: what is wrong, with the figures, and the key to change.
//!
//! Each sign compares means over some steps, so single steps do not count: of a training by reinforcement the last ones
//! with the first ones, of one on given text with the best so far. The limits are rules of thumb, not results: they say
//! where to look. A sign is told once.

use std::collections::VecDeque;

use crate::rl::RlReport;

/// Steps of both windows.
const WINDOW: usize = 10;

/// What the doctor looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct WindowMetrics {
    entropy: f64,
    length: f64,
    dead_groups: f64,
    truncated: f64,
    accuracy: f64,
    format: f64,
}

impl WindowMetrics {
    fn of(report: &RlReport) -> WindowMetrics {
        let RlReport { entropy, length, dead_groups, truncated, accuracy, format, .. } = *report;
        WindowMetrics { entropy, length, dead_groups, truncated, accuracy, format }
    }

    fn mean<'a>(window: impl ExactSizeIterator<Item = &'a WindowMetrics>) -> WindowMetrics {
        let n = window.len().max(1) as f64;
        window.fold(WindowMetrics::default(), |sum, it| WindowMetrics {
            entropy: sum.entropy + it.entropy / n,
            length: sum.length + it.length / n,
            dead_groups: sum.dead_groups + it.dead_groups / n,
            truncated: sum.truncated + it.truncated / n,
            accuracy: sum.accuracy + it.accuracy / n,
            format: sum.format + it.format / n,
        })
    }
}

/// Watches a training from its first step.
#[derive(Debug, Default)]
pub struct Doctor {
    first: Vec<WindowMetrics>,
    last: VecDeque<WindowMetrics>,
    said: Vec<&'static str>,
}

impl Doctor {
    /// Looks at a step; warnings that have not been given yet.
    pub fn look(&mut self, report: &RlReport) -> Vec<String> {
        let metrics = WindowMetrics::of(report);
        if self.first.len() < WINDOW {
            self.first.push(metrics);
            return Vec::new();
        }
        self.last.push_back(metrics);
        if self.last.len() < WINDOW {
            return Vec::new();
        }
        let (first, last) = (WindowMetrics::mean(self.first.iter()), WindowMetrics::mean(self.last.iter()));
        self.last.pop_front();
        let signs = signs(&first, &last);
        let new: Vec<_> = signs.into_iter().filter(|(sign, _)| !self.said.contains(sign)).collect();
        self.said.extend(new.iter().map(|(sign, _)| *sign));
        new.into_iter().map(|(_, words)| words).collect()
    }
}

fn signs(first: &WindowMetrics, last: &WindowMetrics) -> Vec<(&'static str, String)> {
    let mut signs = Vec::new();
    if last.entropy < 0.2 * first.entropy {
        signs.push((
            "entropy",
            format!(
                "entropy has collapsed from {:.3} to {:.3} nats a token: the policy explores no more; raise clip_high, \
                 lower the learning rate, or add kl",
                first.entropy, last.entropy
            ),
        ));
    }
    if last.length < 0.5 * first.length {
        signs.push((
            "shorter",
            format!(
                "answers have shrunk from {:.0} to {:.0} tokens: look whether short answers earn too much (a penalty, or \
                 loss_mean = \"sequence\")",
                first.length, last.length
            ),
        ));
    }
    if last.truncated > 0.3 && last.truncated > first.truncated + 0.1 {
        signs.push((
            "longer",
            format!(
                "{:.0}% of answers run into the limit of length, {:.0}% did: raise max_tokens, or use overlong = \
                 \"penalty\"",
                100.0 * last.truncated,
                100.0 * first.truncated
            ),
        ));
    }
    if last.dead_groups > 0.7 {
        signs.push((
            "dead",
            format!(
                "{:.0}% of groups have equal rewards and teach nothing: the task is too easy or too hard; try other items, \
                 more samples a prompt, or sampling_rounds",
                100.0 * last.dead_groups
            ),
        ));
    }
    if last.format > first.format + 0.2 && last.accuracy < first.accuracy - 0.05 {
        signs.push((
            "format",
            format!(
                "form is rewarded and learnt ({:.0}% → {:.0}%) while accuracy falls ({:.0}% → {:.0}%): lower \
                 reward_format",
                100.0 * first.format,
                100.0 * last.format,
                100.0 * first.accuracy,
                100.0 * last.accuracy
            ),
        ));
    }
    signs
}

/// A step on given text or examples, as the doctor sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Learnt {
    /// Mean loss, nats.
    pub loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
    /// Of each layer with experts, its number and the tokens of each.
    pub loads: Vec<(usize, Vec<u64>)>,
    /// The loss of held-out text, where this step looked at it.
    pub held_out: Option<f64>,
}

/// Watches a training on given text or examples from its first step.
#[derive(Debug, Default)]
pub struct LossDoctor {
    last: VecDeque<Learnt>,
    /// Least means of loss and norm over a window so far.
    best: Option<(f64, f64)>,
    /// The least loss of held-out text, and the training's loss then.
    best_held_out: Option<(f64, f64)>,
    /// How often in a row held-out text was worse than at its best.
    worse: usize,
    said: Vec<&'static str>,
}

/// Nats above the best mean loss that are more than noise.
const RISEN: f64 = 0.5;
/// Times the least mean norm.
const EXPLODED: f64 = 10.0;
/// Nats above the best loss of held-out text.
const WORSE: f64 = 0.03;
/// Part of the mean load below which an expert is idle.
const IDLE: f64 = 0.01;

impl LossDoctor {
    /// Looks at a step; warnings that have not been given yet.
    pub fn look(&mut self, step: Learnt) -> Vec<String> {
        let held_out = step.held_out;
        self.last.push_back(step);
        if self.last.len() < WINDOW {
            return Vec::new();
        }
        let mean = |of: fn(&Learnt) -> f64| self.last.iter().map(of).sum::<f64>() / WINDOW as f64;
        let (loss, norm) = (mean(|step| step.loss), mean(|step| step.grad_norm));
        let mut signs = self.signs_of_steps(loss, norm);
        signs.extend(held_out.and_then(|held_out| self.sign_of_held_out(held_out, loss)));
        let (least, calmest) = self.best.unwrap_or((loss, norm));
        self.best = Some((least.min(loss), calmest.min(norm)));
        self.last.pop_front();
        let new: Vec<_> = signs.into_iter().filter(|(sign, _)| !self.said.contains(sign)).collect();
        self.said.extend(new.iter().map(|(sign, _)| *sign));
        new.into_iter().map(|(_, words)| words).collect()
    }

    fn signs_of_steps(&self, loss: f64, norm: f64) -> Vec<(&'static str, String)> {
        let mut signs = Vec::new();
        if let Some((least, calmest)) = self.best {
            if loss > least + RISEN {
                let words = format!(
                    "the loss has risen from {least:.3} to {loss:.3} nats: lower the learning rate or clip_norm, or \
                     lengthen warmup_steps; the checkpoint before is the better model"
                );
                signs.push(("loss", words));
            }
            if norm > EXPLODED * calmest {
                let words = format!(
                    "the gradient's norm has grown from {calmest:.2} to {norm:.2}: the loss follows soon; lower the \
                     learning rate, or lengthen warmup_steps"
                );
                signs.push(("norm", words));
            }
        }
        signs.extend(self.idle_experts().map(|words| ("idle", words)));
        signs
    }

    /// The layer with the most of them.
    fn idle_experts(&self) -> Option<String> {
        let first = self.last.front()?;
        let idle = (0..first.loads.len()).map(|at| {
            let mut sums = vec![0u64; first.loads[at].1.len()];
            for step in &self.last {
                sums.iter_mut().zip(&step.loads[at].1).for_each(|(sum, tokens)| *sum += tokens);
            }
            let mean = sums.iter().sum::<u64>() as f64 / sums.len().max(1) as f64;
            let idle = sums.iter().filter(|sum| (**sum as f64) < IDLE * mean).count();
            (idle, sums.len(), first.loads[at].0)
        });
        let (idle, experts, layer) = idle.max_by_key(|(idle, _, layer)| (*idle, std::cmp::Reverse(*layer)))?;
        (idle > 0).then(|| {
            format!(
                "{idle} of {experts} experts of layer {layer} got less than a hundredth of their share in {WINDOW} \
                 steps, and learn nothing: raise bias_update_speed or balance_alpha"
            )
        })
    }

    fn sign_of_held_out(&mut self, held_out: f64, loss: f64) -> Option<(&'static str, String)> {
        let (best, then) = *self.best_held_out.get_or_insert((held_out, loss));
        if held_out <= best {
            (self.best_held_out, self.worse) = (Some((held_out, loss)), 0);
            return None;
        }
        self.worse = if held_out > best + WORSE && loss < then { self.worse + 1 } else { 0 };
        (self.worse > 1).then(|| {
            let words = format!(
                "held-out text has got worse, from {best:.3} to {held_out:.3} nats, while the training's loss fell from \
                 {then:.3} to {loss:.3}: the model learns its text by heart; take more text, or fewer steps or epochs"
            );
            ("held out", words)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(report: impl Fn(usize) -> RlReport) -> Vec<String> {
        let mut doctor = Doctor::default();
        (0..40).flat_map(|step| doctor.look(&report(step))).collect()
    }

    fn healthy() -> RlReport {
        RlReport { entropy: 1.0, length: 50.0, accuracy: 0.5, format: 0.5, dead_groups: 0.3, ..RlReport::default() }
    }

    fn late(step: usize, early: f64, late: f64) -> f64 {
        if step < 15 { early } else { late }
    }

    #[test]
    fn health_is_silent_and_each_sign_is_told_once() {
        assert_eq!(words(|_| healthy()), Vec::<String>::new());
        type Course = fn(usize) -> RlReport;
        let cases: [(&str, Course); 5] = [
            ("entropy has collapsed from 1.000", |s| RlReport { entropy: late(s, 1.0, 0.01), ..healthy() }),
            ("answers have shrunk from 50", |s| RlReport { length: late(s, 50.0, 10.0), ..healthy() }),
            ("run into the limit", |s| RlReport { truncated: late(s, 0.0, 0.6), ..healthy() }),
            ("equal rewards", |s| RlReport { dead_groups: late(s, 0.3, 0.95), ..healthy() }),
            ("while accuracy falls", |s| RlReport {
                format: late(s, 0.5, 1.0),
                accuracy: late(s, 0.5, 0.1),
                ..healthy()
            }),
        ];
        for (expected, report) in cases {
            let said = words(report);
            assert!(said.len() == 1 && said[0].contains(expected), "{expected}: {said:?}");
        }
    }

    fn words_of(step: impl Fn(usize) -> Learnt) -> Vec<(usize, String)> {
        let mut doctor = LossDoctor::default();
        let told = |at: usize, words: Vec<String>| words.into_iter().map(move |words| (at, words));
        (0..80).flat_map(|at| told(at, doctor.look(step(at)))).collect()
    }

    /// Learns, with noise in norms, and every expert at work.
    fn learning(step: usize) -> Learnt {
        let progress = step as f64 / 80.0;
        Learnt {
            loss: 5.0 - 2.0 * progress,
            grad_norm: 1.0 + (step % 7) as f64,
            loads: vec![(1, vec![10, 20, 1, 9]), (2, vec![10, 10, 10, 10])],
            held_out: step.is_multiple_of(10).then_some(5.2 - 2.0 * progress),
        }
    }

    #[test]
    fn what_a_loss_suffers_from_is_told_once_with_its_figures() {
        assert_eq!(words_of(learning), []);
        type Course = fn(usize) -> Learnt;
        let cases: [(&str, Course); 4] = [
            ("the loss has risen from 4.", |s| Learnt { loss: if s < 40 { 4.5 } else { 5.5 }, ..learning(s) }),
            ("norm has grown from 3.", |s| Learnt { grad_norm: if s < 40 { 3.7 } else { 90.0 }, ..learning(s) }),
            ("1 of 4 experts of layer 2 got less", |s| Learnt {
                loads: vec![(1, vec![10; 4]), (2, vec![10, if s < 40 { 1 } else { 0 }, 10, 10])],
                ..learning(s)
            }),
            ("held-out text has got worse, from 4.", |s| Learnt {
                held_out: s.is_multiple_of(10).then_some(if s < 40 { 4.5 } else { 4.5 + s as f64 / 100.0 }),
                ..learning(s)
            }),
        ];
        for (expected, step) in cases {
            let told = words_of(step);
            assert!(told.len() == 1 && told[0].1.contains(expected) && told[0].0 >= 40, "{expected}: {told:?}");
        }
    }
}
