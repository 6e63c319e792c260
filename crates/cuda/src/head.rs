//! The output head with its loss: logits of some tokens at a time, which become their gradients where they lie.

use wels_device::{
    Coefficient, Divergence, Head, HeadGradients, IGNORE, Precision, Start, TeacherHead, Tensor, WeightRef,
};

use crate::Cuda;
use crate::launch::{Buffer, Launch};
use crate::memory::{f32s, f32s_mut};
use crate::products::Parts;
use crate::weights::{self, Stack};

/// Logits that are held at a time.
const LOGITS: usize = 16 << 20;
/// Threads that work on a row of logits.
const THREADS: usize = 256;

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

/// A matrix that logits come from.
#[derive(Clone, Copy)]
enum Weight<'a> {
    Plain(&'a Buffer),
    Packed(&'a Stack),
}

impl<'a> Weight<'a> {
    fn of(w: WeightRef<'a>) -> (Weight<'a>, usize, usize) {
        match w {
            WeightRef::Plain(w) => (Weight::Plain(f32s(w)), w.rows(), w.cols()),
            WeightRef::Packed(w) => {
                assert_eq!(w.count(), 1, "{w:?} where one matrix is expected");
                (Weight::Packed(weights::stack(w)), w.rows(), w.cols())
            }
        }
    }
}

fn check(targets: &[u32], x: &Tensor, (v, d): (usize, usize)) {
    assert_eq!((x.rows(), x.cols()), (targets.len(), d), "{} targets of {x:?}", targets.len());
    let beyond = targets.iter().find(|target| **target != IGNORE && **target as usize >= v);
    assert!(beyond.is_none(), "target {beyond:?} of a vocabulary of {v}");
}

/// Rows of some of the tokens of a tensor.
struct Rows<'a> {
    of: &'a Buffer,
    width: usize,
    first: usize,
    count: usize,
}

impl Cuda {
    /// `[rows, V]`.
    fn logits(&self, precision: Precision, x: Rows, w: Weight, logits: &mut Buffer, v: usize) {
        let mut part = self.temporary(x.count * x.width);
        crate::memory::done(part.copy_from(0, x.of, x.first * x.width * 4, x.count * x.width * 4));
        let parts = Parts::one(x.count);
        match w {
            Weight::Plain(w) => self.forward(precision, (&part, x.width), parts, (w, None), (logits, v)),
            Weight::Packed(stack) => self.forward_packed((&part, x.count, x.width), parts, stack, (logits, v)),
        }
    }

    /// Of the gradients of some rows' logits: their part of dx, and dw, which goes on.
    fn head_gradients(
        &self,
        precision: Precision,
        (logits, v): (&Buffer, usize),
        (x, w): (Rows, &Buffer),
        dx: &mut Buffer,
        dw: (&mut Buffer, Start),
    ) {
        let (parts, offset) = (Parts::one(x.count), x.first * x.width * 4);
        self.backward_x(precision, (logits, v), parts, w, (dx, x.width, Start::Zero), offset);
        self.backward_w(precision, (logits, v), (x.of, x.width, offset), parts, dw);
    }
}

/// The rows of all blocks of up to so many that their logits fit [`LOGITS`].
fn blocks(tokens: usize, v: usize) -> impl Iterator<Item = (usize, usize)> {
    let each = (LOGITS / v.max(1)).clamp(1, tokens.max(1));
    (0..tokens).step_by(each).map(move |first| (first, each.min(tokens - first)))
}

impl Head for Cuda {
    fn head_loss(
        &self,
        precision: Precision,
        x: &Tensor,
        w: WeightRef,
        targets: &[u32],
        logp: &mut Tensor,
        mut gradients: Option<HeadGradients>,
    ) {
        let (d, (w, v, w_cols)) = (x.cols(), Weight::of(w));
        check(targets, x, (v, w_cols));
        assert_eq!(logp.len(), targets.len(), "{logp:?} of {} targets", targets.len());
        let plain = match w {
            Weight::Plain(w) => Some(w),
            Weight::Packed(_) => None,
        };
        assert!(plain.is_some() || gradients.is_none(), "gradients of packed weights");
        let none = Coefficient::Uniform(0.0);
        let loss = Loss::of(self, gradients.as_ref().map_or(&none, |it| &it.coefficient), targets.len());
        let targets_there = self.upload(targets);
        let largest = blocks(targets.len(), v).map(|(_, count)| count).max().unwrap_or(0);
        let mut logits = self.temporary(largest * v);
        if let (Some(it), true) = (&mut gradients, targets.is_empty())
            && it.dw.1 == Start::Zero
        {
            it.dw.0.fill(0.0);
        }
        for (first, count) in blocks(targets.len(), v) {
            let rows = || Rows { of: f32s(x), width: d, first, count };
            self.logits(precision, rows(), w, &mut logits, v);
            let launch = self.launch("head_rows").blocks(count, 1, 1).shared(THREADS * 4).write(&mut logits);
            let launch = launch.read(&targets_there).write(f32s_mut(logp)).int(first).int(v);
            loss.with(launch.int(gradients.is_some().into())).run();
            if let (Some(it), Some(w)) = (&mut gradients, plain) {
                let (dw, start) = (f32s_mut(it.dw.0), it.dw.1);
                self.head_gradients(precision, (&logits, v), (rows(), w), f32s_mut(it.dx), (dw, start));
                it.dw.1 = Start::Continue;
            }
        }
    }

    fn distil_loss(
        &self,
        precision: Precision,
        x: &Tensor,
        w: &Tensor,
        targets: &[u32],
        taught: &TeacherHead,
        [logp, divergence]: [&mut Tensor; 2],
        mut gradients: HeadGradients,
    ) {
        let (d, v) = (x.cols(), w.rows());
        check(targets, x, (v, w.cols()));
        let (teacher, teacher_v, teacher_d) = Weight::of(taught.head);
        assert_eq!((teacher_v, teacher_d), (v, taught.states.cols()), "a teacher's head for {:?}", taught.states);
        assert_eq!(taught.states.rows(), targets.len(), "{:?} of {} targets", taught.states, targets.len());
        assert_eq!((logp.len(), divergence.len()), (targets.len(), targets.len()), "what is seen of the targets");
        let loss = Loss::of(self, &gradients.coefficient, targets.len());
        let targets_there = self.upload(targets);
        let largest = blocks(targets.len(), v).map(|(_, count)| count).max().unwrap_or(0);
        let (mut logits, mut of_teacher) = (self.temporary(largest * v), self.temporary(largest * v));
        if targets.is_empty() && gradients.dw.1 == Start::Zero {
            gradients.dw.0.fill(0.0);
        }
        let reverse = usize::from(taught.divergence == Divergence::Reverse);
        for (first, count) in blocks(targets.len(), v) {
            let rows = || Rows { of: f32s(x), width: d, first, count };
            self.logits(precision, rows(), Weight::Plain(f32s(w)), &mut logits, v);
            let states = Rows { of: f32s(taught.states), width: teacher_d, first, count };
            self.logits(precision, states, teacher, &mut of_teacher, v);
            let launch = self.launch("distil_rows").blocks(count, 1, 1).shared(THREADS * 4).write(&mut logits);
            let launch = launch.read(&of_teacher).read(&targets_there).write(f32s_mut(logp));
            let launch = launch.write(f32s_mut(divergence)).int(first).int(v).int(reverse);
            loss.with(launch.float(taught.temperature).float(taught.cross_entropy)).run();
            let dw = (f32s_mut(gradients.dw.0), gradients.dw.1);
            self.head_gradients(precision, (&logits, v), (rows(), f32s(w)), f32s_mut(gradients.dx), dw);
            gradients.dw.1 = Start::Continue;
        }
    }
}
