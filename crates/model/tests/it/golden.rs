//! The first losses of a tiny mixture of experts with MTP, to the last bit, on every platform.

use crate::shapes;
use wels_kernels::optim::{self, AdamW};
use wels_model::model::{Losses, Model, Objective};
use wels_model::names::ParamKind;
use wels_model::params::Params;
use wels_model::tape::Execution;

/// Mean loss of the next token, and of the MTP depths, before each step. If a change is meant to change them, the
/// failing test prints the new ones.
const LOSSES: [[f64; 3]; 8] = [
    [4.543276712298393, 4.57395488216031, 4.7515878796577455],
    [3.8669433034956455, 4.164602794954853, 4.229726030429204],
    [3.4728752430528402, 3.9565676835275467, 3.7563584129015606],
    [3.027378628961742, 3.799046710614235, 3.4575765152772266],
    [2.848321793600917, 3.6617276303229795, 3.1400847395261127],
    [2.560263399966061, 3.4250405969158297, 2.9113790253798166],
    [2.307695318944752, 3.1792297795895608, 2.6142409364382426],
    [2.0453961505554616, 3.040189918971831, 2.4631068100531897],
];

#[test]
fn first_losses_of_a_tiny_mixture_of_experts() {
    let config = shapes::deepseek_v3();
    let model = Model::new(config.clone(), 32);
    let mut params = Params::init(&config, 42);
    let (mut grads, execution) = (model.grads(), Execution::default());
    let mut state: Vec<_> = params.values.iter().map(|v| [vec![0.0; v.len()], vec![0.0; v.len()]]).collect();
    let batch = shapes::batch(42, &[32, 32]);
    let losses: Vec<[f64; 3]> = (1..=LOSSES.len() as u64)
        .map(|step| {
            let mut losses = Losses::default();
            let objective = Objective {
                coefficient: &|_, _| 1.0 / 64.0,
                mtp_coefficient: 0.3 / (2.0 * 64.0),
                balance_coefficient: 1e-4 / 2.0,
            };
            grads.begin();
            model.accumulate(&params, &mut grads, &execution, &batch, &objective, &mut losses);
            grads.finish();
            let adamw = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step };
            for ((values, grads), [m, v]) in params.values.iter_mut().zip(grads.values()).zip(&mut state) {
                if !grads.is_empty() {
                    optim::adamw(values, grads, m, v, &adamw, 1.0);
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
        for (bias, tokens) in params.values[bias].iter_mut().zip(&experts.tokens) {
            let below = mean - *tokens as f64;
            *bias += if below == 0.0 { 0.0 } else { 0.001 * below.signum() as f32 };
        }
    }
}
