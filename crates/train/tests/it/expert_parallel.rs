//! Experts over ranks: every kind of step has the bits of one process, whatever the number of ranks and of those that
//! share the experts; what a rank holds; what it sends; what happens when one fails.

use std::sync::Arc;

use wels_comm::{Comm, threads};
use wels_cpu::testing::{VARIABLE, device, edit};
use wels_device::Tensor;
use wels_device::host::random::Key;
use wels_model::config::ModelConfig;
use wels_model::expert_parallel::is_of_experts;
use wels_model::model::Batch;
use wels_model::names::ParamKind;
use wels_model::params::Params;
use wels_model::tape::{Execution, Recompute};
use wels_train::muon::Rule;
use wels_train::trainer::{Hyperparameters, State, StepError, StepReport, Trainer};

use crate::ranks::{Bits, KINDS, SHARDS, Saved, batch, bits, pretraining, steps, world};
use crate::trainer::{T, config, hyper};

/// Ranks, and how many of them share the experts.
const LAYOUTS: [(usize, usize); 6] = [(2, 2), (4, 2), (4, 4), (8, 1), (8, 2), (8, 4)];

/// As one of some ranks, of which `ranks` share the experts.
fn over(trainer: Trainer, comm: Arc<dyn Comm>, ranks: usize) -> Trainer {
    trainer.with_experts_over(comm, ranks)
}

#[test]
fn every_kind_of_step_has_the_bits_of_one_process() {
    for (name, trainer, step) in KINDS {
        let run = |ranks: usize, sharing: usize| {
            let all = world(ranks, |comm| {
                let mut trainer = over(trainer(SHARDS), comm, sharing);
                (0..steps()).for_each(|number| step(&mut trainer, number));
                bits(&trainer)
            });
            assert!(all.iter().all(|rank| rank.weights == all[0].weights), "{name}: {ranks} ranks disagree");
            all.into_iter().next().unwrap()
        };
        let one = run(1, 1);
        for (ranks, sharing) in LAYOUTS {
            assert!(run(ranks, sharing) == one, "{name} on {ranks} ranks, experts over {sharing}");
        }
    }
}

/// Experts whose parts are no whole chunks of the norm's sums, in two layers of which one has no experts.
fn wide() -> ModelConfig {
    let config = config();
    let moe = config.moe.clone().map(|moe| wels_model::config::MoeConfig { expert_intermediate: 72, ..moe });
    ModelConfig { moe, layers: 3, ..config }
}

fn trainer_of(config: ModelConfig, rule: Rule, recompute: Recompute) -> Trainer {
    let hyper = Hyperparameters { gradient_shards: SHARDS, rule, clip_norm: 0.1, ..hyper() };
    let state = State::new(Params::init(&device(), &config, 5), hyper.rule);
    Trainer::new(config, T, state, hyper, Execution { recompute, ..Execution::new(device()) })
}

/// Bits and reports of some steps.
fn run(
    ranks: usize,
    sharing: usize,
    micro_rows: usize,
    trainer: &(dyn Fn() -> Trainer + Sync),
) -> (Bits, Vec<StepReport>) {
    let all = world(ranks, |comm| {
        let mut trainer = over(trainer(), comm, sharing);
        let reports = (0..4).map(|number| trainer.step(&batch(number), micro_rows).unwrap()).collect();
        (bits(&trainer), reports)
    });
    assert!(all.iter().all(|(_, reports)| *reports == all[0].1), "{ranks} ranks report different things");
    all.into_iter().next().unwrap()
}

#[test]
fn micro_batches_recomputation_and_optimizer_change_no_bit_and_no_figure() {
    if std::env::var_os(VARIABLE).is_some() {
        return; // what differs between devices is tested above
    }
    for rule in [Rule::AdamW, Rule::Muon { momentum: 0.95 }] {
        let one = run(1, 1, 16 * T, &|| trainer_of(wide(), rule, Recompute::None));
        assert!(one.1.iter().all(|report| report.experts.len() == 3 && report.grad_norm > 0.1));
        for (ranks, sharing) in LAYOUTS {
            for (rows, recompute) in
                [(T, Recompute::None), (16 * T, Recompute::All), (2 * T, Recompute::Layers(vec![1, 3]))]
            {
                let got = run(ranks, sharing, rows, &|| trainer_of(wide(), rule, recompute.clone()));
                assert!(got == one, "{rule:?}, {ranks} ranks, experts over {sharing}, {rows} rows, {recompute:?}");
            }
        }
    }
}

/// Sequences of very different lengths, fewer than shards: ranks have different numbers of micro-batches, some none.
fn uneven() -> Batch {
    let lengths = [16, 1, 1, 2, 9];
    let starts: Vec<u32> = lengths
        .iter()
        .scan(0, |sum, len| {
            *sum += len;
            Some(*sum)
        })
        .collect();
    let starts: Vec<u32> = [0].into_iter().chain(starts).collect();
    let tokens: Vec<u32> = (0..*starts.last().unwrap()).map(|i| 7 * i % 60).collect();
    Batch { targets: tokens.iter().map(|token| (token + 3) % 60).collect(), tokens, starts }
}

#[test]
fn ranks_without_tokens_take_part() {
    let trainer = || trainer_of(config(), Rule::AdamW, Recompute::Layers(vec![1]));
    let run = |ranks, sharing| {
        world(ranks, |comm| {
            let mut trainer = over(trainer(), comm, sharing);
            let reports: Vec<_> = (0..3).map(|_| trainer.step(&uneven(), 3).unwrap()).collect();
            let logprobs = trainer.logprobs(&uneven(), 3).unwrap();
            (bits(&trainer), reports, logprobs.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
        })
        .swap_remove(0)
    };
    let one = run(1, 1);
    for (ranks, sharing) in LAYOUTS {
        assert!(run(ranks, sharing) == one, "{ranks} ranks, experts over {sharing}");
    }
}

#[test]
fn a_training_goes_on_with_another_layout() {
    if std::env::var_os(VARIABLE).is_some() {
        return;
    }
    for rule in [Rule::AdamW, Rule::Muon { momentum: 0.95 }] {
        let trainer = || trainer_of(wide(), rule, Recompute::None);
        let one = world(1, |comm| {
            let mut trainer = over(trainer(), comm, 1);
            (0..24).for_each(|number| pretraining(&mut trainer, number));
            bits(&trainer)
        });
        let key = Key { seed: 3, stream: 7 };
        let mut saved: Option<Saved> = None;
        for piece in 0..12 {
            let (ranks, sharing) = [(1, 1), LAYOUTS[0], LAYOUTS[1], LAYOUTS[2], LAYOUTS[3], LAYOUTS[4], LAYOUTS[5]]
                [key.below_at(piece, 7) as usize];
            let mut all = world(ranks, |comm| {
                let mut trainer = trainer();
                if let Some((step, params, [m, v])) = &saved {
                    let tensors = |like: &[Tensor], moments: &[Vec<f32>]| -> Vec<Tensor> {
                        let both = like.iter().zip(moments);
                        both.map(|(like, values)| Tensor::of(&device(), like.rows(), like.cols(), values)).collect()
                    };
                    let (m, v) = (tensors(&trainer.state.m, m), tensors(&trainer.state.v, v));
                    trainer.state = State { step: *step, params: params.clone(), m, v };
                }
                let mut trainer = over(trainer, comm, sharing);
                (2 * piece..2 * piece + 2).for_each(|number| pretraining(&mut trainer, number));
                let moments = trainer.whole_moments().unwrap();
                let moments = moments.map(|all| all.into_iter().map(|values| values.into_owned()).collect());
                (trainer.state.step, trainer.whole_params().unwrap(), moments, bits(&trainer))
            });
            let (step, params, moments, reached) = all.swap_remove(0);
            assert!(piece < 11 || reached == one[0], "{rule:?}: the last of the pieces");
            saved = Some((step, params, moments));
        }
    }
}

#[test]
fn a_rank_holds_its_experts_alone_and_what_it_sends_is_counted() {
    let config = config();
    let (experts, top_k, d) = (4, 2, config.hidden_size);
    for (ranks, sharing) in [(2, 2), (4, 4), (4, 2)] {
        let all = world(ranks, |comm| {
            let rank = comm.rank();
            let mut trainer = over(trainer_of(config.clone(), Rule::AdamW, Recompute::None), comm, sharing);
            trainer.step(&batch(0), T).unwrap();
            let State { params, m, v, .. } = &trainer.state;
            for (param, spec) in params.specs().iter().enumerate().filter(|(_, spec)| is_of_experts(spec.kind)) {
                assert_eq!(spec.kind, ParamKind::Experts(experts));
                assert_eq!(params.tensors()[param].len() * sharing, spec.len(), "{}", spec.name);
                let first = rank % sharing * (spec.rows / sharing);
                assert_eq!(params.rows_here(param), first..first + spec.rows / sharing);
            }
            let moments = |moments: &[Tensor]| moments.iter().map(Tensor::len).sum::<usize>();
            let moments = [moments(m), moments(v)];
            (trainer.take_sent().unwrap(), moments)
        });
        // Two layers with experts, MTP's being one, forward and backward; a row a choice, all but those that stay.
        let rows = 16 * T * top_k * 2 * 2;
        let sent = all[0].0;
        assert!(all.iter().all(|(others, _)| *others == sent));
        assert_eq!(sent.dispatched, sent.combined, "what goes there comes back");
        assert!(sent.dispatched > 0 && sent.dispatched < (rows * d * 4) as u64, "{sent:?} of {rows} rows");
        assert!(sent.dispatched.is_multiple_of(d as u64 * 4));
        // The optimizer's state is there once in the world.
        let specs = wels_model::names::param_specs(&config);
        let whole: usize = specs.iter().filter(|it| it.kind != ParamKind::RouterBias).map(|it| it.len()).sum();
        let sums = [0, 1].map(|which| all.iter().map(|(_, moments)| moments[which]).sum::<usize>());
        assert_eq!(sums, [whole; 2], "{ranks} ranks, experts over {sharing}");
    }
}

/// With a shard and a micro-batch for each rank the gradients of experts are added up at once.
#[test]
fn gradients_of_one_micro_batch_take_the_room_of_a_ranks_experts() {
    let (ranks, config) = (4, wide());
    let trainer = || {
        let trainer = trainer_of(config.clone(), Rule::AdamW, Recompute::None);
        let hyper = Hyperparameters { gradient_shards: ranks, ..*trainer.hyperparameters() };
        Trainer::new(config.clone(), T, trainer.state, hyper, Execution::new(device()))
    };
    let specs = wels_model::names::param_specs(&config);
    let len = |of_experts| -> usize {
        let with_gradient = specs.iter().filter(|it| it.kind != ParamKind::RouterBias);
        with_gradient.filter(|it| is_of_experts(it.kind) == of_experts).map(|it| it.len()).sum()
    };
    // Embedding and head are MTP's too.
    let shared: usize = specs
        .iter()
        .filter(|it| it.kind == ParamKind::Embedding || it.kind == ParamKind::Head)
        .map(|it| it.len())
        .sum();
    let run = |ranks, sharing, rows: [usize; 3]| {
        world(ranks, |comm| {
            let mut trainer = over(trainer(), comm, sharing);
            let step = |(number, rows)| {
                trainer.step(&batch(number), rows).unwrap();
                trainer.grads_bytes() / 4
            };
            let sizes: Vec<usize> = (0..).zip(rows).map(step).collect();
            (sizes, bits(&trainer))
        })
        .swap_remove(0)
    };
    let (_, one) = run(1, 1, [T; 3]);
    let rest = len(false) + shared;
    // More micro-batches in between need a gradient for each rank.
    let (sizes, got) = run(ranks, 4, [4 * T, T, 4 * T]);
    assert_eq!(sizes, [rest + len(true) / 4, rest + len(true), rest + len(true) / 4]);
    assert!(got == one, "experts over 4 ranks");
    let (sizes, got) = run(ranks, 2, [T, 4 * T, 4 * T]);
    assert_eq!(sizes, [rest + len(true), rest + len(true) / 2, rest + len(true) / 2]);
    assert!(got == one, "experts over 2 ranks");
}

#[test]
fn a_loss_that_is_no_number_on_one_rank_stops_all_of_them() {
    let failures = |bad: fn(&mut Trainer, &mut Batch)| {
        world(4, move |comm| {
            let mut trainer = trainer_of(config(), Rule::AdamW, Recompute::None);
            let mut batch = batch(0);
            bad(&mut trainer, &mut batch);
            over(trainer, comm, 2).step(&batch, T).unwrap_err()
        })
    };
    // Only the last rank's sequences have this token, whose embedding is no number.
    let of_embedding = failures(|trainer, batch| {
        let embedding = trainer.state.params.position("model.embed_tokens.weight").unwrap();
        edit(trainer.state.params.tensor_mut(embedding), |values| values[59 * 32] = f32::NAN);
        batch.tokens.iter_mut().for_each(|token| *token %= 59);
        let last = batch.tokens.len() - 1;
        batch.tokens[last] = 59;
    });
    // Only every second rank holds this expert.
    let of_expert = failures(|trainer, _| {
        let experts = trainer.state.params.position("model.layers.1.mlp.experts.up_proj").unwrap();
        edit(trainer.state.params.tensor_mut(experts), |values| *values.last_mut().unwrap() = f32::INFINITY);
    });
    for (all, place) in [(of_embedding, "model.embed_tokens"), (of_expert, "model.layers.1.mlp.experts.up_proj")] {
        assert!(matches!(all[0], StepError::NonFinite { what: "loss", step: 1, .. }), "{:?}", all[0]);
        assert!(all[0].to_string().contains(place), "{}", all[0]);
        assert!(all.iter().all(|failure| *failure == all[0]), "{all:?}");
    }
}

#[test]
fn a_rank_that_is_lost_ends_the_others_with_one_sentence() {
    let mut ranks = threads(2);
    let (second, first) = (ranks.pop().unwrap(), ranks.pop().unwrap());
    let trainer = || trainer_of(config(), Rule::AdamW, Recompute::None);
    let outcome = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let comm: Arc<dyn Comm> = Arc::new(second);
            let mut trainer = over(trainer(), comm, 2);
            trainer.step(&batch(0), T).unwrap();
            panic!("as planned");
        });
        let mut trainer = over(trainer(), Arc::new(first), 2);
        trainer.step(&batch(0), T).unwrap();
        let before = trainer.state.params.tensors()[0].to_host().into_owned();
        let error = trainer.step(&batch(1), T).unwrap_err();
        assert!(*trainer.state.params.tensors()[0].to_host() == before, "no weight was touched");
        assert!(other.join().is_err());
        assert_eq!(trainer.whole_params().unwrap_err().rank, 1);
        error
    });
    assert_eq!(outcome.to_string(), "rank 1 of 2 has ended before the others");
    assert!(matches!(outcome, StepError::Lost(_)), "{outcome:?}");
}
