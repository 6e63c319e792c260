//! What is computed row by row, and what changes the weights: `kernels/rows.cu`.

use wels_device::{
    AdamW, Direction, Dtype, Gating, Ids, Optimizer, Rotary, RotaryColumns, Rows, SQUARES_CHUNK, Start, Tensor,
    WeightRef, host,
};

use crate::Cuda;
use crate::launch::{Buffer, Launch};
use crate::memory::{download, f32s, f32s_mut};

/// Threads of a block, each of sixteen of which have a row of their own.
const LANES: usize = 16;
/// Bytes of shared memory of chains over rows: two batches of 63 rows' terms, pairs of f32, of 32 columns.
const CHAINS_SHARED: usize = 2 * 63 * 32 * 8;

/// As kernels take it.
pub(crate) fn goes_on(start: Start) -> usize {
    usize::from(start == Start::Continue)
}

/// Which tokens have an id: ids that occur, where their tokens begin in `order`, and tokens that ascend.
pub(crate) struct ByToken {
    pub ids: usize,
    pub found: Buffer,
    pub begins: Buffer,
    pub order: Buffer,
}

/// Ids that occur, where their tokens begin, and the tokens. Sorted by counting: O(T + V), some 0.3 ms for 65,536
/// tokens of 131,072 (a guess), once a micro-batch.
fn by_token(ids: &[u32]) -> [Vec<u32>; 3] {
    let mut next = vec![0u32; ids.iter().max().map_or(0, |max| *max as usize + 1)];
    ids.iter().for_each(|id| next[*id as usize] += 1);
    let (mut found, mut begins, mut at) = (Vec::new(), Vec::new(), 0);
    for (id, next) in next.iter_mut().enumerate().filter(|(_, count)| **count > 0) {
        found.push(id as u32);
        begins.push(at);
        at += std::mem::replace(next, at);
    }
    begins.push(at);
    let mut order = vec![0; ids.len()];
    for (token, id) in ids.iter().enumerate() {
        let next = &mut next[*id as usize];
        order[*next as usize] = token as u32;
        *next += 1;
    }
    [found, begins, order]
}

impl ByToken {
    fn of(cuda: &Cuda, ids: &[u32]) -> ByToken {
        let [found, begins, order] = by_token(ids);
        let upload = |list: &[u32]| cuda.upload(list);
        ByToken { ids: found.len(), found: upload(&found), begins: upload(&begins), order: upload(&order) }
    }
}

impl Rows for Cuda {
    fn add(&self, x: &Tensor, y: &mut Tensor) {
        assert_eq!(x.len(), y.len(), "elements of {x:?} and {y:?}");
        if y.dtype() == Dtype::Bf16 {
            return self.add_bf16(x, y);
        }
        self.launch("add").over(x.len()).read(f32s(x)).write(f32s_mut(y)).long(x.len()).run();
    }

    fn scale(&self, y: &mut Tensor, factor: f32) {
        if y.dtype() == Dtype::Bf16 {
            let mut wide = self.widened(y);
            self.scale(&mut wide, factor);
            return self.narrow(&wide, y);
        }
        let len = y.len();
        self.launch("scale").over(len).write(f32s_mut(y)).float(factor).long(len).run();
    }

    fn soft_cap(&self, y: &mut Tensor, cap: f32) {
        let len = y.len();
        self.launch("soft_cap").over(len).write(f32s_mut(y)).float(cap).long(len).run();
    }

    fn add_bias(&self, bias: &Tensor, y: &mut Tensor) {
        let (cols, len) = (bias.len(), y.len());
        assert_eq!(cols, y.cols(), "{bias:?} for {y:?}");
        if y.dtype() == Dtype::Bf16 {
            return self.add_bias_bf16(bias, y);
        }
        self.launch("add_bias").over(len).read(f32s(bias)).write(f32s_mut(y)).int(cols).long(len).run();
    }

    fn bias_backward(&self, dy: &Tensor, sequences: &Ids, dbias: &mut Tensor, start: Start) {
        let cols = dbias.len();
        assert_eq!(cols, dy.cols(), "{dbias:?} of {dy:?}");
        if dy.dtype() == Dtype::Bf16 {
            return self.bias_backward_bf16(dy, sequences, dbias, start);
        }
        let launch = self.launch("bias_backward").blocks(cols.div_ceil(32), 1, 1).shared(CHAINS_SHARED);
        let launch = launch.read(f32s(dy)).write(f32s_mut(dbias));
        launch.int(dy.rows()).int(cols).int(goes_on(start)).run();
    }

    fn copy_columns(&self, x: &Tensor, from: usize, y: &mut Tensor, to: usize, width: usize) {
        let (x_cols, y_cols, len) = (x.cols(), y.cols(), x.rows() * width);
        assert_eq!(x.rows(), y.rows(), "rows of {x:?} and {y:?}");
        assert!(from + width <= x_cols && to + width <= y_cols, "{width} columns of {x:?} and {y:?}");
        if y.dtype() == Dtype::Bf16 {
            return self.copy_columns_bf16(x, from, y, to, width);
        }
        let launch = self.launch("copy_columns").over(len).read(f32s(x)).int(x_cols).int(from);
        launch.write(f32s_mut(y)).int(y_cols).int(to).int(width).long(len).run();
    }

    fn split_heads(&self, x: &Tensor, heads: usize, offset: usize, stride: usize, y: &mut Tensor) {
        let (tokens, width, len) = (x.rows(), y.cols(), y.len());
        assert_eq!(y.rows(), heads * tokens, "{heads} heads of {x:?} in {y:?}");
        assert!(offset + (heads - 1) * stride + width <= x.cols(), "{heads} heads of {width} in {x:?}");
        if y.dtype() == Dtype::Bf16 {
            return self.split_heads_bf16(x, offset, stride, y);
        }
        let launch = self.launch("split_heads").over(len).read(f32s(x)).int(x.cols()).int(offset).int(stride);
        launch.write(f32s_mut(y)).int(tokens).int(width).long(len).run();
    }

    fn join_heads(&self, x: &Tensor, heads: usize, y: &mut Tensor) {
        let (tokens, width, len) = (y.rows(), x.cols(), y.len());
        assert_eq!((x.rows(), y.cols()), (heads * tokens, heads * width), "{heads} heads of {x:?} in {y:?}");
        if y.dtype() == Dtype::Bf16 {
            return self.join_heads_bf16(x, heads, y);
        }
        let launch = self.launch("join_heads").over(len).read(f32s(x)).write(f32s_mut(y));
        launch.int(tokens).int(heads).int(width).long(len).run();
    }

    fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f32, y: &mut Tensor, rstd: &mut Tensor) {
        let (rows, d) = (x.rows(), x.cols());
        assert_eq!((w.len(), y.len(), rstd.len()), (d, x.len(), rows), "a norm of {x:?}");
        if x.dtype() == Dtype::Bf16 {
            return self.rms_norm_bf16(x, w, eps, y, rstd);
        }
        let launch = self.launch("rms_norm").over(rows * LANES).read(f32s(x)).read(f32s(w)).float(eps);
        launch.write(f32s_mut(y)).write(f32s_mut(rstd)).int(rows).int(d).run();
    }

    fn rms_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        w: &Tensor,
        rstd: &Tensor,
        sequences: &Ids,
        (dx, dx_start): (&mut Tensor, Start),
        (dw, dw_start): (&mut Tensor, Start),
    ) {
        let (rows, d) = (x.rows(), x.cols());
        assert_eq!((w.len(), dy.len(), rstd.len()), (d, x.len(), rows), "a norm of {x:?}");
        assert_eq!((dx.len(), dw.len()), (x.len(), d), "gradients of a norm of {x:?}");
        if x.dtype() == Dtype::Bf16 {
            return self.rms_norm_backward_bf16([dy, x, w, rstd], sequences, (dx, dx_start), (dw, dw_start));
        }
        let launch = self.launch("rms_norm_dx").over(rows * LANES).read(f32s(dy)).read(f32s(x)).read(f32s(w));
        launch.read(f32s(rstd)).write(f32s_mut(dx)).int(rows).int(d).int(goes_on(dx_start)).run();
        let launch = self.launch("rms_norm_dw").blocks(d.div_ceil(32), 1, 1).shared(CHAINS_SHARED);
        let launch = launch.read(f32s(dy)).read(f32s(x)).read(f32s(rstd));
        launch.write(f32s_mut(dw)).int(rows).int(d).int(goes_on(dw_start)).run();
    }

    fn rope(&self, x: &mut Tensor, positions: &Ids, rotary: &Rotary, at: RotaryColumns, direction: Direction) {
        let RotaryColumns { offset, head_stride, heads } = at;
        let (half, cols) = (rotary.table().half(), x.cols());
        let len = positions.len() * heads * half;
        assert_eq!(positions.len(), x.rows(), "positions of {x:?}");
        assert!(offset + (heads - 1) * head_stride + 2 * half <= cols, "{heads} heads' rotary parts in {x:?}");
        self.ids(positions).assert_below(rotary.table().max_positions(), "position");
        let halves = rotary.layout == host::Layout::HalfSplit;
        let sign = if direction == Direction::Forward { 1.0 } else { -1.0 };
        let tables = self.rotary(rotary);
        if x.dtype() == Dtype::Bf16 {
            return self.rope_bf16(x, (positions, tables), (half, halves), at, sign);
        }
        let [cosines, sines] = tables;
        let launch = self.launch("rope").over(len).write(f32s_mut(x)).read(&self.ids(positions).list);
        let launch = launch.read(cosines).read(sines).int(half).int(halves.into());
        launch.int(cols).int(offset).int(head_stride).int(heads).float(sign).long(len).run();
    }

    fn gated(&self, gating: Gating, gate: &Tensor, up: &Tensor, y: &mut Tensor) {
        let len = y.len();
        assert_eq!((gate.len(), up.len()), (len, len), "{gate:?} and {up:?} to {y:?}");
        match (gating, y.dtype()) {
            (Gating::Silu, Dtype::Bf16) => self.swiglu_bf16(gate, up, y),
            (Gating::Silu, Dtype::F32) => {
                self.launch("swiglu").over(len).read(f32s(gate)).read(f32s(up)).write(f32s_mut(y)).long(len).run();
            }
            (_, Dtype::Bf16) => {
                let mut wide = self.wide_like(y);
                self.gated(gating, &self.widened(gate), &self.widened(up), &mut wide);
                self.narrow(&wide, y);
            }
            (_, Dtype::F32) => {
                let launch = self.launch("gated").over(len).read(f32s(gate)).read(f32s(up)).write(f32s_mut(y));
                with_gating(launch, gating).long(len).run();
            }
        }
    }

    fn gated_backward(&self, gating: Gating, dy: &Tensor, operands: [&Tensor; 2], gradients: [&mut Tensor; 2]) {
        let (len, [gate, up], [dgate, dup]) = (dy.len(), operands, gradients);
        let lens = [gate.len(), up.len(), dgate.len(), dup.len()];
        assert_eq!(lens, [len; 4], "operands of a gate's gradients");
        match (gating, dy.dtype()) {
            (Gating::Silu, Dtype::Bf16) => self.swiglu_backward_bf16([dy, gate, up], [dgate, dup]),
            (Gating::Silu, Dtype::F32) => {
                let launch = self.launch("swiglu_backward").over(len).read(f32s(dy)).read(f32s(gate)).read(f32s(up));
                launch.write(f32s_mut(dgate)).write(f32s_mut(dup)).long(len).run();
            }
            (_, Dtype::Bf16) => {
                let (wide, mut of_gate, mut of_up) = (self.widened(dy), self.wide_like(dgate), self.wide_like(dup));
                let operands = [&self.widened(gate), &self.widened(up)];
                self.gated_backward(gating, &wide, operands, [&mut of_gate, &mut of_up]);
                self.narrow(&of_gate, dgate);
                self.narrow(&of_up, dup);
            }
            (_, Dtype::F32) => {
                let launch = self.launch("gated_backward").over(len).read(f32s(dy)).read(f32s(gate)).read(f32s(up));
                let launch = launch.write(f32s_mut(dgate)).write(f32s_mut(dup));
                with_gating(launch, gating).long(len).run();
            }
        }
    }

    fn gather(&self, table: WeightRef, ids: &Ids, y: &mut Tensor) {
        let (d, len) = (y.cols(), y.len());
        let (rows, cols) = match table {
            WeightRef::Plain(table) => (table.rows(), table.cols()),
            WeightRef::Packed(table) => (table.rows(), table.cols()),
        };
        assert_eq!((ids.len(), cols), (y.rows(), d), "rows of a table for {y:?}");
        self.ids(ids).assert_below(rows, "id");
        if y.dtype() == Dtype::Bf16 {
            return self.gather_into_bf16(table, ids, y);
        }
        match table {
            WeightRef::Plain(table) => {
                let launch = self.launch("gather").over(len).read(f32s(table)).read(&self.ids(ids).list);
                launch.write(f32s_mut(y)).int(d).long(len).run();
            }
            WeightRef::Packed(table) => self.gather_packed(table, &self.ids(ids).list, f32s_mut(y), d, len),
        }
    }

    fn gather_backward(&self, dy: &Tensor, ids: &Ids, dtable: &mut Tensor, start: Start) {
        let d = dy.cols();
        assert_eq!((ids.len(), dtable.cols()), (dy.rows(), d), "rows of {dy:?} to {dtable:?}");
        self.ids(ids).assert_below(dtable.rows(), "id");
        if start == Start::Zero {
            dtable.fill(0.0);
        }
        let by_token = self.ids(ids).derived(|| ByToken::of(self, ids));
        if dy.dtype() == Dtype::Bf16 {
            return self.gather_backward_bf16(dy, by_token, dtable);
        }
        let len = by_token.ids * d;
        let launch = self.launch("gather_backward").over(len).read(f32s(dy)).read(&by_token.found);
        launch.read(&by_token.begins).read(&by_token.order).write(f32s_mut(dtable)).int(d).long(len).run();
    }
}

impl Optimizer for Cuda {
    fn adamw(
        &self,
        (params, first): (&mut Tensor, usize),
        grads: &Tensor,
        (m, v): (&mut Tensor, &mut Tensor),
        rule: &AdamW,
        scale: f32,
    ) {
        let len = grads.len();
        assert!(first + len <= params.len(), "{first} + {len} elements of {params:?}");
        assert_eq!((m.len(), v.len()), (len, len), "moments of {len} parameters");
        let c = rule.coefficients(scale);
        let launch = self.launch("adamw").over(len).write_at(f32s_mut(params), first * 4).read(f32s(grads));
        let launch = launch.write(f32s_mut(m)).write(f32s_mut(v)).float(c.grad_scale);
        let launch = launch.float(c.one_minus_beta1).float(c.one_minus_beta2).float(c.root_correction);
        launch.float(c.eps).float(c.minus_rate).float(c.minus_decay).long(len).run();
    }

    fn blend(&self, alpha: f32, x: &Tensor, beta: f32, y: &mut Tensor) {
        let len = x.len();
        assert_eq!(y.len(), len, "{x:?} and {y:?} have one length");
        let launch = self.launch("blend").over(len).read(f32s(x)).write(f32s_mut(y));
        launch.float(alpha).float(beta).long(len).run();
    }

    fn squares(&self, x: &Tensor) -> Vec<f32> {
        let chunks = x.len().div_ceil(SQUARES_CHUNK);
        let mut sums = self.temporary(chunks);
        let launch = self.launch("squares").over(chunks * LANES).read(f32s(x)).write(&mut sums);
        launch.int(SQUARES_CHUNK).int(chunks).long(x.len()).run();
        download(&sums, chunks)
    }
}

/// A gate's kind and numbers, as the kernels have them.
fn with_gating(launch: Launch<'_>, gating: Gating) -> Launch<'_> {
    let (clamped, alpha, limit) = match gating {
        Gating::Clamped { alpha, limit } => (1, alpha, limit),
        Gating::GeluTanh => (0, 0.0, 0.0),
        Gating::Silu => unreachable!("silu has kernels of its own"),
        Gating::Limited { .. } => unreachable!("models with it are refused on cards, which lack their attention"),
    };
    launch.int(clamped).float(alpha).float(limit)
}

#[cfg(test)]
mod tests {
    use super::by_token;

    #[test]
    fn tokens_are_sorted_by_their_ids() {
        let expected: [&[u32]; 3] = [&[0, 2, 5], &[0, 1, 4, 6], &[3, 1, 4, 5, 0, 2]];
        assert_eq!(by_token(&[5, 2, 5, 0, 2, 2]), expected);
        assert_eq!(by_token(&[]), [vec![], vec![0], vec![]]);
    }
}
