//! What is computed row by row on activations in bf16: `kernels/rows_bf16.cu`. Shapes are asserted in `rows`.
//!
//! Weight gradients are sums over groups of rows, each a chain, of which the next chain goes over the groups. A group
//! begins with each sequence, so micro-batches, which cut between sequences, have the same groups and change no bit.

use wels_device::{Dtype, Ids, RotaryColumns, Start, Tensor, WeightRef};

use crate::Cuda;
use crate::launch::Buffer;
use crate::memory::{bf16s, bf16s_mut, f32s, f32s_mut};
use crate::pieces::{RowGroups, group_begins, pieces, wide};
use crate::rows::{ByToken, goes_on};

/// Columns of a lane's pieces that stay in registers, of a warp.
const WARP_COLUMNS: usize = 8 * 32 * 8;
/// Warps of a block of a norm.
const WARPS: usize = 8;
/// Bytes of shared memory in which `chain_parts` has 128 groups of 32 columns.
const STAGE_BYTES: usize = 128 * 32 * 4;

/// Warps that share a row, all of which a block has: one where a warp's registers hold it.
fn warps_of_row(cols: usize) -> usize {
    cols.div_ceil(WARP_COLUMNS).next_power_of_two().min(WARPS)
}

impl Cuda {
    fn row_groups<'a>(&self, sequences: &'a Ids, rows: usize) -> &'a RowGroups {
        let last = sequences.last().map_or(0, |last| *last as usize);
        assert_eq!(last, rows, "rows of the sequences {sequences:?}");
        self.ids(sequences).groups(|| {
            let begins = group_begins(sequences);
            RowGroups { count: begins.len() - 1, begins: self.upload(&begins) }
        })
    }

    /// `dw = [dw] + Σ_g parts[g]`.
    fn chain_parts(&self, parts: &Buffer, groups: usize, dw: &mut Tensor, start: Start) {
        let d = dw.len();
        let launch = self.launch("chain_parts").blocks(d.div_ceil(32), 1, 1).shared(STAGE_BYTES).read(parts);
        launch.write(f32s_mut(dw)).int(groups).int(d).int(goes_on(start)).run();
    }

    pub(crate) fn add_bf16(&self, x: &Tensor, y: &mut Tensor) {
        let len = x.len();
        let launch = self.launch("add_bf16").over(pieces(1, len)).read(bf16s(x));
        launch.write(bf16s_mut(y)).long(len).run();
    }

    pub(crate) fn add_bias_bf16(&self, bias: &Tensor, y: &mut Tensor) {
        let (cols, pieces) = (y.cols(), pieces(y.rows(), y.cols()));
        let launch = self.launch("add_bias_bf16").over(pieces).read(f32s(bias)).write(bf16s_mut(y));
        launch.int(cols).int(wide(&[cols])).int(pieces).run();
    }

    pub(crate) fn bias_backward_bf16(&self, dy: &Tensor, sequences: &Ids, dbias: &mut Tensor, start: Start) {
        let (d, groups) = (dy.cols(), self.row_groups(sequences, dy.rows()));
        let mut parts = self.temporary(groups.count * d);
        let pieces = pieces(groups.count, d);
        let launch = self.launch("bias_parts_bf16").over(pieces).read(bf16s(dy)).read(&groups.begins);
        launch.write(&mut parts).int(d).int(wide(&[d])).int(pieces).run();
        self.chain_parts(&parts, groups.count, dbias, start);
    }

    pub(crate) fn copy_columns_bf16(&self, x: &Tensor, from: usize, y: &mut Tensor, to: usize, width: usize) {
        let (x_cols, y_cols, pieces) = (x.cols(), y.cols(), pieces(x.rows(), width));
        let launch = self.launch("copy_columns_bf16").over(pieces).read(bf16s(x)).int(x_cols).int(from);
        let launch = launch.write(bf16s_mut(y)).int(y_cols).int(to).int(width);
        launch.int(wide(&[x_cols, from, y_cols, to, width])).int(pieces).run();
    }

    pub(crate) fn split_heads_bf16(&self, x: &Tensor, offset: usize, stride: usize, y: &mut Tensor) {
        let (cols, width, pieces) = (x.cols(), y.cols(), pieces(y.rows(), y.cols()));
        let launch = self.launch("split_heads_bf16").over(pieces).read(bf16s(x)).int(cols).int(offset).int(stride);
        let launch = launch.write(bf16s_mut(y)).int(x.rows()).int(width);
        launch.int(wide(&[cols, offset, stride, width])).int(pieces).run();
    }

    pub(crate) fn join_heads_bf16(&self, x: &Tensor, heads: usize, y: &mut Tensor) {
        let (width, pieces) = (x.cols(), pieces(x.rows(), x.cols()));
        let launch = self.launch("join_heads_bf16").over(pieces).read(bf16s(x));
        let tokens = y.rows();
        let launch = launch.write(bf16s_mut(y)).int(tokens).int(heads).int(width);
        launch.int(wide(&[width])).int(pieces).run();
    }

    pub(crate) fn rms_norm_bf16(&self, x: &Tensor, w: &Tensor, eps: f32, y: &mut Tensor, rstd: &mut Tensor) {
        let (rows, d, warps) = (x.rows(), x.cols(), warps_of_row(x.cols()));
        let launch = self.launch("rms_norm_bf16").blocks(rows.div_ceil(WARPS / warps), 1, 1).shared(WARPS * 4);
        let launch = launch.read(bf16s(x)).read(f32s(w)).float(eps).write(bf16s_mut(y)).write(f32s_mut(rstd));
        launch.int(rows).int(d).int(warps).int(wide(&[d])).run();
    }

    /// `[dy, x, w, rstd]`.
    pub(crate) fn rms_norm_backward_bf16(
        &self,
        [dy, x, w, rstd]: [&Tensor; 4],
        sequences: &Ids,
        (dx, dx_start): (&mut Tensor, Start),
        (dw, dw_start): (&mut Tensor, Start),
    ) {
        let (rows, d, warps) = (x.rows(), x.cols(), warps_of_row(x.cols()));
        let launch = self.launch("rms_norm_dx_bf16").blocks(rows.div_ceil(WARPS / warps), 1, 1).shared(WARPS * 4);
        let launch = launch.read(bf16s(dy)).read(bf16s(x)).read(f32s(w)).read(f32s(rstd)).write(bf16s_mut(dx));
        launch.int(rows).int(d).int(warps).int(wide(&[d])).int(goes_on(dx_start)).run();
        let groups = self.row_groups(sequences, rows);
        let mut parts = self.temporary(groups.count * d);
        let pieces = pieces(groups.count, d);
        let launch = self.launch("rms_norm_dw_parts_bf16").over(pieces).read(bf16s(dy)).read(bf16s(x));
        let launch = launch.read(f32s(rstd)).read(&groups.begins).write(&mut parts);
        launch.int(d).int(wide(&[d])).int(pieces).run();
        self.chain_parts(&parts, groups.count, dw, dw_start);
    }

    /// `halves`: whether pairs lie half a head apart.
    pub(crate) fn rope_bf16(
        &self,
        x: &mut Tensor,
        (positions, [cosines, sines]): (&Ids, &[Buffer; 2]),
        (half, halves): (usize, bool),
        at: RotaryColumns,
        sign: f32,
    ) {
        let RotaryColumns { offset, head_stride, heads } = at;
        let (cols, pieces) = (x.cols(), pieces(positions.len() * heads, half));
        let launch = self.launch("rope_bf16").over(pieces).write(bf16s_mut(x)).read(&self.ids(positions).list);
        let launch = launch.read(cosines).read(sines).int(half).int(halves.into()).int(cols).int(offset);
        let launch = launch.int(head_stride).int(heads).float(sign);
        launch.int(wide(&[half, cols, offset, head_stride])).int(pieces).run();
    }

    pub(crate) fn swiglu_bf16(&self, gate: &Tensor, up: &Tensor, y: &mut Tensor) {
        let len = y.len();
        let launch = self.launch("swiglu_bf16").over(pieces(1, len)).read(bf16s(gate)).read(bf16s(up));
        launch.write(bf16s_mut(y)).long(len).run();
    }

    /// `[dy, gate, up]` and `[dgate, dup]`.
    pub(crate) fn swiglu_backward_bf16(&self, [dy, gate, up]: [&Tensor; 3], [dgate, dup]: [&mut Tensor; 2]) {
        let launch = self.launch("swiglu_backward_bf16").over(pieces(1, dy.len())).read(bf16s(dy)).read(bf16s(gate));
        let launch = launch.read(bf16s(up)).write(bf16s_mut(dgate)).write(bf16s_mut(dup));
        launch.long(dy.len()).run();
    }

    pub(crate) fn gather_into_bf16(&self, table: WeightRef, ids: &Ids, y: &mut Tensor) {
        let (d, len, pieces, list) = (y.cols(), y.len(), pieces(y.rows(), y.cols()), &self.ids(ids).list);
        let launch = match table {
            WeightRef::Plain(table) if table.dtype() == Dtype::Bf16 => self.launch("gather_bf16").read(bf16s(table)),
            WeightRef::Plain(table) => self.launch("gather_to_bf16").read(f32s(table)),
            WeightRef::Packed(table) => {
                let mut rows = self.temporary(len);
                self.gather_packed(table, list, &mut rows, d, len);
                let launch = self.launch("round_to_bf16").over(len.div_ceil(8)).read(&rows);
                return launch.write(bf16s_mut(y)).long(len).run();
            }
        };
        launch.over(pieces).read(list).write(bf16s_mut(y)).int(d).int(wide(&[d])).int(pieces).run();
    }

    pub(crate) fn gather_backward_bf16(&self, dy: &Tensor, by_token: &ByToken, dtable: &mut Tensor) {
        let (d, pieces) = (dy.cols(), pieces(by_token.ids, dy.cols()));
        let launch = self.launch("gather_backward_bf16").over(pieces).read(bf16s(dy)).read(&by_token.found);
        let launch = launch.read(&by_token.begins).read(&by_token.order).write(f32s_mut(dtable));
        launch.int(d).int(wide(&[d])).int(pieces).run();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_as_many_warps_as_hold_it() {
        let widths = [1, 128, 2048, 2049, 7168, 16384, 20000];
        assert_eq!(widths.map(warps_of_row), [1, 1, 1, 2, 4, 8, 8]);
    }
}
