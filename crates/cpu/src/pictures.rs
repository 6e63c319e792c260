//! What networks of pictures need.

use wels_device::{GroupNorm, Pictures, Precision, Start, Tensor, Windows};
use wels_kernels::{gemm, group_norm, softmax, unit, windows};

use crate::Cpu;
use crate::memory::{slice, slice_mut};

impl Pictures for Cpu {
    fn softmax(&self, scale: f32, y: &mut Tensor) {
        let n = y.cols();
        softmax::softmax(slice_mut(y), scale, n);
    }

    fn softmax_backward(&self, p: &Tensor, scale: f32, dy: &mut Tensor) {
        let n = dy.cols();
        softmax::softmax_backward(slice(p), scale, slice_mut(dy), n);
    }

    fn group_norm(&self, of: GroupNorm, x: &Tensor, w: &Tensor, b: &Tensor, y: &mut Tensor, stats: &mut Tensor) {
        group_norm::group_norm(of, slice(x), slice(w), slice(b), slice_mut(y), slice_mut(stats));
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
        let (dw, db) = ((slice_mut(dw), dw_start), (slice_mut(db), db_start));
        let w_b = w_b.map(slice);
        group_norm::group_norm_backward(of, slice(dy), slice(x), w_b, slice(stats), slice_mut(dx), dw, db);
    }

    fn conv(&self, precision: Precision, of: Windows, x: &Tensor, w: &Tensor, y: &mut Tensor) {
        let (c, n) = (x.cols(), y.cols());
        gemm::conv(precision, of, slice(x), slice(w), slice_mut(y), c, n);
    }

    fn conv_dx(&self, precision: Precision, of: Windows, dy: &Tensor, turned: &Tensor, dx: &mut Tensor) {
        let (c, n) = (dx.cols(), dy.cols());
        gemm::conv_dx(precision, of, slice(dy), slice(turned), slice_mut(dx), c, n);
    }

    fn windows(&self, of: Windows, x: &Tensor, first: usize, y: &mut Tensor) {
        windows::gather(of, slice(x), first, slice_mut(y), x.cols());
    }

    fn turn_windows(&self, w: &Tensor, turned: &mut Tensor) {
        windows::turn(slice(w), slice_mut(turned), w.cols() / 9);
    }

    fn double(&self, side: usize, x: &Tensor, y: &mut Tensor) {
        windows::double(side, slice(x), slice_mut(y), x.cols());
    }

    fn double_backward(&self, side: usize, dy: &Tensor, dx: &mut Tensor) {
        windows::double_backward(side, slice(dy), slice_mut(dx), dy.cols());
    }

    fn unit_rows(&self, x: &Tensor, y: &mut Tensor, lengths: &mut Tensor) {
        unit::unit_rows(slice(x), slice_mut(y), slice_mut(lengths), x.cols());
    }

    fn unit_rows_backward(&self, dy: &Tensor, y: &Tensor, lengths: &Tensor, (dx, start): (&mut Tensor, Start)) {
        unit::unit_rows_backward(slice(dy), slice(y), slice(lengths), slice_mut(dx), start, y.cols());
    }

    fn differences(&self, a: &Tensor, b: &Tensor, factor: f32, y: &mut Tensor) {
        unit::differences(slice(a), slice(b), factor, slice_mut(y));
    }
}
