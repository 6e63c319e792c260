//! The output head with its loss: logits of some tokens at a time, which become their gradients where they lie.

use wels_device::{
    Coefficient, Divergence, Dtype, Head, HeadGradients, IGNORE, Precision, Start, TeacherHead, Tensor, WeightRef,
};

use crate::Cuda;
use crate::launch::{Buffer, Launch};
use crate::memory::{Numbers, done, f32s_mut, numbers, numbers_mut};
use crate::parts::Parts;
use crate::products::Matrix;
use crate::tensor_cores::{Gradient, Output, Term};

/// Logits that are held at a time.
const LOGITS: usize = 64 << 20;
/// Rows that the weight gradients of tensor cores add together, counted from a sequence's first.
const STEP: usize = 64;
/// Threads that work on a row of logits, and on one of a student and its teacher.
const ROW_THREADS: usize = 512;
const THREADS: usize = 256;
/// Exponentials that a row's threads add at a time, of those that its shared memory does not keep.
const ROUND: usize = 2048;

/// A coefficient as the kernels take it.
struct Loss {
    kind: usize,
    data: Option<Buffer>,
    uniform: f32,
    clips: [f32; 3],
}

impl Loss {
    fn of(cuda: &Cuda, coefficient: &Coefficient, tokens: usize) -> Loss {
        match coefficient {
            Coefficient::Uniform(uniform) => Loss { kind: 0, data: None, uniform: *uniform, clips: [0.0; 3] },
            Coefficient::PerToken(each) => {
                assert_eq!(each.len(), tokens, "coefficients of {tokens} tokens");
                Loss { kind: 1, data: Some(cuda.upload(each)), uniform: 0.0, clips: [0.0; 3] }
            }
            Coefficient::Policy(policy) => {
                assert_eq!(policy.terms.len(), tokens, "terms of {tokens} tokens");
                let terms = policy.terms.iter().flat_map(|it| [it.advantage, it.weight, it.old, it.reference]);
                let data = Some(cuda.upload(&terms.collect::<Vec<f32>>()));
                Loss { kind: 2, data, uniform: 0.0, clips: [policy.clip_low, policy.clip_high, policy.kl] }
            }
        }
    }

    fn with<'a>(&'a self, launch: Launch<'a>) -> Launch<'a> {
        let [low, high, kl] = self.clips;
        launch.int(self.kind).read_if(self.data.as_ref()).float(self.uniform).float(low).float(high).float(kl)
    }
}

/// A matrix that logits come from, its rows and columns.
fn matrix(w: WeightRef) -> (Matrix, usize, usize) {
    if let WeightRef::Packed(w) = w {
        assert_eq!(w.count(), 1, "{w:?} where one matrix is expected");
    }
    Matrix::of(w)
}

fn check(targets: &[u32], x: &Tensor, (v, d): (usize, usize)) {
    assert_eq!((x.rows(), x.cols()), (targets.len(), d), "{} targets of {x:?}", targets.len());
    let beyond = targets.iter().find(|target| **target != IGNORE && **target as usize >= v);
    assert!(beyond.is_none(), "target {beyond:?} of a vocabulary of {v}");
}

/// Some of the tokens of a pass, and the gradients of their logits.
struct Block {
    first: usize,
    count: usize,
    /// Their rows of what the head reads.
    x: Numbers,
    width: usize,
    v: usize,
}

/// Where the gradients of some rows' logits go.
enum RowGradients<'a> {
    InPlace,
    Rounded(&'a mut Numbers),
}

impl Cuda {
    /// Copies the rows of some tokens.
    fn block(&self, x: &Tensor, (first, count): (usize, usize), v: usize) -> Block {
        let (of, width) = (numbers(x), x.cols());
        let row = width * of.dtype.bytes();
        let mut rows = self.temporary((count * row).div_ceil(4));
        done(rows.copy_from(0, &of.buffer, first * row, count * row));
        Block { first, count, x: Numbers::of(of.dtype, rows), width, v }
    }

    /// Room for the logits of any of the blocks, or for their gradients.
    fn largest(&self, dtype: Dtype, blocks: &[(usize, usize)], v: usize) -> Numbers {
        let rows = blocks.iter().map(|(_, count)| *count).max().unwrap_or(0);
        Numbers::of(dtype, self.temporary((rows * v * dtype.bytes()).div_ceil(4)))
    }

    /// `[rows, V]`.
    fn logits(&self, precision: Precision, block: &Block, w: Matrix, logits: &mut Numbers) {
        let Block { ref x, width, count, v, .. } = *block;
        self.forward_all(precision, (x, count, width), Parts::one(count), vec![(w, logits, v)]);
    }

    /// Caps a block's logits, if there is a cap, and keeps the slopes.
    fn cap_logits(&self, block: &Block, cap: Option<f32>, logits: &mut Numbers, slopes: Option<&mut Numbers>) {
        let (Some(cap), len) = (cap, block.count * block.v) else { return };
        let launch = match slopes {
            None => self.launch("soft_cap").over(len).write(&mut logits.buffer),
            Some(slopes) => {
                let launch = self.launch("soft_cap_with_slopes").over(len).write(&mut logits.buffer);
                launch.write(&mut slopes.buffer)
            }
        };
        launch.float(cap).long(len).run();
    }

    /// From gradients of capped logits to those of the logits.
    fn flatten(&self, block: &Block, slopes: Option<&Numbers>, gradients: &mut Numbers) {
        if let Some(slopes) = slopes {
            let len = block.count * block.v;
            self.launch("multiply").over(len).read(&slopes.buffer).write(&mut gradients.buffer).long(len).run();
        }
    }

    /// Log-probabilities of a block's rows. Of `gradients`, if there are any, those of the logits: where they lie, or
    /// in bf16 in memory of their own.
    fn head_rows(
        &self,
        block: &Block,
        logits: &mut Numbers,
        targets: &Buffer,
        logp: &mut Tensor,
        (loss, gradients): (&Loss, Option<RowGradients>),
    ) {
        let Block { first, count, v, .. } = *block;
        let shared = (self.shared_limit() - 1024) / 2;
        let kept = v.min((shared / 4 - ROUND) / 16 * 16);
        let launch = |name| self.launch(name).threads(ROW_THREADS).blocks(count, 1, 1).shared((ROUND + kept) * 4);
        let launch = match gradients {
            Some(RowGradients::Rounded(to)) => {
                let launch = launch("head_rows_bf16").read(&logits.buffer).read(targets).write(f32s_mut(logp));
                launch.write(&mut to.buffer).int(first).int(v).int(kept)
            }
            in_place => {
                let launch = launch("head_rows").write(&mut logits.buffer).read(targets).write(f32s_mut(logp));
                launch.int(first).int(v).int(kept).int(in_place.is_some().into())
            }
        };
        loss.with(launch).run();
    }

    /// Of the gradients of a block's logits: its part of dx, and dw, which goes on.
    fn head_gradients(
        &self,
        precision: Precision,
        gradients: &Numbers,
        (block, w): (&Block, &Numbers),
        into: &mut HeadGradients,
    ) {
        let Block { first, count, ref x, width, v } = *block;
        let parts = Parts::one(count);
        let rounded;
        let d = match gradients.dtype == Dtype::F32 && Cuda::on_tensor_cores(precision, x.dtype, &parts) {
            false => gradients,
            true => {
                rounded = self.rounded(&gradients.buffer, count, v);
                &rounded
            }
        };
        let starts = self.upload(&starts_within(into.sequences, first, count));
        let sequences = starts.bytes() / 4 - 1;
        if let Some((dw, start)) = &mut into.dw {
            let gradient = Gradient { dy: d, n: v, dw: f32s_mut(dw), start: *start };
            self.backward_w(precision, (x, width), parts, (&starts, sequences), vec![gradient]);
            *start = Start::Continue;
        }
        let numbers = numbers_mut(into.dx);
        let offset = first * width * numbers.dtype.bytes();
        let dx = Output { numbers, offset, start: Start::Zero };
        self.backward_x(precision, parts, &[Term { dy: d, w, n: v }], (dx, width));
    }
}

/// Where the sequences of some of the rows begin, counted from the first of these.
fn starts_within(sequences: &[u32], first: usize, count: usize) -> Vec<u32> {
    let inside =
        sequences.iter().map(|start| *start as usize).filter(|start| (first + 1..first + count).contains(start));
    [first].into_iter().chain(inside).chain([first + count]).map(|row| (row - first) as u32).collect()
}

/// The rows of all blocks of up to so many that their logits fit [`LOGITS`]. A block that ends inside a sequence does
/// so where a step of weight gradients does.
fn blocks(sequences: &[u32], tokens: usize, v: usize) -> Vec<(usize, usize)> {
    let most = (LOGITS / v.max(1)).max(STEP);
    let (mut blocks, mut first) = (Vec::new(), 0);
    while first < tokens {
        let mut end = (first + most).min(tokens);
        if end < tokens {
            let start = sequences.iter().map(|start| *start as usize).filter(|start| *start <= end).max().unwrap_or(0);
            end = (start + (end - start) / STEP * STEP).max(first + 1);
        }
        blocks.push((first, end - first));
        first = end;
    }
    blocks
}

impl Head for Cuda {
    fn head_loss(
        &self,
        precision: Precision,
        x: &Tensor,
        w: WeightRef,
        cap: Option<f32>,
        targets: &[u32],
        logp: &mut Tensor,
        mut gradients: Option<HeadGradients>,
    ) {
        let (w, v, w_cols) = matrix(w);
        check(targets, x, (v, w_cols));
        assert_eq!(logp.len(), targets.len(), "{logp:?} of {} targets", targets.len());
        let plain = match w {
            Matrix::Plain(w) => Some(w),
            Matrix::Packed(_) => None,
        };
        assert!(plain.is_some() || gradients.is_none(), "gradients of packed weights");
        let none = Coefficient::Uniform(0.0);
        let loss = Loss::of(self, gradients.as_ref().map_or(&none, |it| &it.coefficient), targets.len());
        let targets_there = self.upload(targets);
        let blocks = blocks(gradients.as_ref().map_or(&[], |it| &it.sequences[..]), targets.len(), v);
        let mut logits = self.largest(Dtype::F32, &blocks, v);
        let mut slopes = cap.filter(|_| gradients.is_some()).map(|_| self.largest(Dtype::F32, &blocks, v));
        let rounds = gradients.is_some()
            && cap.is_none()
            && Cuda::on_tensor_cores(precision, x.dtype(), &Parts::one(targets.len()));
        let mut rounded = rounds.then(|| self.largest(Dtype::Bf16, &blocks, v));
        if let (Some(it), true) = (&mut gradients, targets.is_empty())
            && let Some((dw, Start::Zero)) = &mut it.dw
        {
            dw.fill(0.0);
        }
        for rows in blocks {
            let block = self.block(x, rows, v);
            self.logits(precision, &block, w, &mut logits);
            self.cap_logits(&block, cap, &mut logits, slopes.as_mut());
            let to = gradients.as_ref().map(|_| rounded.as_mut().map_or(RowGradients::InPlace, RowGradients::Rounded));
            self.head_rows(&block, &mut logits, &targets_there, logp, (&loss, to));
            if let (Some(it), Some(w)) = (&mut gradients, plain) {
                self.flatten(&block, slopes.as_ref(), &mut logits);
                self.head_gradients(precision, rounded.as_ref().unwrap_or(&logits), (&block, w), it);
            }
        }
    }

    fn distil_loss(
        &self,
        precision: Precision,
        x: &Tensor,
        w: &Tensor,
        cap: Option<f32>,
        targets: &[u32],
        taught: &TeacherHead,
        [logp, divergence]: [&mut Tensor; 2],
        mut gradients: HeadGradients,
    ) {
        let v = w.rows();
        check(targets, x, (v, w.cols()));
        let (teacher, teacher_v, teacher_d) = matrix(taught.head);
        assert_eq!((teacher_v, teacher_d), (v, taught.states.cols()), "a teacher's head for {:?}", taught.states);
        assert_eq!(taught.states.rows(), targets.len(), "{:?} of {} targets", taught.states, targets.len());
        assert_eq!((logp.len(), divergence.len()), (targets.len(), targets.len()), "what is seen of the targets");
        let loss = Loss::of(self, &gradients.coefficient, targets.len());
        let targets_there = self.upload(targets);
        let blocks = blocks(gradients.sequences, targets.len(), v);
        let [mut logits, mut of_teacher] = [(); 2].map(|()| self.largest(Dtype::F32, &blocks, v));
        if let (Some((dw, Start::Zero)), true) = (&mut gradients.dw, targets.is_empty()) {
            dw.fill(0.0);
        }
        let mut slopes = cap.map(|_| self.largest(Dtype::F32, &blocks, v));
        let reverse = usize::from(taught.divergence == Divergence::Reverse);
        for rows in blocks {
            let (block, states) = (self.block(x, rows, v), self.block(taught.states, rows, v));
            self.logits(precision, &block, Matrix::Plain(numbers(w)), &mut logits);
            self.cap_logits(&block, cap, &mut logits, slopes.as_mut());
            self.logits(precision, &states, teacher, &mut of_teacher);
            self.cap_logits(&states, taught.cap, &mut of_teacher, None);
            let launch = self.launch("distil_rows").blocks(block.count, 1, 1).shared(THREADS * 4);
            let launch = launch.write(&mut logits.buffer).read(&of_teacher.buffer).read(&targets_there);
            let launch = launch.write(f32s_mut(logp)).write(f32s_mut(divergence));
            let launch = launch.int(block.first).int(v).int(reverse);
            loss.with(launch.float(taught.temperature).float(taught.cross_entropy)).run();
            self.flatten(&block, slopes.as_ref(), &mut logits);
            self.head_gradients(precision, &logits, (&block, numbers(w)), &mut gradients);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_end_with_a_sequence_or_a_step_of_one() {
        let (v, most) = (LOGITS / 100, 100);
        assert_eq!(blocks(&[0, 30, 40], 40, v), [(0, 40)]);
        assert_eq!(blocks(&[0, 30, 250], 250, v), [(0, 94), (94, 64), (158, 92)]);
        assert_eq!(blocks(&[0, 100, 130], 130, v), [(0, most), (most, 30)]);
        assert_eq!(blocks(&[], 0, v), []);
        assert_eq!(starts_within(&[0, 30, 250], 0, 94), [0, 30, 94]);
        assert_eq!(starts_within(&[0, 30, 250], 94, 64), [0, 64]);
        assert_eq!(starts_within(&[0, 30, 250], 30, 220), [0, 220]);
    }
}
