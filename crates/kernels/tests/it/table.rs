//! One table of the kernels that go through memory once: it drives the comparison with the references, the check of
//! gradients against finite differences, and the measurement of speed.

use crate::numbers;
use wels_kernels::elementwise::Columns;
use wels_kernels::experts::Dispatch;
use wels_kernels::gemm::Start;
use wels_kernels::optim::AdamW;
use wels_kernels::rope::{Direction, Layout, Scaling, Table};
use wels_kernels::router::{Balance, Router, Scoring};
use wels_kernels::swiglu::Gating;
use wels_kernels::{convert, router};

/// A kernel from some buffers to others.
pub type Kernel<'a> = &'a (dyn Fn(&[Vec<f32>], &mut [Vec<f32>]) + Sync);

/// A row of the table.
pub struct Case<'a> {
    pub name: String,
    pub inputs: Vec<Vec<f32>>,
    /// What the outputs hold before.
    pub outputs: Vec<Vec<f32>>,
    pub kernel: Kernel<'a>,
    pub reference: Kernel<'a>,
    /// For gradients.
    pub loss: Option<Loss<'a>>,
}

/// What a backward kernel's outputs are the gradients of.
pub struct Loss<'a> {
    /// The loss from the case's inputs.
    pub value: &'a dyn Fn(&[Vec<f64>]) -> f64,
    /// (input, output): that output is the gradient of that input.
    pub gradients: &'a [(usize, usize)],
}

/// For tests or for measuring.
#[derive(Clone, Copy, PartialEq)]
pub enum Size {
    Small,
    Large,
}

type Visit<'a> = &'a mut dyn FnMut(Case);

/// Far from negligible beside the mean of squares, so that its gradient shows.
const EPS: f32 = 1e-2;

/// A case from one call that is valid for both modules; `loss` is written over the inputs as f64.
macro_rules! case {
    (
        $visit:expr, $name:expr, $module:ident, [$($i:ident = $iv:expr),* $(,)?], [$($o:ident = $ov:expr),*],
        $call:block, loss $value:block, $gradients:expr
    ) => {{
        #[allow(unused_variables)]
        let value = |inputs: &[Vec<f64>]| -> f64 {
            let [$($i),*] = inputs else { panic!("inputs of {}", $name) };
            $value
        };
        let loss = Loss { value: &value, gradients: &$gradients };
        case!(@visit $visit, $name, $module, [$($i = $iv),*], [$($o = $ov),*], $call, Some(loss));
    }};
    (
        $visit:expr, $name:expr, $module:ident, [$($i:ident = $iv:expr),* $(,)?], [$($o:ident = $ov:expr),*],
        $call:block
    ) => {
        case!(@visit $visit, $name, $module, [$($i = $iv),*], [$($o = $ov),*], $call, None)
    };
    (
        @visit $visit:expr, $name:expr, $module:ident, [$($i:ident = $iv:expr),*], [$($o:ident = $ov:expr),*],
        $call:block, $loss:expr
    ) => {{
        #[allow(unused_variables)]
        let kernel = |inputs: &[Vec<f32>], outputs: &mut [Vec<f32>]| {
            use wels_kernels::$module as kernel;
            let [$($i),*] = inputs else { panic!("inputs of {}", $name) };
            let [$($o),*] = outputs else { panic!("outputs of {}", $name) };
            $call
        };
        #[allow(unused_variables)]
        let reference = |inputs: &[Vec<f32>], outputs: &mut [Vec<f32>]| {
            use wels_kernels::reference::$module as kernel;
            let [$($i),*] = inputs else { panic!("inputs of {}", $name) };
            let [$($o),*] = outputs else { panic!("outputs of {}", $name) };
            $call
        };
        let (name, inputs, outputs) = ($name.to_string(), vec![$($iv),*], vec![$($ov),*]);
        $visit(Case { name, inputs, outputs, kernel: &kernel, reference: &reference, loss: $loss });
    }};
}

/// Calls `visit` with each case.
pub fn each(size: Size, visit: Visit) {
    norms(size, visit);
    swiglus(size, visit);
    ropes(size, visit);
    routers(size, visit);
    balances(size, visit);
    experts(size, visit);
    embeddings(size, visit);
    optimizer(size, visit);
    additions(size, visit);
    conversions(size, visit);
}

/// Rows and their width: edges of lanes, columns and tasks.
fn rows(size: Size) -> Vec<(usize, usize)> {
    match size {
        Size::Small => vec![(0, 8), (1, 1), (3, 16), (5, 37), (2, 70), (9, 128), (40, 1000)],
        Size::Large => vec![(2048, 768)],
    }
}

fn lengths(size: Size) -> Vec<usize> {
    rows(size).into_iter().map(|(t, d)| t * d).collect()
}

fn nans(len: usize) -> Vec<f32> {
    vec![f32::NAN; len]
}

fn times(x: Vec<f32>, factor: f32) -> Vec<f32> {
    x.into_iter().map(|x| x * factor).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn rstds(x: &[f32], d: usize) -> Vec<f32> {
    x.chunks(d).map(|x| 1.0 / (x.iter().map(|x| x * x).sum::<f32>() / d as f32 + EPS).sqrt()).collect()
}

fn norms(size: Size, visit: Visit) {
    for (t, d) in rows(size) {
        let (x, w) = (numbers(1, t * d), numbers(2, d));
        case!(
            visit,
            format!("rms_norm {t}×{d}"),
            norm,
            [x = x.clone(), w = w.clone()],
            [y = nans(t * d), rstd = nans(t)],
            {
                kernel::rms_norm(x, w, EPS, y, rstd, d);
            }
        );
        let rstd = rstds(&x, d);
        case!(
            visit,
            format!("rms_norm_backward {t}×{d}"),
            norm,
            [dy = numbers(3, t * d), x = x.clone(), w = w.clone(), rstd = rstd.clone()],
            [dx = nans(t * d), dw = nans(d)],
            { kernel::rms_norm_backward(dy, x, w, rstd, dx, Start::Zero, dw, Start::Zero, d) },
            loss {
                let row = |(x, dy): (&[f64], &[f64])| {
                    let norm = (dot(x, x) / d as f64 + f64::from(EPS)).sqrt();
                    (0..d).map(|i| dy[i] * x[i] / norm * w[i]).sum::<f64>()
                };
                x.chunks(d).zip(dy.chunks(d)).map(row).sum::<f64>()
            },
            [(1, 0), (2, 1)]
        );
        case!(
            visit,
            format!("rms_norm_backward, continued {t}×{d}"),
            norm,
            [dy = numbers(3, t * d), x = x, w = w, rstd = rstd],
            [dx = numbers(4, t * d), dw = numbers(5, d)],
            { kernel::rms_norm_backward(dy, x, w, rstd, dx, Start::Continue, dw, Start::Continue, d) }
        );
    }
}

fn swiglus(size: Size, visit: Visit) {
    for n in lengths(size) {
        let (gate, up) = (times(numbers(1, n), 8.0), numbers(2, n));
        gatings(&format!("swiglu {n}"), Gating::Silu, (gate.clone(), up.clone()), visit, &|gate, up| {
            gate / (1.0 + (-gate).exp()) * up
        });
        let clamped = Gating::Clamped { alpha: 1.702, limit: 5.0 };
        let wide = (gate.clone(), times(up.clone(), 7.0));
        gatings(&format!("clamped swiglu {n}"), clamped, wide, visit, &|gate, up| {
            let (gate, up) = (gate.min(5.0), up.clamp(-5.0, 5.0));
            gate / (1.0 + (-1.702 * gate).exp()) * (up + 1.0)
        });
        let wide = (gate.clone(), times(up.clone(), 7.0));
        gatings(&format!("limited swiglu {n}"), Gating::Limited { limit: 5.0 }, wide, visit, &|gate, up| {
            let (gate, up) = (gate.min(5.0), up.clamp(-5.0, 5.0));
            gate / (1.0 + (-gate).exp()) * up
        });
        gatings(&format!("geglu {n}"), Gating::GeluTanh, (gate, up), visit, &|gate, up| {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3));
            0.5 * gate * (1.0 + inner.tanh()) * up
        });
    }
}

fn gatings(
    name: &str,
    gating: Gating,
    (gate, up): (Vec<f32>, Vec<f32>),
    visit: Visit,
    formula: &(dyn Fn(f64, f64) -> f64 + Sync),
) {
    let n = gate.len();
    case!(visit, name, swiglu, [gate = gate.clone(), up = up.clone()], [y = nans(n)], {
        kernel::forward(gating, gate, up, y);
    });
    case!(
        visit,
        format!("{name} backward"),
        swiglu,
        [dy = numbers(3, n), gate = gate, up = up],
        [dgate = nans(n), dup = nans(n)],
        { kernel::backward(gating, dy, gate, up, dgate, dup) },
        loss { (0..n).map(|i| dy[i] * formula(gate[i], up[i])).sum::<f64>() },
        [(1, 0), (2, 1)]
    );
}

fn ropes(size: Size, visit: Visit) {
    // (tokens, heads, dimension, head stride, offset, row stride)
    let shapes = match size {
        Size::Small => vec![(1, 1, 2, 2, 0, 2), (5, 3, 10, 12, 4, 50), (70, 4, 64, 192, 128, 768)],
        Size::Large => vec![(2048, 8, 64, 96, 32, 768)],
    };
    for (t, heads, dim, head_stride, offset, row_stride) in shapes {
        let positions: Vec<u32> = (0..t as u32).map(|t| t * 7 % 100).collect();
        let table = &Table::new(dim, 10000.0, &Scaling::None, 100);
        for layout in [Layout::Interleaved, Layout::HalfSplit] {
            for direction in [Direction::Forward, Direction::Backward] {
                let x = numbers(1, t * row_stride);
                case!(visit, format!("rope {layout:?} {direction:?} {t}×{heads}×{dim}"), rope, [], [x = x], {
                    kernel::apply(x, &positions, table, layout, row_stride, offset, head_stride, heads, direction);
                });
            }
        }
    }
}

fn router(scoring: Scoring, experts: usize, top_k: usize, groups: (usize, usize), normalize: bool) -> Router {
    Router { scoring, experts, top_k, groups: groups.0, top_groups: groups.1, normalize, scale: 2.5 }
}

/// Routers with a number of tokens.
fn router_shapes(size: Size) -> Vec<(usize, Router)> {
    use Scoring::{Sigmoid, Softmax, SqrtSoftplus};
    match size {
        Size::Small => vec![
            (3, router(Sigmoid, 4, 4, (1, 1), true)),
            (40, router(Sigmoid, 64, 6, (8, 3), true)),
            (5, router(Sigmoid, 20, 3, (5, 2), false)),
            (9, router(Sigmoid, 7, 2, (7, 3), true)),
            (40, router(Softmax, 64, 6, (1, 1), false)),
            (33, router(Softmax, 40, 5, (8, 3), false)),
            (4, router(Softmax, 18, 2, (1, 1), true)),
            (21, router(SqrtSoftplus, 18, 4, (1, 1), true)),
        ],
        Size::Large => {
            vec![(2048, router(Sigmoid, 64, 6, (8, 4), true)), (2048, router(Softmax, 64, 6, (1, 1), false))]
        }
    }
}

/// What the router gives for some logits: scores and choices.
fn routed(router: &Router, logits: &[f32]) -> (Vec<f32>, Vec<u32>) {
    let tokens = logits.len() / router.experts;
    let (mut scores, mut chosen) = (nans(logits.len()), vec![0; tokens * router.top_k]);
    router::forward(router, logits, None, &mut scores, &mut chosen, &mut nans(tokens * router.top_k));
    (scores, chosen)
}

fn scores_f64(router: &Router, logits: &[f64]) -> Vec<f64> {
    match router.scoring {
        Scoring::Sigmoid => logits.iter().map(|l| 1.0 / (1.0 + (-l).exp())).collect(),
        Scoring::SqrtSoftplus => logits.iter().map(|l| l.exp().ln_1p().sqrt()).collect(),
        Scoring::Softmax => {
            let row = |logits: &[f64]| {
                let sum: f64 = logits.iter().map(|l| l.exp()).sum();
                logits.iter().map(|l| l.exp() / sum).collect::<Vec<_>>()
            };
            logits.chunks(router.experts).flat_map(row).collect()
        }
    }
}

fn routers(size: Size, visit: Visit) {
    for (t, r) in router_shapes(size) {
        let (e, k) = (r.experts, r.top_k);
        let what = format!("{:?} {t}×{e}, {k} of {}/{} groups", r.scoring, r.top_groups, r.groups);
        let logits = times(numbers(1, t * e), 4.0);
        for biased in [false, true] {
            let name = format!("router {what}, {}", if biased { "bias" } else { "no bias" });
            let bias = times(numbers(2, e), 0.1);
            let outputs = (nans(t * e), nans(t * k), nans(t * k));
            case!(
                visit,
                name,
                router,
                [logits = logits.clone(), bias = bias],
                [scores = outputs.0, experts = outputs.1, weights = outputs.2],
                {
                    let mut chosen = vec![u32::MAX; t * k];
                    let bias = biased.then_some(&bias[..]);
                    kernel::forward(&r, logits, bias, scores, &mut chosen, weights);
                    experts.iter_mut().zip(chosen).for_each(|(to, from)| *to = from as f32);
                }
            );
        }
        let (scores, chosen) = routed(&r, &logits);
        case!(
            visit,
            format!("router backward {what}"),
            router,
            [logits = logits, scores = scores, dweights = numbers(3, t * k), dscores = numbers(4, t * e)],
            [dlogits = nans(t * e)],
            { kernel::backward(&r, scores, &chosen, dweights, Some(dscores), dlogits) },
            loss {
                let s = scores_f64(&r, logits);
                let weights = (0..t * k).map(|choice| {
                    let row = choice / k * e;
                    let of = |choice: usize| s[row + chosen[choice] as usize];
                    let sum: f64 = (choice / k * k..choice / k * k + k).map(of).sum();
                    f64::from(r.scale) * of(choice) / if r.normalize { sum } else { 1.0 }
                });
                dot(&weights.collect::<Vec<_>>(), dweights) + dot(&s, dscores)
            },
            [(0, 0)]
        );
    }
}

fn balances(size: Size, visit: Visit) {
    for (t, r) in router_shapes(size) {
        let (e, middle) = (r.experts, t as u32 / 3);
        let what = format!("{:?} {t}×{e}", r.scoring);
        let starts = [0, middle, middle, t as u32];
        let (scores, chosen) = routed(&r, &times(numbers(1, t * e), 4.0));
        case!(
            visit,
            format!("balance {what}"),
            router,
            [scores = scores.clone()],
            [losses = nans(3), shares = nans(3 * e)],
            {
                let balance = kernel::balance(&r, scores, &chosen, &starts);
                losses.copy_from_slice(&balance.losses);
                shares.copy_from_slice(&balance.shares);
            }
        );
        let balance = router::balance(&r, &scores, &chosen, &starts);
        case!(
            visit,
            format!("balance backward {what}"),
            router,
            [scores = scores, shares = balance.shares, coefficients = numbers(3, 3)],
            [dscores = nans(t * e)],
            {
                let balance = Balance { losses: vec![], shares: shares.clone() };
                kernel::balance_backward(&r, scores, &starts, &balance, coefficients, dscores);
            },
            loss {
                let sequence = |s: usize| {
                    let span = starts[s] as usize..starts[s + 1] as usize;
                    let token = |t: usize| {
                        let row = &scores[t * e..(t + 1) * e];
                        let sum = if r.scoring != Scoring::Softmax { row.iter().sum() } else { 1.0 };
                        dot(row, &shares[s * e..(s + 1) * e]) / sum
                    };
                    coefficients[s] * span.clone().map(token).sum::<f64>() / span.len().max(1) as f64
                };
                (0..3).map(sequence).sum::<f64>()
            },
            [(0, 0)]
        );
    }
}

fn experts(size: Size, visit: Visit) {
    // (tokens, top_k, experts, width)
    let shapes = match size {
        Size::Small => vec![(1, 1, 1, 1), (7, 2, 5, 19), (50, 6, 9, 64), (90, 3, 40, 1000)],
        Size::Large => vec![(2048, 6, 64, 768)],
    };
    for (t, k, e, d) in shapes {
        // Leaves the last expert without tokens where there are more experts than a token uses.
        let used = (e - 1).max(k);
        let chosen: Vec<u32> = (0..t * k).map(|i| ((i / k * 5 + i % k) % used) as u32).collect();
        let dispatch = &Dispatch::new(&chosen, t, k, e);
        let slots: Vec<usize> = dispatch.slots().iter().map(|&s| s as usize).collect();
        let what = format!("{t}×{d}, {k} of {e}");
        let (h, weights) = (numbers(1, t * k * d), numbers(2, t * k));
        for based in [false, true] {
            let name = format!("combine {what}, {}", if based { "base" } else { "no base" });
            let base = numbers(3, t * d);
            case!(visit, name, experts, [h = h.clone(), weights = weights.clone(), base = base], [y = nans(t * d)], {
                kernel::combine(h, weights, dispatch, based.then_some(&base[..]), y, d)
            });
        }
        case!(
            visit,
            format!("combine_backward {what}"),
            experts,
            [dy = numbers(4, t * d), h = h.clone(), weights = weights],
            [dh = nans(t * k * d), dweights = nans(t * k)],
            { kernel::combine_backward(dy, h, weights, dispatch, dh, dweights, d) },
            loss {
                let choice = |c: usize| weights[c] * dot(&h[slots[c] * d..][..d], &dy[c / k * d..][..d]);
                (0..t * k).map(choice).sum::<f64>()
            },
            [(1, 0), (2, 1)]
        );
        case!(visit, format!("add_bias {what}"), experts, [bias = numbers(6, e * d)], [y = h.clone()], {
            kernel::add_bias(bias, dispatch, y);
        });
        for start in [Start::Zero, Start::Continue] {
            let name = format!("bias_grad {start:?} {what}");
            case!(visit, name, experts, [dy = h.clone()], [dbias = numbers(7, e * d)], {
                kernel::bias_grad(dy, dispatch, dbias, start);
            });
            let name = format!("scatter_dx {start:?} {what}");
            case!(visit, name, experts, [dslots = h.clone()], [dx = numbers(5, t * d)], {
                kernel::scatter_dx(dslots, dispatch, dx, start, d);
            });
        }
    }
}

fn embeddings(size: Size, visit: Visit) {
    let vocabulary = if size == Size::Small { 11 } else { 8192 };
    for (t, d) in rows(size) {
        // Squares repeat some rows often and leave others out.
        let ids: Vec<u32> = (0..t as u32).map(|t| t * t % vocabulary).collect();
        let v = vocabulary as usize;
        case!(visit, format!("gather {t}×{d}"), embedding, [table = numbers(1, v * d)], [y = nans(t * d)], {
            kernel::gather(table, &ids, y, d);
        });
        for start in [Start::Zero, Start::Continue] {
            let name = format!("gather_backward {start:?} {t}×{d}");
            case!(visit, name, embedding, [dy = numbers(2, t * d)], [dtable = numbers(3, v * d)], {
                kernel::gather_backward(dy, &ids, dtable, start, d);
            });
        }
    }
}

fn optimizer(size: Size, visit: Visit) {
    for n in lengths(size) {
        for step in [1, 1000] {
            let adamw = AdamW { lr: 3e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step };
            let v = numbers(4, n).iter().map(|v| v * v).collect();
            case!(
                visit,
                format!("adamw step {step} {n}"),
                optim,
                [g = numbers(2, n)],
                [p = numbers(1, n), m = numbers(3, n), v = v],
                { kernel::adamw(p, g, m, v, &adamw, 0.7) }
            );
        }
        case!(visit, format!("blend {n}"), optim, [x = numbers(1, n)], [y = numbers(2, n)], {
            kernel::blend(0.3, x, -1.7, y);
        });
        case!(visit, format!("sum_of_squares {n}"), optim, [x = numbers(1, n)], [high = nans(1), low = nans(1)], {
            let sum = kernel::sum_of_squares(x);
            (high[0], low[0]) = (sum as f32, (sum - f64::from(sum as f32)) as f32);
        });
        case!(visit, format!("first_non_finite {n}"), optim, [x = numbers(1, n)], [none = nans(1)], {
            none[0] = kernel::first_non_finite(x).is_none().into();
        });
    }
}

fn additions(size: Size, visit: Visit) {
    for (t, d) in rows(size) {
        let n = t * d;
        let (a, b) = (numbers(1, n), numbers(2, n));
        case!(visit, format!("add {n}"), elementwise, [x = a.clone()], [y = b.clone()], { kernel::add(x, y) });
        case!(visit, format!("sum {n}"), elementwise, [a = a.clone(), b = b.clone()], [y = nans(n)], {
            kernel::sum(a, b, y);
        });
        case!(visit, format!("scale {n}"), elementwise, [], [y = b.clone()], { kernel::scale(y, 0.3) });
        case!(visit, format!("cap {n}"), softcap, [], [y = b.clone()], { kernel::forward(0.4, y) });
        case!(visit, format!("cap with slopes {n}"), softcap, [], [y = b.clone(), slopes = b.clone()], {
            kernel::forward_with_slopes(0.4, y, slopes)
        });
        case!(visit, format!("cap backward {n}"), softcap, [a = a.clone()], [d = b.clone()], {
            kernel::backward(a, d)
        });
        case!(visit, format!("add_bias {t}×{d}"), elementwise, [bias = numbers(3, d)], [y = a.clone()], {
            kernel::add_bias(bias, y);
        });
        for start in [Start::Zero, Start::Continue] {
            let name = format!("bias_grad {start:?} {t}×{d}");
            case!(visit, name, elementwise, [dy = a.clone()], [dbias = numbers(3, d)], {
                kernel::bias_grad(dy, dbias, start);
            });
        }
        let (from, to) = (Columns { stride: d + 3, offset: 2 }, Columns { stride: d + 5, offset: 4 });
        let (source, target) = (numbers(1, t * (d + 3)), numbers(2, t * (d + 5)));
        case!(visit, format!("copy_columns {t}×{d}"), elementwise, [x = source.clone()], [y = target.clone()], {
            kernel::copy_columns(x, from, y, to, d, t);
        });
        case!(visit, format!("add_columns {t}×{d}"), elementwise, [x = source], [y = target], {
            kernel::add_columns(x, from, y, to, d, t);
        });
    }
}

fn conversions(size: Size, visit: Visit) {
    use wels_kernels::reference::convert as reference;
    for n in lengths(size) {
        let x = times(numbers(1, n), 3.0);
        let kernel = |i: &[Vec<f32>], o: &mut [Vec<f32>]| {
            let mut bits = vec![0; i[0].len()];
            convert::to_bf16s(&i[0], &mut bits);
            convert::from_bf16s(&bits, &mut o[0]);
        };
        let plain = |i: &[Vec<f32>], o: &mut [Vec<f32>]| {
            o[0].iter_mut().zip(&i[0]).for_each(|(y, &x)| *y = reference::from_bf16(reference::to_bf16(x)));
        };
        let (inputs, outputs) = (vec![x], vec![nans(n)]);
        visit(Case {
            name: format!("to bf16 and back {n}"),
            inputs,
            outputs,
            kernel: &kernel,
            reference: &plain,
            loss: None,
        });
    }
}
