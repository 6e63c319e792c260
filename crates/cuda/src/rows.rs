//! What is computed row by row, and what changes the weights: `kernels/rows.cu`.

use wels_device::{
    AdamW, Direction, Ids, Optimizer, Rotary, RotaryColumns, Rows, SQUARES_CHUNK, Start, Tensor, WeightRef, host,
};

use crate::Cuda;
use crate::launch::Buffer;
use crate::memory::{download, f32s, f32s_mut};

/// Threads of a block, each of sixteen of which have a row of their own.
const LANES: usize = 16;

/// As kernels take it.
pub(crate) fn goes_on(start: Start) -> usize {
    usize::from(start == Start::Continue)
}

/// Which tokens have an id: ids that occur, where their tokens begin in `order`, and tokens that ascend.
struct ByToken {
    ids: usize,
    found: Buffer,
    begins: Buffer,
    order: Buffer,
}

impl ByToken {
    fn of(cuda: &Cuda, ids: &[u32]) -> ByToken {
        let mut order: Vec<u32> = (0..ids.len() as u32).collect();
        order.sort_by_key(|token| (ids[*token as usize], *token));
        let (mut found, mut begins) = (Vec::new(), Vec::new());
        for (at, token) in order.iter().enumerate() {
            let id = ids[*token as usize];
            if found.last() != Some(&id) {
                found.push(id);
                begins.push(at as u32);
            }
        }
        begins.push(order.len() as u32);
        let upload = |list: &[u32]| cuda.upload(list);
        ByToken { ids: found.len(), found: upload(&found), begins: upload(&begins), order: upload(&order) }
    }
}

impl Rows for Cuda {
    fn add(&self, x: &Tensor, y: &mut Tensor) {
        assert_eq!(x.len(), y.len(), "elements of {x:?} and {y:?}");
        self.launch("add").over(x.len()).read(f32s(x)).write(f32s_mut(y)).long(x.len()).run();
    }

    fn add_bias(&self, bias: &Tensor, y: &mut Tensor) {
        let (cols, len) = (bias.len(), y.len());
        assert_eq!(cols, y.cols(), "{bias:?} for {y:?}");
        self.launch("add_bias").over(len).read(f32s(bias)).write(f32s_mut(y)).int(cols).long(len).run();
    }

    fn bias_backward(&self, dy: &Tensor, _sequences: &Ids, dbias: &mut Tensor, start: Start) {
        let cols = dbias.len();
        assert_eq!(cols, dy.cols(), "{dbias:?} of {dy:?}");
        let launch = self.launch("bias_backward").over(cols).read(f32s(dy)).write(f32s_mut(dbias));
        launch.int(dy.rows()).int(cols).int(goes_on(start)).run();
    }

    fn copy_columns(&self, x: &Tensor, from: usize, y: &mut Tensor, to: usize, width: usize) {
        let (x_cols, y_cols, len) = (x.cols(), y.cols(), x.rows() * width);
        assert_eq!(x.rows(), y.rows(), "rows of {x:?} and {y:?}");
        assert!(from + width <= x_cols && to + width <= y_cols, "{width} columns of {x:?} and {y:?}");
        let launch = self.launch("copy_columns").over(len).read(f32s(x)).int(x_cols).int(from);
        launch.write(f32s_mut(y)).int(y_cols).int(to).int(width).long(len).run();
    }

    fn split_heads(&self, x: &Tensor, heads: usize, offset: usize, stride: usize, y: &mut Tensor) {
        let (tokens, width, len) = (x.rows(), y.cols(), y.len());
        assert_eq!(y.rows(), heads * tokens, "{heads} heads of {x:?} in {y:?}");
        assert!(offset + (heads - 1) * stride + width <= x.cols(), "{heads} heads of {width} in {x:?}");
        let launch = self.launch("split_heads").over(len).read(f32s(x)).int(x.cols()).int(offset).int(stride);
        launch.write(f32s_mut(y)).int(tokens).int(width).long(len).run();
    }

    fn join_heads(&self, x: &Tensor, heads: usize, y: &mut Tensor) {
        let (tokens, width, len) = (y.rows(), x.cols(), y.len());
        assert_eq!((x.rows(), y.cols()), (heads * tokens, heads * width), "{heads} heads of {x:?} in {y:?}");
        let launch = self.launch("join_heads").over(len).read(f32s(x)).write(f32s_mut(y));
        launch.int(tokens).int(heads).int(width).long(len).run();
    }

    fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f32, y: &mut Tensor, rstd: &mut Tensor) {
        let (rows, d) = (x.rows(), x.cols());
        assert_eq!((w.len(), y.len(), rstd.len()), (d, x.len(), rows), "a norm of {x:?}");
        let launch = self.launch("rms_norm").over(rows * LANES).read(f32s(x)).read(f32s(w)).float(eps);
        launch.write(f32s_mut(y)).write(f32s_mut(rstd)).int(rows).int(d).run();
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
        let (rows, d) = (x.rows(), x.cols());
        assert_eq!((w.len(), dy.len(), rstd.len()), (d, x.len(), rows), "a norm of {x:?}");
        assert_eq!((dx.len(), dw.len()), (x.len(), d), "gradients of a norm of {x:?}");
        let launch = self.launch("rms_norm_dx").over(rows * LANES).read(f32s(dy)).read(f32s(x)).read(f32s(w));
        launch.read(f32s(rstd)).write(f32s_mut(dx)).int(rows).int(d).int(goes_on(dx_start)).run();
        let launch = self.launch("rms_norm_dw").over(d).read(f32s(dy)).read(f32s(x)).read(f32s(rstd));
        launch.write(f32s_mut(dw)).int(rows).int(d).int(goes_on(dw_start)).run();
    }

    fn rope(&self, x: &mut Tensor, positions: &Ids, rotary: &Rotary, at: RotaryColumns, direction: Direction) {
        let RotaryColumns { offset, head_stride, heads } = at;
        let (half, cols) = (rotary.table().half(), x.cols());
        let len = positions.len() * heads * half;
        assert_eq!(positions.len(), x.rows(), "positions of {x:?}");
        assert!(offset + (heads - 1) * head_stride + 2 * half <= cols, "{heads} heads' rotary parts in {x:?}");
        let beyond = positions.iter().find(|position| **position as usize >= rotary.table().max_positions());
        assert!(beyond.is_none(), "position {beyond:?} of {}", rotary.table().max_positions());
        let [cosines, sines] = self.rotary(rotary);
        let launch = self.launch("rope").over(len).write(f32s_mut(x)).read(&self.ids(positions).list);
        let launch = launch.read(cosines).read(sines).int(half);
        let launch = launch.int(usize::from(rotary.layout == host::Layout::HalfSplit));
        let sign = if direction == Direction::Forward { 1.0 } else { -1.0 };
        launch.int(cols).int(offset).int(head_stride).int(heads).float(sign).long(len).run();
    }

    fn swiglu(&self, gate: &Tensor, up: &Tensor, y: &mut Tensor) {
        let len = y.len();
        assert_eq!((gate.len(), up.len()), (len, len), "{gate:?} and {up:?} to {y:?}");
        self.launch("swiglu").over(len).read(f32s(gate)).read(f32s(up)).write(f32s_mut(y)).long(len).run();
    }

    fn swiglu_backward(&self, dy: &Tensor, gate: &Tensor, up: &Tensor, dgate: &mut Tensor, dup: &mut Tensor) {
        let len = dy.len();
        let lens = [gate.len(), up.len(), dgate.len(), dup.len()];
        assert_eq!(lens, [len; 4], "operands of swiglu's gradients");
        let launch = self.launch("swiglu_backward").over(len).read(f32s(dy)).read(f32s(gate)).read(f32s(up));
        launch.write(f32s_mut(dgate)).write(f32s_mut(dup)).long(len).run();
    }

    fn gather(&self, table: WeightRef, ids: &Ids, y: &mut Tensor) {
        let (d, len) = (y.cols(), y.len());
        let (rows, cols) = match table {
            WeightRef::Plain(table) => (table.rows(), table.cols()),
            WeightRef::Packed(table) => (table.rows(), table.cols()),
        };
        assert_eq!((ids.len(), cols), (y.rows(), d), "rows of a table for {y:?}");
        let beyond = ids.iter().find(|id| **id as usize >= rows);
        assert!(beyond.is_none(), "id {beyond:?} of {rows}");
        match table {
            WeightRef::Plain(table) => {
                let launch = self.launch("gather").over(len).read(f32s(table)).read(&self.ids(ids).list);
                launch.write(f32s_mut(y)).int(d).long(len).run();
            }
            WeightRef::Packed(table) => self.gather_packed(table, &self.ids(ids).list, y),
        }
    }

    fn gather_backward(&self, dy: &Tensor, ids: &Ids, dtable: &mut Tensor, start: Start) {
        let d = dy.cols();
        assert_eq!((ids.len(), dtable.cols()), (dy.rows(), d), "rows of {dy:?} to {dtable:?}");
        let beyond = ids.iter().find(|id| **id as usize >= dtable.rows());
        assert!(beyond.is_none(), "id {beyond:?} of {}", dtable.rows());
        if start == Start::Zero {
            dtable.fill(0.0);
        }
        let by_token = self.ids(ids).derived(|| ByToken::of(self, ids));
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

    fn squares(&self, x: &Tensor) -> Vec<f32> {
        let chunks = x.len().div_ceil(SQUARES_CHUNK);
        let mut sums = self.temporary(chunks);
        let launch = self.launch("squares").over(chunks * LANES).read(f32s(x)).write(&mut sums);
        launch.int(SQUARES_CHUNK).int(chunks).long(x.len()).run();
        download(&sums, chunks)
    }
}
