//! What is computed row by row.

use wels_device::{Direction, Gating, Ids, Rotary, RotaryColumns, Rows, Start, Tensor, WeightRef};
use wels_kernels::elementwise::{self, Columns};
use wels_kernels::{embedding, norm, rope, softcap, swiglu};

use crate::Cpu;
use crate::memory::{slice, slice_mut};
use crate::weights::{part, single};

impl Rows for Cpu {
    fn add(&self, x: &Tensor, y: &mut Tensor) {
        elementwise::add(slice(x), slice_mut(y));
    }

    fn scale(&self, y: &mut Tensor, factor: f32) {
        elementwise::scale(slice_mut(y), factor);
    }

    fn soft_cap(&self, y: &mut Tensor, cap: f32) {
        softcap::forward(cap, slice_mut(y));
    }

    fn add_bias(&self, bias: &Tensor, y: &mut Tensor) {
        elementwise::add_bias(slice(bias), slice_mut(y));
    }

    fn bias_backward(&self, dy: &Tensor, _sequences: &Ids, dbias: &mut Tensor, start: Start) {
        elementwise::bias_grad(slice(dy), slice_mut(dbias), start);
    }

    fn copy_columns(&self, x: &Tensor, from: usize, y: &mut Tensor, to: usize, width: usize) {
        let (rows, from, to) = (x.rows(), columns(x.cols(), from), columns(y.cols(), to));
        assert_eq!(rows, y.rows(), "rows of {x:?} and {y:?}");
        elementwise::copy_columns(slice(x), from, slice_mut(y), to, width, rows);
    }

    fn split_heads(&self, x: &Tensor, heads: usize, offset: usize, stride: usize, y: &mut Tensor) {
        let (rows, width) = (x.rows(), y.cols());
        assert_eq!(y.rows(), heads * rows, "{heads} heads of {x:?} in {y:?}");
        for (h, y) in slice_mut(y).chunks_exact_mut((rows * width).max(1)).enumerate() {
            let from = columns(x.cols(), offset + h * stride);
            elementwise::copy_columns(slice(x), from, y, columns(width, 0), width, rows);
        }
    }

    fn join_heads(&self, x: &Tensor, heads: usize, y: &mut Tensor) {
        let (rows, width) = (y.rows(), x.cols());
        assert_eq!((x.rows(), y.cols()), (heads * rows, heads * width), "{heads} heads of {x:?} in {y:?}");
        let stride = y.cols();
        for (h, x) in slice(x).chunks_exact((rows * width).max(1)).enumerate() {
            let to = columns(stride, h * width);
            elementwise::copy_columns(x, columns(width, 0), slice_mut(y), to, width, rows);
        }
    }

    fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f32, y: &mut Tensor, rstd: &mut Tensor) {
        norm::rms_norm(slice(x), slice(w), eps, slice_mut(y), slice_mut(rstd), x.cols());
    }

    fn rms_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        w: &Tensor,
        rstd: &Tensor,
        _sequences: &Ids,
        (dx, dx_start): (&mut Tensor, Start),
        (dw, dw_start): (&mut Tensor, Start),
    ) {
        let (dx, dw) = (slice_mut(dx), slice_mut(dw));
        norm::rms_norm_backward(slice(dy), slice(x), slice(w), slice(rstd), dx, dx_start, dw, dw_start, x.cols());
    }

    fn rope(&self, x: &mut Tensor, positions: &Ids, rotary: &Rotary, at: RotaryColumns, direction: Direction) {
        let RotaryColumns { offset, head_stride, heads } = at;
        let stride = x.cols();
        let (x, table) = (slice_mut(x), rotary.table());
        rope::apply(x, positions, table, rotary.layout, stride, offset, head_stride, heads, direction);
    }

    fn gated(&self, gating: Gating, gate: &Tensor, up: &Tensor, y: &mut Tensor) {
        swiglu::forward(gating, slice(gate), slice(up), slice_mut(y));
    }

    fn gated_backward(&self, gating: Gating, dy: &Tensor, operands: [&Tensor; 2], gradients: [&mut Tensor; 2]) {
        let ([gate, up], [dgate, dup]) = (operands.map(slice), gradients.map(slice_mut));
        swiglu::backward(gating, slice(dy), gate, up, dgate, dup);
    }

    fn gather(&self, table: WeightRef, ids: &Ids, y: &mut Tensor) {
        let d = y.cols();
        match table {
            WeightRef::Plain(table) => embedding::gather(slice(table), ids, slice_mut(y), d),
            WeightRef::Packed(table) => match (&self.ranks, part(table)) {
                (Some(ranks), Some(part)) => ranks.rows(part, ids, slice_mut(y), d),
                _ => single(table).rows_of(ids, slice_mut(y)),
            },
        }
    }

    fn gather_backward(&self, dy: &Tensor, ids: &Ids, dtable: &mut Tensor, start: Start) {
        embedding::gather_backward(slice(dy), ids, slice_mut(dtable), start, dy.cols());
    }
}

fn columns(stride: usize, offset: usize) -> Columns {
    Columns { stride, offset }
}
