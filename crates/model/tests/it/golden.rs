//! The first losses of a tiny mixture of experts with MTP, to the last bit, on every platform.

use crate::shapes;
use wels_cpu::testing::{device, edit};
use wels_device::{AdamW, Coefficient, Tensor};
use wels_model::model::{Losses, Model, Objective};
use wels_model::names::ParamKind;
use wels_model::params::Params;
use wels_model::tape::Execution;

/// Mean loss of the next token, and of the MTP depths, before each step. If a change is meant to change them, the
/// failing test prints the new ones.
const LOSSES: [[f64; 3]; 8] = [
    [4.543276712298393, 4.57395483986024, 4.751587975025177],
    [3.8678615875542164, 4.1651464758380765, 4.228564290205638],
    [3.4740738198161125, 3.9560502267652944, 3.748039925098419],
    [3.0327513217926025, 3.805090579294389, 3.466649466753006],
    [2.837739335373044, 3.6440367314123336, 3.1639094789822897],
    [2.556109393015504, 3.4248610696484967, 2.870356927315394],
    [2.313056181650609, 3.1974605369952416, 2.6200209548075994],
    [2.056592463515699, 3.0308842024495526, 2.3743055313825607],
];

#[test]
fn first_losses_of_a_tiny_mixture_of_experts() {
    let config = shapes::deepseek_v3();
    let model = Model::new(config.clone(), 32);
    let mut params = Params::init(&device(), &config, 42);
    let (mut grads, execution) = (model.grads(&device()), Execution::new(device()));
    let zeros = |tensor: &Tensor| Tensor::zeros(&device(), tensor.rows(), tensor.cols());
    let mut state: Vec<_> = params.tensors().iter().map(|tensor| [zeros(tensor), zeros(tensor)]).collect();
    let batch = shapes::batch(42, &[32, 32]);
    let losses: Vec<[f64; 3]> = (1..=LOSSES.len() as u64)
        .map(|step| {
            let mut losses = Losses::default();
            let objective = Objective {
                coefficient: Coefficient::Uniform(1.0 / 64.0),
                mtp_coefficient: 0.3 / (2.0 * 64.0),
                balance_coefficient: 1e-4 / 2.0,
                indexer_coefficient: 0.0,
                teacher: None,
            };
            grads.begin();
            model.accumulate(&params, &mut grads, &execution, &batch, &objective, &mut losses);
            grads.finish();
            let adamw = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step };
            for (i, (grads, [m, v])) in grads.values().iter().zip(&mut state).enumerate() {
                if !grads.is_empty() {
                    device().adamw((params.tensor_mut(i), 0), grads, (m, v), &adamw, 1.0);
                }
            }
            balance(&mut params, &losses);
            [losses.main.mean(), losses.mtp[0].mean(), losses.mtp[1].mean()]
        })
        .collect();
    assert_eq!(losses, LOSSES, "the losses are now {losses:?}");
}

/// DeepSeek-V3's rule: an expert with less than the mean load gets easier to choose, one with more harder.
fn balance(params: &mut Params, losses: &Losses) {
    for experts in &losses.experts {
        let name = format!("model.layers.{}.mlp.gate.e_score_correction_bias", experts.layer);
        let bias = params.position(&name).expect("a selection bias");
        assert_eq!(params.specs()[bias].kind, ParamKind::RouterBias);
        let mean = experts.tokens.iter().sum::<u64>() as f64 / experts.tokens.len() as f64;
        edit(params.tensor_mut(bias), |biases| {
            for (bias, tokens) in biases.iter_mut().zip(&experts.tokens) {
                let below = mean - *tokens as f64;
                *bias += if below == 0.0 { 0.0 } else { 0.001 * below.signum() as f32 };
            }
        });
    }
}
