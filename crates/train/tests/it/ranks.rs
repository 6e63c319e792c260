//! Several ranks: every kind of step has the bits of one rank, whatever their number, also when a training goes on with
//! another number; and what happens when one is lost.

use std::sync::Arc;

use wels_comm::{Comm, Single, threads};
use wels_cpu::naive::{HostTransfers, Naive};
use wels_cpu::testing::{VARIABLE, device, edit, is_emulated};
use wels_device::host::random::Key;
use wels_device::{Device, Divergence, Tensor};
use wels_model::model::{Batch, Teacher};
use wels_model::params::Params;
use wels_model::tape::Execution;
use wels_train::distil;
use wels_train::example::{Example, pack};
use wels_train::muon::Rule;
use wels_train::rl::{Prompter, learn, sample};
use wels_train::trainer::{Hyperparameters, State, StepError, Trainer};

use crate::distil::teacher_model;
use crate::rl::{Even, options, tokenizer, trainer_with_shards};
use crate::trainer::{T, config, hyper};

pub const SHARDS: usize = 8;

/// Runs `work` on each rank of a world of threads; what they return, by rank.
pub fn world<R: Send>(ranks: usize, work: impl Fn(Arc<dyn Comm>) -> R + Sync) -> Vec<R> {
    if ranks == 1 {
        return vec![work(Arc::new(Single))];
    }
    std::thread::scope(|scope| {
        let ranks: Vec<_> = threads(ranks).into_iter().map(|comm| scope.spawn(|| work(Arc::new(comm)))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("a rank that does not panic")).collect()
    })
}

/// Bits of a rank's weights, and on rank 0 of the whole optimizer's state.
#[derive(PartialEq, Debug)]
pub struct Bits {
    pub weights: Vec<Vec<u32>>,
    pub moments: [Vec<Vec<u32>>; 2],
}

pub fn bits(trainer: &Trainer) -> Bits {
    let of = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect();
    let weights = trainer.whole_params().unwrap();
    let weights = weights.tensors().iter().map(|tensor| of(&tensor.to_host())).collect();
    let moments = trainer.whole_moments().unwrap().map(|all| all.iter().map(|values| of(values)).collect());
    Bits { weights, moments }
}

/// What a checkpoint has: steps, weights, and the optimizer's two means of each parameter.
pub type Saved = (u64, Params, [Vec<Vec<f32>>; 2]);

/// The naive device takes some seconds a step.
pub fn steps() -> u64 {
    if std::env::var_os(VARIABLE).is_some() { 2 } else { 20 }
}

/// A mixture of experts with MTP, and weights that are added up in 8 shards.
fn pretrainer(shards: usize) -> Trainer {
    trainer_of(Hyperparameters { gradient_shards: shards, ..hyper() })
}

/// Whose matrices are whole ranks' each.
fn pretrainer_by_muon(shards: usize) -> Trainer {
    trainer_of(Hyperparameters { gradient_shards: shards, rule: Rule::Muon { momentum: 0.95 }, ..hyper() })
}

fn trainer_of(hyper: Hyperparameters) -> Trainer {
    let config = config();
    let state = State::new(Params::init(&device(), &config, 5), hyper.rule);
    Trainer::new(config, T, state, hyper, Execution::new(device()))
}

/// Sixteen sequences of a pattern that can be learnt.
pub fn batch(step: u64) -> Batch {
    let key = Key { seed: 9, stream: step };
    let sequence = |s: u64| (0..=T as u64).map(move |t| ((key.below_at(s, 50) + 3 * t) % 60) as u32);
    let all: Vec<Vec<u32>> = (0..16).map(|s| sequence(s).collect()).collect();
    Batch {
        tokens: all.iter().flat_map(|s| s[..T].to_vec()).collect(),
        targets: all.iter().flat_map(|s| s[1..].to_vec()).collect(),
        starts: (0..=16).map(|s| s * T as u32).collect(),
    }
}

/// Eleven examples of mixed lengths.
fn examples(step: u64) -> Vec<Example> {
    let key = Key { seed: 4, stream: step };
    let tokens = |n: u64, from: u64| (0..n).map(|i| key.below_at(from + i, 300) as u32).collect::<Vec<_>>();
    (0..11).map(|i| Example::answer(&tokens(1 + i % 4, 100 * i), &tokens(1 + 3 * i % 17, 100 * i + 50))).collect()
}

pub fn pretraining(trainer: &mut Trainer, step: u64) {
    trainer.step(&batch(step), 3 * T).unwrap();
}

fn fine_tuning(trainer: &mut Trainer, step: u64) {
    trainer.step(&pack(&examples(step)), 20).unwrap();
}

/// Answers of mixed lengths, of which dead groups are left out: sometimes fewer sequences than shards.
fn reinforcement(trainer: &mut Trainer, step: u64) {
    let tokenizer = tokenizer();
    let prompter = Prompter { tokenizer: &tokenizer, template: None };
    let mut options = options(16);
    options.grpo.kl = 0.01;
    let reference = Params::init(&device(), trainer.model().config(), 11);
    let rollout = sample(trainer, &Even, &prompter, &options, 5, step * 5, &mut |_, _| {}).unwrap();
    let key = Key { seed: 5, stream: step };
    let report = learn(trainer, Some(&reference), &rollout, &options, key).unwrap();
    assert_eq!(report.logprob_difference_max, 0.0);
}

fn distillation(trainer: &mut Trainer, step: u64) {
    let (model, params) = teacher_model();
    let (divergence, temperature, cross_entropy) = (Divergence::Forward, 1.5, 0.3);
    let teacher = Teacher { model: &model, params: &params, divergence, temperature, cross_entropy };
    distil::step(trainer, &teacher, &pack(&examples(step)), 30).unwrap();
}

/// A kind of stage: its name, a trainer with so many shards, and a step.
pub type Kind = (&'static str, fn(usize) -> Trainer, fn(&mut Trainer, u64));

pub const KINDS: [Kind; 5] = [
    ("pretraining", pretrainer, pretraining),
    ("pretraining by Muon", pretrainer_by_muon, pretraining),
    ("fine-tuning", trainer_with_shards, fine_tuning),
    ("reinforcement", trainer_with_shards, reinforcement),
    ("distillation", trainer_with_shards, distillation),
];

#[test]
fn every_kind_of_step_has_the_same_bits_on_any_number_of_ranks() {
    for (name, trainer, step) in KINDS {
        let run = |ranks: usize| {
            let all = world(ranks, |comm| {
                let mut trainer = trainer(SHARDS).with_comm(comm);
                (0..steps()).for_each(|number| step(&mut trainer, number));
                bits(&trainer)
            });
            assert!(all.iter().all(|rank| rank.weights == all[0].weights), "{name}: {ranks} ranks disagree");
            all.into_iter().next().unwrap()
        };
        let one = run(1);
        assert_ne!(one, bits(&trainer(SHARDS)), "{name}: something is learnt");
        for ranks in [2, 4, 8] {
            assert!(run(ranks) == one, "{name} on {ranks} ranks");
        }
    }
}

#[test]
fn a_shard_is_one_chain_whatever_the_micro_batches() {
    let run = |shards, rows| {
        let mut trainer = pretrainer(shards);
        let reports: Vec<_> = (0..steps().min(3)).map(|step| trainer.step(&batch(step), rows).unwrap()).collect();
        (bits(&trainer), reports)
    };
    // An emulated card takes some 20 times as long.
    let all: &[usize] = if is_emulated() { &[2, 16] } else { &[1, 2, 8, 16] };
    for &shards in all {
        let whole = run(shards, 16 * T);
        assert!(run(shards, T) == whole, "{shards} shards, a sequence at a time");
        assert!(run(shards, 5 * T) == whole, "{shards} shards, five sequences at a time");
        assert!(shards == 1 || whole.0 != run(1, 16 * T).0, "{shards} shards are another order of sums than one");
    }
}

#[test]
fn a_training_goes_on_with_another_number_of_ranks() {
    if std::env::var_os(VARIABLE).is_some() {
        return; // what differs between devices is tested above
    }
    [pretrainer, pretrainer_by_muon].into_iter().for_each(goes_on);
}

fn goes_on(pretrainer: fn(usize) -> Trainer) {
    let total = 60;
    let one = {
        let mut trainer = pretrainer(SHARDS);
        (0..total).for_each(|number| pretraining(&mut trainer, number));
        bits(&trainer)
    };
    // Twenty-four times stopped and gone on with, each time by another number of ranks.
    let key = Key { seed: 21, stream: 0 };
    let mut cuts: Vec<u64> = (0..24).map(|i| key.below_at(i, total)).chain([0, total]).collect();
    cuts.sort_unstable();
    let mut saved: Option<Saved> = None;
    for (i, piece) in cuts.windows(2).enumerate() {
        let ranks = [1, 2, 4, 8][key.below_at(100 + i as u64, 4) as usize];
        let mut all = world(ranks, |comm| {
            let mut trainer = pretrainer(SHARDS);
            if let Some((step, params, [m, v])) = &saved {
                let tensors = |like: &[Tensor], moments: &[Vec<f32>]| -> Vec<Tensor> {
                    let both = like.iter().zip(moments);
                    both.map(|(like, values)| Tensor::of(&device(), like.rows(), like.cols(), values)).collect()
                };
                let (m, v) = (tensors(&trainer.state.m, m), tensors(&trainer.state.v, v));
                trainer.state = State { step: *step, params: params.clone(), m, v };
            }
            let mut trainer = trainer.with_comm(comm);
            (piece[0]..piece[1]).for_each(|number| pretraining(&mut trainer, number));
            let moments = trainer.whole_moments().unwrap();
            let moments = moments.map(|all| all.into_iter().map(|values| values.into_owned()).collect());
            (trainer.state.step, trainer.state.params.clone(), moments, bits(&trainer))
        });
        let (step, params, moments, reached) = all.swap_remove(0);
        assert_eq!(step, piece[1]);
        assert!(piece[1] < total || reached == one, "the last of the pieces");
        saved = Some((step, params, moments));
    }
}

#[test]
fn a_rank_that_is_lost_ends_the_others_with_one_sentence() {
    let mut ranks = threads(2);
    let (second, first) = (ranks.pop().unwrap(), ranks.pop().unwrap());
    let outcome = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut trainer = pretrainer(SHARDS).with_comm(Arc::new(second));
            trainer.step(&batch(0), T).unwrap();
            panic!("as planned");
        });
        let mut trainer = pretrainer(SHARDS).with_comm(Arc::new(first));
        trainer.step(&batch(0), T).unwrap();
        let before = trainer.state.params.tensors()[0].to_host().into_owned();
        let error = trainer.step(&batch(1), T).unwrap_err();
        assert!(*trainer.state.params.tensors()[0].to_host() == before, "no weight was touched");
        assert!(other.join().is_err());
        error
    });
    assert_eq!(outcome.to_string(), "rank 1 of 2 has ended before the others");
    assert!(matches!(outcome, StepError::Lost(_)), "{outcome:?}");
}

#[test]
fn a_loss_that_is_no_number_on_one_rank_stops_all_of_them() {
    let failures = world(4, |comm| {
        let mut trainer = pretrainer(SHARDS);
        let mut batch = batch(0);
        // Only the last rank's sequences have this token, whose embedding is no number.
        let embedding = trainer.state.params.position("model.embed_tokens.weight").unwrap();
        edit(trainer.state.params.tensor_mut(embedding), |values| values[59 * 32] = f32::NAN);
        batch.tokens.iter_mut().for_each(|token| *token %= 59);
        let last = batch.tokens.len() - 1;
        batch.tokens[last] = 59;
        trainer.with_comm(comm).step(&batch, T).unwrap_err()
    });
    assert!(matches!(failures[0], StepError::NonFinite { what: "loss", step: 1, .. }), "{:?}", failures[0]);
    assert!(failures.iter().all(|failure| *failure == failures[0]), "{failures:?}");
}

#[test]
#[should_panic(expected = "6 gradient shards on 4 ranks")]
fn ranks_divide_the_shards() {
    let ranks = threads(4);
    pretrainer(6).with_comm(Arc::new(ranks.into_iter().next().unwrap()));
}

/// What the host reads of a step: each micro-batch's losses when it is over, one tensor for each head; sums of squares
/// are not tensors; the router's bias twice a layer with experts, to move it and to report it.
#[test]
fn a_step_reads_nothing_but_its_results() {
    let naive = Naive::new();
    let device: Arc<dyn Device> = naive.clone();
    let state = State::new(Params::init(&device, &config(), 5), hyper().rule);
    let mut trainer = Trainer::new(config(), T, state, hyper(), Execution::new(device));
    let before = naive.host_transfers();
    trainer.step(&batch(0), 8 * T).unwrap();
    let after = naive.host_transfers();
    let (micro_batches, heads, routers) = (2, 2, 2);
    let expected =
        HostTransfers { reads: before.reads + micro_batches * heads + 2 * routers, writes: before.writes + routers };
    assert_eq!(after, expected);
}
