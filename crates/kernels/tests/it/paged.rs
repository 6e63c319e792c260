//! Attention over pages against plain loops over whole sequences: every bit, however the sequences came to be cached.

use crate::{assert_same, everywhere, numbers};
use wels_kernels::attention::latent::LatentLayout;
use wels_kernels::attention::paged::{CacheDtype, Layout, PAGE, Pages, Sequence};
use wels_kernels::attention::{Heads, HeadsMut, Keys, Shape};
use wels_kernels::reference;

struct Case {
    name: &'static str,
    heads: usize,
    layout: Layout,
}

const fn layout(kv_heads: usize, own: usize, shared: usize, v: usize) -> Layout {
    Layout { kv_heads, own, shared, v }
}

const CASES: [Case; 6] = [
    Case { name: "one head", heads: 1, layout: layout(1, 4, 0, 4) },
    Case { name: "groups of three", heads: 9, layout: layout(3, 64, 0, 64) },
    Case { name: "groups of seven", heads: 14, layout: layout(2, 16, 0, 128) },
    Case { name: "a group of thirteen", heads: 13, layout: layout(1, 8, 0, 24) },
    Case { name: "MLA", heads: 3, layout: layout(3, 32, 16, 32) },
    Case { name: "odd widths", heads: 4, layout: layout(2, 5, 2, 19) },
];

/// Lengths after each call, one list a sequence: whole prompts, chunks, single tokens, a few drafted tokens; a call
/// that adds nothing to a sequence; one that goes back to a shorter past, as after a refused draft; sequences alone.
const CALLS: [[(usize, usize); 3]; 10] = [
    [(0, 1), (0, 40), (0, 0)],
    [(1, 2), (40, 41), (0, 17)],
    [(2, 3), (41, 46), (17, 17)],
    [(3, 19), (42, 43), (17, 33)],
    [(19, 100), (43, 44), (33, 48)],
    [(90, 91), (30, 47), (48, 49)],
    [(91, 92), (47, 48), (49, 64)],
    [(92, 93), (48, 48), (64, 64)],
    [(93, 97), (48, 48), (64, 64)],
    [(97, 97), (48, 49), (64, 64)],
];
const LEN: usize = 100;

/// What f16 keeps of a number.
fn rounded(dtype: CacheDtype, data: &[f32]) -> Vec<f32> {
    let round = |x: &f32| match dtype {
        CacheDtype::F32 => *x,
        CacheDtype::F16 => reference::convert::from_f16(reference::convert::to_f16(*x)),
        CacheDtype::Bf16 => reference::convert::from_bf16(reference::convert::to_bf16(*x)),
    };
    data.iter().map(round).collect()
}

/// Pages in no particular order, another layer's part before and behind, and memory that was used before.
fn pages(dtype: CacheDtype, part: usize) -> (Pages, Vec<Vec<u32>>) {
    let pages = Pages::new(dtype, 30, part + 64);
    let owned = (0..3).map(|s| (0..LEN.div_ceil(PAGE) as u32).map(|i| (11 * (7 * s + i) + 5) % 23).collect()).collect();
    (pages, owned)
}

#[test]
fn any_cut_into_calls_gives_the_bits_of_the_whole() {
    for case in &CASES {
        for kept in [CacheDtype::F32, CacheDtype::F16, CacheDtype::Bf16] {
            for window in [None, Some(1), Some(7), Some(40)] {
                everywhere(|isa| {
                    check_expanded(&format!("{} {kept:?} {window:?} {isa}", case.name), case, kept, window);
                });
            }
        }
    }
}

fn check_expanded(name: &str, case: &Case, kept: CacheDtype, window: Option<usize>) {
    let Layout { kv_heads, own, shared, v } = case.layout;
    let cap = (window == Some(40)).then_some(0.9);
    let shape = Shape { heads: case.heads, kv_heads, scale: 0.7, window, cap };
    // Where there is a window of seven, as a model with both has them.
    let sinks = (window == Some(7)).then(|| numbers(7, case.heads));
    let (mut pages, owned) = pages(kept, case.layout.page_len());
    let width = case.heads * v;
    let data: Vec<_> = (0..3)
        .map(|s| {
            let stream = 10 * s as u64;
            let q = numbers(stream, LEN * case.heads * (own + shared));
            let kv = numbers(stream + 1, LEN * kv_heads * (own + v));
            (q, kv, numbers(stream + 2, LEN * shared))
        })
        .collect();
    let heads = |kv: &'_ [f32]| -> (usize, usize) { (kv.len(), kv_heads * (own + v)) };
    for call in CALLS {
        let (mut q, mut kv, mut k_shared) = (vec![], vec![], vec![]);
        let mut sequences = vec![];
        for (s, (from, to)) in call.into_iter().enumerate() {
            let rows = |data: &[f32], width: usize| data[from * width..to * width].to_vec();
            q.extend(rows(&data[s].0, case.heads * (own + shared)));
            kv.extend(rows(&data[s].1, heads(&data[s].1).1));
            k_shared.extend(rows(&data[s].2, shared));
            sequences.push(Sequence { pages: &owned[s], past: from, new: to - from });
        }
        let (k, values) = operands(case, &kv, &k_shared);
        let queries = Heads::contiguous(&q, case.heads, own + shared);
        let mut out = vec![f32::NAN; q.len() / (case.heads * (own + shared)) * width];
        pages.append(32, case.layout, &sequences, k, values);
        pages.attend(32, case.layout, shape, sinks.as_deref(), None, &sequences, queries, &mut out);

        let mut first = 0;
        for (s, (from, to)) in call.into_iter().enumerate() {
            let (kv, k_shared) = (rounded(kept, &data[s].1), rounded(kept, &data[s].2));
            let (k, values) = operands(case, &kv, &k_shared);
            let queries = Heads::contiguous(&data[s].0[from * case.heads * (own + shared)..], case.heads, own + shared);
            let mut expected = vec![f32::NAN; (to - from) * width];
            reference::attention::cached(
                shape,
                sinks.as_deref(),
                None,
                queries,
                to - from,
                k,
                values,
                to,
                &mut expected,
            );
            let got = &out[first * width..(first + to - from) * width];
            assert_same(&format!("{name}: sequence {s}, tokens {from}..{to}"), got, &expected);
            first += to - from;
        }
    }
}

fn operands<'a>(case: &Case, kv: &'a [f32], shared: &'a [f32]) -> (Keys<'a>, Heads<'a>) {
    let Layout { kv_heads, own, shared: width, v } = case.layout;
    let pair = own + v;
    let keys = Heads { data: kv, row_stride: kv_heads * pair, offset: 0, head_stride: pair, dim: own };
    let shared = (width > 0).then(|| Heads::contiguous(shared, 1, width));
    (Keys { own: keys, shared }, Heads { offset: own, dim: v, ..keys })
}

#[test]
fn latent_rows_are_keys_and_values_of_all_heads() {
    for (heads, latent, rotary) in [(1, 16, 16), (3, 10, 4), (16, 64, 16), (21, 33, 7)] {
        for kept in [CacheDtype::F32, CacheDtype::F16, CacheDtype::Bf16] {
            everywhere(|isa| {
                let name = format!("{heads} heads, {latent} + {rotary} {kept:?} {isa}");
                check_latent(&name, heads, LatentLayout { latent, rotary }, kept);
            });
        }
    }
}

fn check_latent(name: &str, heads: usize, layout: LatentLayout, kept: CacheDtype) {
    let LatentLayout { latent, rotary } = layout;
    let (mut pages, owned) = pages(kept, layout.page_len());
    let data: Vec<_> = (0..3)
        .map(|s| {
            let stream = 10 * s as u64;
            let q = (numbers(stream, LEN * heads * latent), numbers(stream + 1, LEN * heads * rotary));
            (q, numbers(stream + 2, LEN * latent), numbers(stream + 3, LEN * rotary))
        })
        .collect();
    for call in CALLS {
        let (mut own, mut turned, mut c, mut k_r) = (vec![], vec![], vec![], vec![]);
        let mut sequences = vec![];
        for (s, (from, to)) in call.into_iter().enumerate() {
            let rows = |data: &[f32], width: usize| data[from * width..to * width].to_vec();
            own.extend(rows(&data[s].0.0, heads * latent));
            turned.extend(rows(&data[s].0.1, heads * rotary));
            c.extend(rows(&data[s].1, latent));
            k_r.extend(rows(&data[s].2, rotary));
            sequences.push(Sequence { pages: &owned[s], past: from, new: to - from });
        }
        let mut out = vec![f32::NAN; own.len()];
        let row_stride = heads * latent;
        pages.append_latent(32, layout, &sequences, &c, &k_r);
        let (own, turned) = (Heads::contiguous(&own, heads, latent), Heads::contiguous(&turned, heads, rotary));
        pages.attend_latent(32, layout, heads, 0.3, None, &sequences, own, turned, HeadsMut::like(&mut out, &own));

        let mut first = 0;
        for (s, (from, to)) in call.into_iter().enumerate() {
            let (c, k_r) = (rounded(kept, &data[s].1), rounded(kept, &data[s].2));
            let q: Vec<f32> = (from * heads..to * heads)
                .flat_map(|i| [&data[s].0.0[i * latent..][..latent], &data[s].0.1[i * rotary..][..rotary]].concat())
                .collect();
            let keys = Keys { own: Heads::contiguous(&c, 1, latent), shared: Some(Heads::contiguous(&k_r, 1, rotary)) };
            let shape = Shape { heads, kv_heads: 1, scale: 0.3, window: None, cap: None };
            let mut expected = vec![f32::NAN; (to - from) * row_stride];
            let queries = Heads::contiguous(&q, heads, latent + rotary);
            reference::attention::cached(shape, None, None, queries, to - from, keys, keys.own, to, &mut expected);
            let got = &out[first * row_stride..(first + to - from) * row_stride];
            assert_same(&format!("{name}: sequence {s}, tokens {from}..{to}"), got, &expected);
            first += to - from;
        }
    }
}

#[test]
fn a_copied_page_holds_the_same() {
    let layout = layout(1, 4, 0, 4);
    let kv = numbers(1, 16 * 8);
    let heads = Heads { data: &kv, row_stride: 8, offset: 0, head_stride: 8, dim: 4 };
    let (keys, values) = (Keys { own: heads, shared: None }, Heads { offset: 4, ..heads });
    for kept in [CacheDtype::F32, CacheDtype::F16, CacheDtype::Bf16] {
        let mut pages = Pages::new(kept, 3, layout.page_len());
        pages.append(0, layout, &[Sequence { pages: &[1], past: 0, new: 16 }], keys, values);
        pages.copy(1, 2);
        let attend = |page: u32| {
            let mut out = vec![f32::NAN; 4];
            let sequence = Sequence { pages: &[page], past: 15, new: 1 };
            let shape = Shape { heads: 1, kv_heads: 1, scale: 1.0, window: None, cap: None };
            pages.attend(0, layout, shape, None, None, &[sequence], Heads::contiguous(&kv, 1, 4), &mut out);
            out
        };
        assert_eq!(attend(1), attend(2));
        assert_ne!(attend(0), attend(1));
    }
}

#[test]
#[should_panic(expected = "page 4 is written to by two sequences")]
fn sequences_may_share_only_pages_that_are_full() {
    let mut pages = Pages::new(CacheDtype::F32, 8, 16 * 8);
    let sequences = [Sequence { pages: &[3, 4], past: 16, new: 1 }, Sequence { pages: &[3, 4], past: 16, new: 2 }];
    pages.append_latent(0, LatentLayout { latent: 4, rotary: 4 }, &sequences, &[0.0; 12], &[0.0; 12]);
}
