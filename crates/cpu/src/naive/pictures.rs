//! What networks of pictures need.

use wels_device::{GroupNorm, Pictures, Precision, Start, Tensor, Windows};
use wels_kernels::reference::{gemm, group_norm, softmax, unit, windows};

use super::{Naive, values, values_mut};

impl Pictures for Naive {
    fn softmax(&self, scale: f32, y: &mut Tensor) {
        let n = y.cols();
        softmax::softmax(values_mut(y), scale, n);
    }

    fn softmax_backward(&self, p: &Tensor, scale: f32, dy: &mut Tensor) {
        let n = dy.cols();
        softmax::softmax_backward(values(p), scale, values_mut(dy), n);
    }

    fn group_norm(&self, of: GroupNorm, x: &Tensor, w: &Tensor, b: &Tensor, y: &mut Tensor, stats: &mut Tensor) {
        group_norm::group_norm(of, values(x), values(w), values(b), values_mut(y), values_mut(stats));
    }

    fn group_norm_backward(
        &self,
        of: GroupNorm,
        dy: &Tensor,
        x: &Tensor,
        w_b: [&Tensor; 2],
        stats: &Tensor,
        dx: &mut Tensor,
        (dw, dw_start): (&mut Tensor, Start),
        (db, db_start): (&mut Tensor, Start),
    ) {
        let (dw, db) = ((values_mut(dw), dw_start), (values_mut(db), db_start));
        let w_b = w_b.map(values);
        group_norm::group_norm_backward(of, values(dy), values(x), w_b, values(stats), values_mut(dx), dw, db);
    }

    fn conv(&self, precision: Precision, of: Windows, x: &Tensor, w: &Tensor, y: &mut Tensor) {
        let (c, n) = (x.cols(), y.cols());
        let mut gathered = vec![0.0; of.outputs() * 9 * c];
        windows::gather(of, values(x), 0, &mut gathered, c);
        gemm::linear(precision, &gathered, values(w), values_mut(y), 9 * c, n);
    }

    fn conv_dx(&self, precision: Precision, of: Windows, dy: &Tensor, turned: &Tensor, dx: &mut Tensor) {
        let (c, n) = (dx.cols(), dy.cols());
        let mut gathered = vec![0.0; of.inputs() * 9 * n];
        windows::gather_backward(of, values(dy), 0, &mut gathered, n);
        gemm::linear(precision, &gathered, values(turned), values_mut(dx), 9 * n, c);
    }

    fn windows(&self, of: Windows, x: &Tensor, first: usize, y: &mut Tensor) {
        windows::gather(of, values(x), first, values_mut(y), x.cols());
    }

    fn turn_windows(&self, w: &Tensor, turned: &mut Tensor) {
        windows::turn(values(w), values_mut(turned), w.cols() / 9);
    }

    fn double(&self, side: usize, x: &Tensor, y: &mut Tensor) {
        windows::double(side, values(x), values_mut(y), x.cols());
    }

    fn double_backward(&self, side: usize, dy: &Tensor, dx: &mut Tensor) {
        windows::double_backward(side, values(dy), values_mut(dx), dy.cols());
    }

    fn unit_rows(&self, x: &Tensor, y: &mut Tensor, lengths: &mut Tensor) {
        unit::unit_rows(values(x), values_mut(y), values_mut(lengths), x.cols());
    }

    fn unit_rows_backward(&self, dy: &Tensor, y: &Tensor, lengths: &Tensor, (dx, start): (&mut Tensor, Start)) {
        unit::unit_rows_backward(values(dy), values(y), values(lengths), values_mut(dx), start, y.cols());
    }

    fn differences(&self, a: &Tensor, b: &Tensor, factor: f32, y: &mut Tensor) {
        unit::differences(values(a), values(b), factor, values_mut(y));
    }
}
