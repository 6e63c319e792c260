//! What the memory-bound kernels promise beyond equality with their references on ordinary numbers.

use crate::{assert_same, everywhere, numbers};
use wels_kernels::experts::Dispatch;
use wels_kernels::gemm::Start;
use wels_kernels::optim::AdamW;
use wels_kernels::router::{Router, Scoring};
use wels_kernels::{elementwise, embedding, norm, optim, reference, router};

const V3: Router =
    Router { scoring: Scoring::Sigmoid, experts: 32, top_k: 4, groups: 8, top_groups: 3, normalize: true, scale: 2.5 };
const V2: Router = Router { scoring: Scoring::Softmax, normalize: false, scale: 16.0, ..V3 };
const GREEDY: Router = Router { groups: 1, top_groups: 1, ..V2 };

fn route(router: &Router, logits: &[f32], bias: Option<&[f32]>) -> (Vec<f32>, Vec<u32>, Vec<f32>) {
    let tokens = logits.len() / router.experts;
    let mut scores = vec![f32::NAN; logits.len()];
    let (mut experts, mut weights) = (vec![u32::MAX; tokens * router.top_k], vec![f32::NAN; tokens * router.top_k]);
    router::forward(router, logits, bias, &mut scores, &mut experts, &mut weights);
    (scores, experts, weights)
}

/// Few different logits, so that most choices are ties; then NaN and infinities among them.
#[test]
fn ties_and_non_finite_logits_route_as_the_reference() {
    let mut logits: Vec<f32> = numbers(1, 600 * 32).iter().map(|x| (x * 3.0).round()).collect();
    for (i, l) in logits.iter_mut().enumerate().skip(300 * 32) {
        *l = [*l, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, *l, *l, *l][i * i % 7];
    }
    logits[599 * 32..].fill(f32::NAN);
    let bias: Vec<f32> = numbers(2, 32).iter().map(|x| (x * 2.0).round() * 0.1).collect();
    for r in [V3, V2, GREEDY] {
        let tokens = 600;
        let mut expected = (vec![0.0; logits.len()], vec![0; tokens * 4], vec![0.0; tokens * 4]);
        reference::router::forward(&r, &logits, Some(&bias), &mut expected.0, &mut expected.1, &mut expected.2);
        everywhere(|isa| {
            let (scores, experts, weights) = route(&r, &logits, Some(&bias));
            assert_same(&format!("scores {r:?} {isa}"), &scores, &expected.0);
            assert_eq!(experts, expected.1, "{r:?} {isa}");
            assert_same(&format!("weights {r:?} {isa}"), &weights, &expected.2);
            for chosen in experts.chunks(4) {
                assert!(chosen.is_sorted_by(|a, b| a < b) && chosen[3] < 32, "{chosen:?} {r:?} {isa}");
            }
        });
    }
}

/// By hand: experts 0–3 in group 0, and so on. Group 1 has the single best expert, groups 0 and 2 the best pairs.
#[test]
fn groups_are_chosen_by_pairs_or_by_the_best() {
    let mut logits = vec![-9.0; 16];
    (logits[0], logits[1]) = (1.0, 1.0);
    logits[5] = 1.5;
    (logits[8], logits[9]) = (0.9, 0.8);
    let small = Router { experts: 16, groups: 4, top_groups: 2, top_k: 2, ..V3 };
    assert_eq!(route(&small, &logits, None).1, [0, 1], "V3: groups 0 and 2 by the sums of two");
    let softmax = Router { scoring: Scoring::Softmax, ..small };
    assert_eq!(route(&softmax, &logits, None).1, [0, 5], "V2: groups 1 and 0 by their best, of 0 and 1 the first");
    let mut bias = vec![0.0; 16];
    (bias[14], bias[15]) = (5.0, 5.0);
    let (scores, experts, weights) = route(&small, &logits, Some(&bias));
    assert_eq!(experts, [14, 15], "the bias steers");
    assert_eq!(scores[14], scores[2], "the bias is not in the scores");
    assert_eq!(weights, [1.25, 1.25], "nor in the weights, here equal halves of 2.5");
}

/// With equal scores every loss is 1: of Σ f·P with Σ f = E and P = 1/E.
#[test]
fn balance_of_equal_scores_is_one() {
    for r in [V3, GREEDY] {
        let (scores, experts, _) = route(&r, &[0.0; 32 * 10], None);
        let balance = router::balance(&r, &scores, &experts, &[0, 4, 10]);
        assert!(balance.losses.iter().all(|loss| (loss - 1.0).abs() < 1e-6), "{:?}", balance.losses);
        assert_eq!(balance.shares[..5], [8.0, 8.0, 8.0, 8.0, 0.0], "all tokens choose the first four of 32");
    }
}

#[test]
fn slots_are_those_of_the_reference() {
    for (tokens, top_k, experts) in [(0, 2, 3), (1, 1, 1), (50, 3, 7), (9, 4, 40)] {
        let chosen: Vec<u32> = (0..tokens * top_k).map(|i| ((i * i + i / 3) % experts) as u32).collect();
        let dispatch = Dispatch::new(&chosen, tokens, top_k, experts);
        let (offsets, rows, slots) = reference::experts::dispatch(&chosen, top_k, experts);
        assert_eq!((dispatch.offsets(), dispatch.rows(), dispatch.slots()), (&offsets[..], &rows[..], &slots[..]));
        assert_eq!(dispatch.loads().map(|n| n as usize).sum::<usize>(), tokens * top_k);
    }
}

/// Gradients of parameters are chains over tokens: two micro-batches give the bits of one batch.
#[test]
fn micro_batches_change_no_bit() {
    let (tokens, d, cut) = (50, 70, 13);
    let (dy, x, w) = (numbers(1, tokens * d), numbers(2, tokens * d), numbers(3, d));
    let rstd: Vec<f32> = numbers(4, tokens).iter().map(|r| r + 2.0).collect();
    let ids: Vec<u32> = (0..tokens as u32).map(|t| t * t % 9).collect();
    let run = |parts: &[std::ops::Range<usize>]| {
        let (mut dw, mut dbias, mut dtable) = (vec![f32::NAN; d], vec![f32::NAN; d], vec![f32::NAN; 9 * d]);
        for (i, part) in parts.iter().enumerate() {
            let start = if i == 0 { Start::Zero } else { Start::Continue };
            let rows = part.start * d..part.end * d;
            let (dy, x) = (&dy[rows.clone()], &x[rows.clone()]);
            let mut dx = vec![0.0; rows.len()];
            norm::rms_norm_backward(dy, x, &w, &rstd[part.clone()], &mut dx, Start::Zero, &mut dw, start, d);
            elementwise::bias_grad(dy, &mut dbias, start);
            embedding::gather_backward(dy, &ids[part.clone()], &mut dtable, start, d);
        }
        [dw, dbias, dtable].concat()
    };
    let whole = run(std::slice::from_ref(&(0..tokens)));
    assert_same("two micro-batches", &run(&[0..cut, cut..tokens]), &whole);
    assert_same("the second without tokens", &run(&[0..tokens, tokens..tokens]), &whole);
}

/// The formula in f64 over many steps.
#[test]
fn adamw_follows_the_formula() {
    let n = 40;
    let (mut p, mut m, mut v) = (numbers(1, n), vec![0.0; n], vec![0.0; n]);
    let mut exact: Vec<[f64; 3]> = p.iter().map(|&p| [f64::from(p), 0.0, 0.0]).collect();
    for step in 1..=100 {
        let grads = numbers(step + 1, n);
        let adamw = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step };
        optim::adamw(&mut p, &grads, &mut m, &mut v, &adamw, 0.5);
        let power = step as i32;
        for ([p, m, v], g) in exact.iter_mut().zip(&grads) {
            let g = f64::from(*g) * 0.5;
            *p *= 1.0 - adamw.lr * adamw.weight_decay;
            *m = 0.9 * *m + 0.1 * g;
            *v = 0.95 * *v + 0.05 * g * g;
            let root = (*v / (1.0 - 0.95f64.powi(power))).sqrt() + adamw.eps;
            *p -= adamw.lr * (*m / (1.0 - 0.9f64.powi(power))) / root;
        }
    }
    for (i, ([exact_p, exact_m, exact_v], p)) in exact.iter().zip(&p).enumerate() {
        assert!((exact_p - f64::from(*p)).abs() < 1e-6, "parameter {i}: {p} instead of {exact_p}");
        assert!((exact_m - f64::from(m[i])).abs() < 1e-6 && (exact_v - f64::from(v[i])).abs() < 1e-6);
    }
}

#[test]
fn the_first_non_finite_element_is_found() {
    let mut x = numbers(1, 100_000);
    assert_eq!(optim::first_non_finite(&x), None);
    for (at, value) in [(99_999, f32::NAN), (70_000, f32::INFINITY), (16_384, f32::NEG_INFINITY), (3, f32::NAN)] {
        x[at] = value;
        everywhere(|isa| assert_eq!(optim::first_non_finite(&x), Some(at), "{isa}"));
    }
}

#[test]
fn sum_of_squares_is_near_the_exact_one() {
    let x = numbers(1, 100_003);
    let exact: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    assert!((optim::sum_of_squares(&x) / exact - 1.0).abs() < 1e-6);
    assert_eq!(optim::sum_of_squares(&[]), 0.0);
}

#[test]
#[should_panic(expected = "token id 9 of a table of 9 rows")]
fn an_id_outside_of_the_table_panics() {
    embedding::gather(&[0.0; 18], &[3, 9], &mut [0.0; 4], 2);
}
