//! What DeepSeek-V4 has besides: hyper-connections, compression of keys, attention to entries, rows in pages.

use crate::{assert_same, everywhere, numbers};
use wels_kernels::attention::compressed::{self, Compressed, Given, Gradients, Operands, Span};
use wels_kernels::attention::index::{self, Indexer};
use wels_kernels::attention::index_loss;
use wels_kernels::attention::paged::{CacheDtype, PAGE, Pages, RowLayout, SequenceRows};
use wels_kernels::compress::{self, Compression, Stretch};
use wels_kernels::gemm::Start;
use wels_kernels::reference;
use wels_kernels::router::{self, Router, Scoring};
use wels_kernels::streams::{self, Mixing};

const NAN: f32 = f32::NAN;

fn mixings() -> Vec<Mixing> {
    let of = |streams, iterations, whole| Mixing { streams, iterations, eps: 1e-6, whole };
    vec![of(4, 20, true), of(1, 1, true), of(3, 2, true), of(8, 5, true), of(4, 20, false)]
}

#[test]
fn streams_have_the_bits_of_the_reference() {
    for of in mixings() {
        for (tokens, d) in [(1, 5), (7, 33), (40, 64)] {
            let (n, m) = (of.streams, of.width());
            let [x, y, dy, d_out] =
                [(1, n * d), (2, d), (3, d), (4, n * d)].map(|(stream, len)| numbers(stream, tokens * len));
            let [raw, d_weights] = [5, 6].map(|stream| numbers(stream, tokens * m));
            let (base, scale) = (numbers(7, m), numbers(8, of.scales()));
            let run = |reference: bool| {
                let mut weights = vec![NAN; tokens * m];
                let mut of_raw = [vec![NAN; tokens * m], vec![NAN; tokens * m], vec![NAN; tokens * of.scales()]];
                let mut sums = vec![NAN; tokens * d];
                let mut dx = vec![0.25; tokens * n * d];
                let (mut out, mut d_layer) = (vec![0.0; tokens * n * d], vec![0.0; tokens * d]);
                let mut d_mixed = [vec![NAN; tokens * m], vec![0.0; tokens * m]];
                let operands = [&raw[..], &base, &scale];
                let [first, second] = &mut d_mixed;
                if reference {
                    reference::streams::weigh(of, &raw, &base, &scale, &mut weights);
                    let into = of_raw.each_mut().map(|x| &mut x[..]);
                    reference::streams::weigh_backward(of, operands, &d_weights, into);
                    reference::streams::collapse(of, &x, &weights, &mut sums, d);
                    let into = (&mut dx[..], Start::Continue);
                    reference::streams::collapse_backward(of, &dy, [&x, &weights], into, first, d);
                    if of.whole {
                        reference::streams::expand(of, &x, &y, &weights, &mut out, d);
                        let (into, operands) = ((&mut dx[..], Start::Continue), [&x[..], &y, &weights]);
                        reference::streams::expand_backward(of, &d_out, operands, into, &mut d_layer, second);
                    }
                } else {
                    streams::weigh(of, &raw, &base, &scale, &mut weights);
                    let into = of_raw.each_mut().map(|x| &mut x[..]);
                    streams::weigh_backward(of, operands, &d_weights, into);
                    streams::collapse(of, &x, &weights, &mut sums, d);
                    let into = (&mut dx[..], Start::Continue);
                    streams::collapse_backward(of, &dy, [&x, &weights], into, first, d);
                    if of.whole {
                        streams::expand(of, &x, &y, &weights, &mut out, d);
                        let (into, operands) = ((&mut dx[..], Start::Continue), [&x[..], &y, &weights]);
                        streams::expand_backward(of, &d_out, operands, into, &mut d_layer, second);
                    }
                }
                let [d_first, d_second] = d_mixed;
                [&of_raw[..], &[weights, sums, dx, out, d_layer, d_first, d_second]].concat()
            };
            let expected = run(true);
            assert!(expected.iter().flatten().all(|x| x.is_finite()), "{of:?}");
            everywhere(|isa| {
                for (i, (got, expected)) in run(false).iter().zip(&expected).enumerate() {
                    assert_same(&format!("{of:?}, result {i}, {tokens}×{d}, {isa}"), got, expected);
                }
            });
        }
    }
}

#[test]
fn mixed_streams_keep_their_sum() {
    for of in mixings().into_iter().filter(|of| of.whole && of.iterations > 4) {
        let (n, m) = (of.streams, of.width());
        let mut weights = vec![NAN; m];
        let raw: Vec<f32> = numbers(3, m).iter().map(|x| 3.0 * x).collect();
        streams::weigh(of, &raw, &vec![0.0; m], &[1.0; 3], &mut weights);
        let square = &weights[2 * n..];
        for i in 0..n {
            let (row, column): (f32, f32) =
                (square[i * n..(i + 1) * n].iter().sum(), (0..n).map(|j| square[j * n + i]).sum());
            assert!((row - 1.0).abs() < 2e-2 && (column - 1.0).abs() < 1e-5, "{of:?}: row {row}, column {column}");
        }
    }
}

/// Slope of Σ coefficients·weights along each operand, by differences in f32 around well conditioned numbers.
#[test]
fn gradients_of_mixing_are_slopes() {
    let of = Mixing { streams: 3, iterations: 3, eps: 1e-6, whole: true };
    let m = of.width();
    let (raw, base, scale, coefficients) = (numbers(1, m), numbers(2, m), numbers(3, 3), numbers(4, m));
    let value = |raw: &[f32], base: &[f32], scale: &[f32]| {
        let mut weights = vec![NAN; m];
        streams::weigh(of, raw, base, scale, &mut weights);
        weights.iter().zip(&coefficients).map(|(w, c)| f64::from(*w) * f64::from(*c)).sum::<f64>()
    };
    let (mut d_raw, mut d_z, mut terms) = (vec![NAN; m], vec![NAN; m], vec![NAN; 3]);
    streams::weigh_backward(of, [&raw, &base, &scale], &coefficients, [&mut d_raw, &mut d_z, &mut terms]);
    let slope = |x: &[f32], i: usize, value: &dyn Fn(&[f32]) -> f64| {
        let at = |by: f32| {
            let mut x = x.to_vec();
            x[i] += by;
            value(&x)
        };
        ((at(0.01) - at(-0.01)) / 0.02) as f32
    };
    for i in 0..m {
        let slopes = [slope(&raw, i, &|x| value(x, &base, &scale)), slope(&base, i, &|x| value(&raw, x, &scale))];
        assert!((slopes[0] - d_raw[i]).abs() < 2e-3 && (slopes[1] - d_z[i]).abs() < 2e-3, "{i}: {slopes:?}");
    }
    for (i, term) in terms.iter().enumerate() {
        let slope = slope(&scale, i, &|x| value(&raw, &base, x));
        assert!((slope - term).abs() < 3e-3, "scale {i}: {slope} and {term}");
    }
}

fn stretches() -> Vec<Stretch> {
    let of = |rows, behind| Stretch { rows, behind };
    vec![of(0..9, false), of(9..9, false), of(9..11, false), of(11..24, false), of(24..30, true), of(30..31, true)]
}

#[test]
fn compression_has_the_bits_of_the_reference() {
    for (rate, dim, overlap) in [(4, 5, true), (4, 33, false), (1, 16, true), (2, 7, true), (9, 40, false)] {
        let (of, stretches) = (Compression { rate, dim, overlap }, stretches());
        let (rows, cols, count) = (31, of.cols(), of.entries(&stretches));
        let [kv, gate] = [1, 2].map(|stream| numbers(stream, rows * cols));
        let (bias, d_entries) = (numbers(3, rate * cols), numbers(4, count * dim));
        let run = |reference: bool| {
            let (mut entries, mut d_bias) = (vec![NAN; count * dim], vec![0.5; rate * cols]);
            let [mut d_kv, mut d_gate] = [(); 2].map(|()| vec![NAN; rows * cols]);
            let operands = [&kv[..], &gate, &bias];
            if reference {
                reference::compress::compress(of, &stretches, &kv, &gate, &bias, &mut entries);
                let (given, into) = ([&entries[..], &d_entries], [&mut d_kv[..], &mut d_gate]);
                reference::compress::compress_backward(of, &stretches, operands, given, into);
                reference::compress::bias_backward(of, &stretches, &d_gate, &mut d_bias);
            } else {
                compress::compress(of, &stretches, &kv, &gate, &bias, &mut entries);
                let (given, into) = ([&entries[..], &d_entries], [&mut d_kv[..], &mut d_gate]);
                compress::compress_backward(of, &stretches, operands, given, into);
                compress::bias_backward(of, &stretches, &d_gate, &mut d_bias);
            }
            [entries, d_kv, d_gate, d_bias]
        };
        let expected = run(true);
        assert!(expected.iter().flatten().all(|x| x.is_finite()), "{of:?}");
        everywhere(|isa| {
            for (i, (got, expected)) in run(false).iter().zip(&expected).enumerate() {
                assert_same(&format!("{of:?}, result {i}, {isa}"), got, expected);
            }
        });
    }
}

#[test]
fn a_stretch_goes_on_where_another_ended() {
    let of = Compression { rate: 2, dim: 3, overlap: true };
    let (kv, gate, bias) = (numbers(1, 10 * 6), numbers(2, 10 * 6), numbers(3, 2 * 6));
    let entries = |stretch: Stretch| {
        let mut entries = vec![NAN; of.entries(std::slice::from_ref(&stretch)) * 3];
        compress::compress(of, &[stretch], &kv, &gate, &bias, &mut entries);
        entries
    };
    let whole = entries(Stretch { rows: 0..10, behind: false });
    let parts =
        [entries(Stretch { rows: 0..5, behind: false }), entries(Stretch { rows: 2..10, behind: true })].concat();
    assert_same("parts", &parts, &whole);
}

fn shapes() -> Vec<Compressed> {
    let of = |heads, dim, window, rate| Compressed { heads, dim, scale: 0.4, window, rate };
    vec![of(3, 18, 5, 2), of(1, 16, 100, 4), of(4, 7, 1, 3), of(2, 33, 6, 0)]
}

#[test]
fn attention_to_entries_has_the_bits_of_the_reference() {
    for of in shapes() {
        for few in [false, true] {
            let spans = Span::packed(&[0, 9, 9, 80, 81], of.rate);
            let (tokens, entries) = (81, spans.last().expect("spans").entries.end);
            let width = of.heads * of.dim;
            let [q, d_out] = [1, 2].map(|stream| numbers(stream, tokens * width));
            let (rows, keys) = (numbers(3, tokens * of.dim), numbers(4, entries * of.dim));
            let sinks = numbers(5, of.heads);
            let indexer = Indexer { heads: 9, dim: 6, top_k: 3 };
            let [iq, iw] = [(6, 54), (7, 9)].map(|(stream, width)| numbers(stream, tokens * width));
            let ik = numbers(8, entries * 6);
            let chosen = (few && of.rate > 0).then(|| {
                let expected = reference::index::choose_entries(indexer, of.rate, &spans, &iq, &iw, &ik);
                everywhere(|isa| {
                    let got = index::choose_entries(indexer, of.rate, &spans, &iq, &iw, &ik);
                    assert_eq!(got, expected, "{of:?}, {isa}");
                });
                expected
            });
            let operands = Operands { q: &q, rows: &rows, entries: &keys, chosen: chosen.as_ref(), sinks: &sinks };
            let run = |reference: bool| {
                let (mut out, mut stats) = (vec![NAN; tokens * width], vec![NAN; tokens * of.heads * 2]);
                let [mut dq, mut d_rows, mut d_entries] = [&q, &rows, &keys].map(|x| vec![NAN; x.len()]);
                match reference {
                    true => reference::compressed::forward(of, &spans, operands, &mut out, &mut stats),
                    false => compressed::forward(of, &spans, operands, &mut out, &mut stats),
                }
                let given = Given { out: &out, stats: &stats, d_out: &d_out };
                let into = Gradients { q: &mut dq, rows: &mut d_rows, entries: &mut d_entries };
                match reference {
                    true => reference::compressed::backward(of, &spans, operands, given, into),
                    false => compressed::backward(of, &spans, operands, given, into),
                }
                let mut all = vec![out, stats, dq, d_rows, d_entries];
                if let Some(chosen) = operands.chosen {
                    let mut losses = vec![NAN; tokens];
                    let scores = match reference {
                        true => reference::index::entry_losses(of, &spans, operands, &all[1], &mut losses),
                        false => index_loss::entry_losses(of, &spans, operands, &all[1], &mut losses),
                    };
                    let [mut diq, mut diw, mut dik] = [&iq, &iw, &ik].map(|x| vec![NAN; x.len()]);
                    let by = index_loss::IndexOperands { q: &iq, w: &iw, k: &ik };
                    let (of_scores, into) = ((&scores[..], 0.3), [&mut diq[..], &mut diw, &mut dik]);
                    match reference {
                        true => reference::index::entry_backward(indexer, chosen, &spans, of_scores, by, into),
                        false => index_loss::entry_backward(indexer, chosen, &spans, of_scores, by, into),
                    }
                    assert!(losses.iter().any(|loss| *loss > 0.0), "{of:?}");
                    all.extend([losses, scores, diq, diw, dik]);
                }
                all
            };
            let expected = run(true);
            assert!(expected.iter().flatten().all(|x| x.is_finite()), "{of:?}");
            everywhere(|isa| {
                for (i, (got, expected)) in run(false).iter().zip(&expected).enumerate() {
                    assert_same(&format!("{of:?}, result {i}, chosen {few}, {isa}"), got, expected);
                }
            });
        }
    }
}

#[test]
fn a_token_alone_has_the_bits_of_its_sequence() {
    for of in shapes() {
        let (tokens, width) = (40, of.heads * of.dim);
        let whole = Span::packed(&[0, tokens as u32], of.rate);
        let entries = whole[0].entries.end;
        let (q, rows, keys, sinks) = (
            numbers(1, tokens * width),
            numbers(2, tokens * of.dim),
            numbers(3, entries * of.dim),
            numbers(4, of.heads),
        );
        let run = |spans: &[Span], q: &[f32], rows: &[f32], keys: &[f32]| {
            let operands = Operands { q, rows, entries: keys, chosen: None, sinks: &sinks };
            let (mut out, mut stats) = (vec![NAN; q.len()], vec![NAN; q.len() / of.dim * 2]);
            compressed::forward(of, spans, operands, &mut out, &mut stats);
            out
        };
        let all = run(&whole, &q, &rows, &keys);
        for place in 0..tokens {
            let first = (place + 1).saturating_sub(of.window);
            let count = of.complete(place);
            let span = Span { queries: 0..1, past: place, rows: 0..place + 1 - first, entries: 0..count };
            let own = |x: &'_ [f32], range: std::ops::Range<usize>, width: usize| {
                x[range.start * width..range.end * width].to_vec()
            };
            let (q, rows) = (own(&q, place..place + 1, width), own(&rows, first..place + 1, of.dim));
            let out = run(&[span], &q, &rows, &own(&keys, 0..count, of.dim));
            assert_same(&format!("{of:?} at {place}"), &out, &own(&all, place..place + 1, width));
        }
    }
}

#[test]
fn rows_lie_in_the_pages_of_their_tokens() {
    for dtype in [CacheDtype::F32, CacheDtype::F16, CacheDtype::Bf16] {
        for every in [1, 4, PAGE, 2 * PAGE] {
            let at = RowLayout { offset: 3, width: 21, every };
            let (first, second) = ([4, 0, 2, 5], [1, 3, 6]);
            let rows = |pages: &'static [u32; 4], rows| SequenceRows { pages, rows };
            static FIRST: [u32; 4] = [4, 0, 2, 5];
            static SECOND: [u32; 4] = [1, 3, 6, 7];
            assert_eq!((first, second), (FIRST, [SECOND[0], SECOND[1], SECOND[2]]));
            let all = [rows(&FIRST, 0..4 * PAGE / every), rows(&SECOND, 1..3 * PAGE / every)];
            let count: usize = all.iter().map(|it| it.rows.len()).sum();
            let x = numbers(9, count * at.width);
            everywhere(|isa| {
                let mut pages = Pages::new(dtype, 8, 3 + at.page_len());
                pages.put_rows(at, &all, &x);
                let mut y = vec![NAN; x.len()];
                pages.take_rows(at, &all, &mut y);
                let near = |(x, y): (&f32, &f32)| (x - y).abs() <= if dtype == CacheDtype::F32 { 0.0 } else { 4e-3 };
                assert!(x.iter().zip(&y).all(near), "{dtype:?}, every {every}, {isa}");
                let own = at.width * all[0].rows.len();
                let mut last = vec![NAN; at.width];
                pages.take_rows(at, &[rows(&FIRST, all[0].rows.len() - 1..all[0].rows.len())], &mut last);
                assert_same("the last row of the first", &last, &y[own - at.width..own]);
            });
        }
    }
}

#[test]
fn a_table_says_where_tokens_go() {
    let router = Router {
        scoring: Scoring::SqrtSoftplus,
        experts: 6,
        top_k: 2,
        groups: 1,
        top_groups: 1,
        normalize: true,
        scale: 1.5,
    };
    let (table, ids, logits) = ([5.0, 1.0, 0.0, 2.0, 3.0, 4.0], [2, 0, 0, 1], numbers(1, 24));
    let run = |reference: bool| {
        let (mut scores, mut experts, mut weights) = (vec![NAN; 24], vec![9; 8], vec![NAN; 8]);
        let table = (&table[..], &ids[..]);
        match reference {
            true => {
                let into = (&mut scores[..], &mut experts[..], &mut weights[..]);
                reference::router::forward_by_table(&router, &logits, table, into.0, into.1, into.2);
            }
            false => router::forward_by_table(&router, &logits, table, &mut scores, &mut experts, &mut weights),
        }
        (scores, experts, weights)
    };
    let expected = run(true);
    assert_eq!(expected.1, [3, 4, 1, 5, 1, 5, 0, 2]);
    assert!(expected.2.chunks(2).all(|pair| (pair[0] + pair[1] - 1.5).abs() < 1e-6));
    everywhere(|isa| {
        let got = run(false);
        assert_eq!(got.1, expected.1, "{isa}");
        assert_same(isa, &got.0, &expected.0);
        assert_same(isa, &got.2, &expected.2);
    });
}

#[test]
#[should_panic(expected = "token 1 goes to the experts [2.0, 2.0]")]
fn no_expert_is_listed_twice() {
    let scoring = Scoring::SqrtSoftplus;
    let router = Router { scoring, experts: 3, top_k: 2, groups: 1, top_groups: 1, normalize: true, scale: 1.0 };
    let table = (&[0.0, 1.0, 2.0, 2.0][..], &[1][..]);
    router::forward_by_table(&router, &[0.0; 3], table, &mut [0.0; 3], &mut [0; 2], &mut [0.0; 2]);
}
