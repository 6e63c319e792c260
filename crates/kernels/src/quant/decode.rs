//! Panels of quantised weights as the numbers that they stand for.

use super::activations::BLOCK;
use super::blocks::{BlockType, unit};
use super::codebooks::Codes;
use super::dots::{Dots, dispatch_dots};
use super::pack::{Form, Panel, ROWS};
use crate::lanes::Lanes;
use crate::scratch;

/// A number of each row of a panel.
type Sixteen = [f32; ROWS];

/// The numbers of a panel, `[K][16]` with the K of `out`, with the bits of [`blocks::decode`](super::blocks::decode).
///
/// # Safety
/// The machine has D's instructions, and the panel is of this type with records for K numbers a row.
#[inline(always)]
pub(super) unsafe fn panel<D: Dots>(block_type: BlockType, panel: Panel, out: &mut [f32]) {
    let form = Form::of(block_type);
    // SAFETY: each constant is the form's own, and the panel goes on as it came.
    unsafe {
        match form.bits {
            8 => records::<D, 8>(block_type, form, panel, out),
            6 => records::<D, 6>(block_type, form, panel, out),
            5 => records::<D, 5>(block_type, form, panel, out),
            _ => records::<D, 4>(block_type, form, panel, out),
        }
    }
}

/// The rows of a panel, as many as `out` [rows, K] has, with the bits of [`panel`].
///
/// # Panics
/// If the panel's parts are not those of K numbers a row.
pub(super) fn rows(block_type: BlockType, (terms, scales): (&[u8], &[u8]), columns: usize, out: &mut [f32]) {
    let (form, records) = (Form::of(block_type), columns.div_ceil(block_type.len()));
    assert_eq!(terms.len(), records * form.blocks() * form.term_bytes(), "terms of a panel");
    assert_eq!(scales.len(), records * form.scale_bytes(), "scales of a panel");
    let mut numbers = scratch::buffer(columns * ROWS);
    let (at, to) = (Panel { terms: terms.as_ptr(), scales: scales.as_ptr() }, &mut numbers[..]);
    // SAFETY: the parts were checked to be those of as many records as a row has.
    unsafe { dispatch_dots!(panel(block_type: BlockType, at: Panel, to: &mut [f32])) };
    let numbers = numbers.as_chunks::<ROWS>().0;
    for (lane, row) in out.chunks_exact_mut(columns).enumerate() {
        row.iter_mut().zip(numbers).for_each(|(out, sixteen)| *out = sixteen[lane]);
    }
}

/// # Safety
/// As for [`panel`], of a form with terms of BITS bits.
#[inline(always)]
unsafe fn records<D: Dots, const BITS: usize>(block_type: BlockType, form: Form, panel: Panel, out: &mut [f32]) {
    let Panel { mut terms, mut scales } = panel;
    let out = out.as_chunks_mut::<ROWS>().0;
    for out in out.chunks_mut(form.blocks() * BLOCK) {
        // SAFETY: a record of scales for each record of numbers, of the form's size, by the contract of `panel`.
        unsafe {
            let scale =
                if form.codes == Codes::E2m1 { D::upper_halves(scales.cast()) } else { D::halves(scales.cast()) };
            let minimum = if form.minima { D::halves(scales.add(2 * ROWS).cast()) } else { scale };
            let factors = scales.add(if form.minima { 4 * ROWS } else { 2 * ROWS }).cast::<i8>();
            for (b, out) in out.chunks_mut(BLOCK).enumerate() {
                let vectors = std::slice::from_raw_parts(terms.cast::<[u32; ROWS]>(), form.term_bytes() / (4 * ROWS));
                for (h, out) in out.chunks_mut(BLOCK / form.halves).enumerate() {
                    let (mut group, mut least) = (scale, minimum);
                    if form.factors {
                        let at = b * form.halves + h;
                        group = group.mul(D::factors(factors.add(at * ROWS)));
                        if form.minima {
                            least = least.mul(D::factors(factors.add((form.blocks() * form.halves + at) * ROWS)));
                        }
                    }
                    let (mut w, mut m) = ([0.0; ROWS], [0.0; ROWS]);
                    group.mul(D::Lanes::splat(unit(form.shift))).store(w.as_mut_ptr());
                    least.store(m.as_mut_ptr());
                    of_group::<BITS>(block_type, form, vectors, 8 / form.halves * h, (&w, &m), out);
                }
                terms = terms.add(form.term_bytes());
            }
            scales = scales.add(form.scale_bytes());
        }
    }
}

/// The numbers of a group, whose terms begin in word `first` of a block: `w · whole(q) + m`, where m is the minimum
/// with its sign turned, if there is one.
#[inline(always)]
fn of_group<const BITS: usize>(
    block_type: BlockType,
    form: Form,
    vectors: &[[u32; ROWS]],
    first: usize,
    (w, m): (&Sixteen, &Sixteen),
    out: &mut [Sixteen],
) {
    for (g, out) in out.chunks_mut(4).enumerate() {
        let words = words::<BITS>(vectors, first + g);
        for (term, out) in out.iter_mut().enumerate() {
            for lane in 0..ROWS {
                let q = words[lane] >> (8 * term) & 0xff;
                let whole = match form.codes {
                    Codes::None => q as i32 - i32::from(form.zero),
                    _ => block_type.whole(q as u8),
                };
                let product = w[lane] * whole as f32;
                out[lane] = if form.minima { product + m[lane] } else { product };
            }
        }
    }
}

/// Word `g` of a block of each row, a byte for each of its four terms.
#[inline(always)]
fn words<const BITS: usize>(vectors: &[[u32; ROWS]], g: usize) -> [u32; ROWS] {
    if BITS == 8 {
        return vectors[g];
    }
    let mut words = vectors[g % 4];
    for (lane, word) in words.iter_mut().enumerate() {
        let more = match BITS {
            6 => vectors[4 + g / 4][lane] >> (2 * (g % 4)) & 0x0303_0303,
            5 => vectors[4][lane] >> g & 0x0101_0101,
            _ => 0,
        };
        *word = *word >> (g / 4 * 4) & 0x0f0f_0f0f | more << 4;
    }
    words
}
