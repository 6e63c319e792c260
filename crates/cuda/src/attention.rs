//! Causal attention over packed sequences: where its kernels are chosen.
//!
//! Operands in f32 go to `plain`, which has the processor's bits. Operands in bf16 go to `tensor_cores` where it has
//! kernels of their widths and there is no window, cap or sink, else they are widened, go to `plain`, and the results
//! are rounded. The choice is made by widths, columns, window, cap, sinks and the card, never by the number of tokens:
//! each has bits of its own, and a row's result is not to depend on its batch. Attention over pages (`crate::paged`)
//! chooses by the widths, the window, the cap, the sinks and the queries, whose columns lie in pieces of 16 bytes where
//! those of keys and values do.

pub(crate) mod plain;
pub(crate) mod tensor_cores;

use wels_device::{AttentionGradients, AttentionInputs, AttentionShape, ColumnHeads, Dtype, Ids, Tensor};

use crate::Cuda;

/// The widths of an attention: of a head's own part of a key, of the part that all share, of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Widths {
    pub own: usize,
    pub shared: usize,
    pub v: usize,
}

impl Widths {
    fn of(inputs: &AttentionInputs) -> Widths {
        let shared = inputs.k_shared.map_or(0, |part| part.dim);
        assert_eq!(inputs.q.dim, inputs.k.dim + shared, "queries as wide as keys of {} and {shared}", inputs.k.dim);
        Widths { own: inputs.k.dim, shared, v: inputs.v.dim }
    }

    /// Of a query.
    pub fn qk(&self) -> usize {
        self.own + self.shared
    }
}

/// One attention over packed sequences, checked.
#[derive(Clone, Copy)]
pub(crate) struct Packed<'a> {
    pub shape: AttentionShape,
    pub widths: Widths,
    pub starts: &'a Ids,
    pub tokens: usize,
    pub inputs: AttentionInputs<'a>,
}

impl<'a> Packed<'a> {
    fn of(shape: AttentionShape, starts: &'a Ids, inputs: AttentionInputs<'a>) -> Packed<'a> {
        let tokens = starts.last().map_or(0, |end| *end as usize);
        assert!(starts.is_sorted() && starts.first() == Some(&0), "sequences begin at {starts:?}");
        assert!(shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads), "heads of {shape:?}");
        check(&inputs.q, shape.heads, tokens);
        check(&inputs.k, shape.kv_heads, tokens);
        check(&inputs.v, shape.kv_heads, tokens);
        inputs.k_shared.iter().for_each(|part| check(part, 1, tokens));
        inputs.sinks.iter().for_each(|sinks| assert_eq!(sinks.len(), shape.heads, "sinks {sinks:?} of {shape:?}"));
        Packed { shape, widths: Widths::of(&inputs), starts, tokens, inputs }
    }
}

/// Checks that `count` heads are inside the rows, of which there are `tokens`.
pub(crate) fn check(part: &ColumnHeads, count: usize, tokens: usize) {
    let end = part.offset + (count - 1) * part.head_stride + part.dim;
    assert!(end <= part.of.cols(), "{count} heads of {} in {:?}", part.dim, part.of);
    assert!(part.of.rows() >= tokens, "{tokens} rows of {:?}", part.of);
}

/// The parts of the operands: queries, keys, values, and what keys share.
pub(crate) fn parts<'a>(inputs: &AttentionInputs<'a>) -> impl Iterator<Item = ColumnHeads<'a>> + use<'a> {
    [inputs.q, inputs.k, inputs.v].into_iter().chain(inputs.k_shared)
}

/// The number format that all operands have.
pub(crate) fn dtype_of(inputs: &AttentionInputs) -> Dtype {
    let dtype = inputs.q.of.dtype();
    for part in parts(inputs) {
        assert_eq!(part.of.dtype(), dtype, "{:?} beside queries {:?}", part.of, inputs.q.of);
    }
    dtype
}

/// Operands in f32 that were bf16.
pub(crate) struct Widened {
    q: Tensor,
    k: Tensor,
    k_shared: Option<Tensor>,
    v: Tensor,
}

impl Widened {
    pub fn of(cuda: &Cuda, inputs: &AttentionInputs) -> Widened {
        let [q, k, v] = [inputs.q, inputs.k, inputs.v].map(|part| cuda.widened(part.of));
        Widened { q, k, k_shared: inputs.k_shared.map(|part| cuda.widened(part.of)), v }
    }

    /// In the places of the operands.
    pub fn inputs<'a>(&'a self, of: &AttentionInputs<'a>) -> AttentionInputs<'a> {
        let k_shared = of.k_shared.zip(self.k_shared.as_ref()).map(|(part, wide)| ColumnHeads { of: wide, ..part });
        AttentionInputs {
            q: ColumnHeads { of: &self.q, ..of.q },
            k: ColumnHeads { of: &self.k, ..of.k },
            k_shared,
            v: ColumnHeads { of: &self.v, ..of.v },
            sinks: of.sinks,
            chosen: None,
        }
    }
}

impl Cuda {
    /// `out[T, H·v]` in the operands' format, and `stats[T, H·2]` in f32 for the backward pass: what they are is up to
    /// the kernels.
    pub(crate) fn attend_packed(
        &self,
        shape: AttentionShape,
        starts: &Ids,
        inputs: AttentionInputs,
        out: &mut Tensor,
        stats: &mut Tensor,
    ) {
        assert!(inputs.chosen.is_none(), "cards have no attention to chosen keys");
        let it = Packed::of(shape, starts, inputs);
        assert_eq!((out.rows(), out.cols()), (it.tokens, shape.heads * it.widths.v), "{out:?} of {} tokens", it.tokens);
        assert_eq!(stats.len(), it.tokens * shape.heads * 2, "{stats:?} of {} tokens", it.tokens);
        if dtype_of(&inputs) == Dtype::F32 {
            return self.plain_forward(&it, out, stats);
        }
        if let Some(kernels) = self.tensor_kernels(&it) {
            return self.tensor_forward(kernels, &it, out, stats);
        }
        let wide = Widened::of(self, &inputs);
        let mut wide_out = self.wide_like(out);
        self.plain_forward(&Packed { inputs: wide.inputs(&inputs), ..it }, &mut wide_out, stats);
        self.narrow(&wide_out, out);
    }

    /// Backward of [`Cuda::attend_packed`], by the kernels that it chose. Columns that are no head's stay as they were.
    pub(crate) fn attend_packed_backward(
        &self,
        shape: AttentionShape,
        starts: &Ids,
        inputs: AttentionInputs,
        saved: [&Tensor; 3],
        gradients: AttentionGradients,
    ) {
        let it = Packed::of(shape, starts, inputs);
        let ([out, _, d_out], len) = (saved, it.tokens * shape.heads * it.widths.v);
        assert_eq!((out.len(), d_out.len()), (len, len), "{out:?} and {d_out:?}");
        check_gradients(&inputs, &gradients);
        if dtype_of(&inputs) == Dtype::F32 {
            return self.plain_backward(&it, saved, gradients);
        }
        match self.tensor_kernels(&it) {
            Some(kernels) => self.tensor_backward(kernels, &it, saved, gradients),
            None => self.widened_backward(&it, saved, gradients),
        }
    }

    fn tensor_kernels(&self, it: &Packed) -> Option<&'static tensor_cores::Kernels> {
        let kernels = self.attention_kernels(it.shape, it.widths, parts(&it.inputs));
        kernels.filter(|_| it.inputs.sinks.is_none())
    }

    fn widened_backward(&self, it: &Packed, [out, stats, d_out]: [&Tensor; 3], gradients: AttentionGradients) {
        let wide = Widened::of(self, &it.inputs);
        let (wide_out, wide_d_out) = (self.widened(out), self.widened(d_out));
        let AttentionGradients { q, k, k_shared, v } = gradients;
        let (mut wide_q, mut wide_k) = (self.widened(q), self.widened(k));
        let mut wide_shared = k_shared.as_deref().map(|d| self.widened(d));
        let mut wide_v = v.as_deref().map(|d| self.widened(d));
        let into =
            AttentionGradients { q: &mut wide_q, k: &mut wide_k, k_shared: wide_shared.as_mut(), v: wide_v.as_mut() };
        let it = Packed { inputs: wide.inputs(&it.inputs), ..*it };
        self.plain_backward(&it, [&wide_out, stats, &wide_d_out], into);
        self.narrow(&wide_q, q);
        self.narrow(&wide_k, k);
        for (wide, narrow) in [(wide_shared, k_shared), (wide_v, v)] {
            if let Some((wide, narrow)) = wide.zip(narrow) {
                self.narrow(&wide, narrow);
            }
        }
    }
}

fn check_gradients(inputs: &AttentionInputs, gradients: &AttentionGradients) {
    let same = |part: ColumnHeads, d: &Tensor| {
        assert_eq!((d.rows(), d.cols()), (part.of.rows(), part.of.cols()), "gradients of {:?}", part.of);
    };
    same(inputs.q, gradients.q);
    same(inputs.k, gradients.k);
    gradients.v.iter().for_each(|dv| same(inputs.v, dv));
    inputs.k_shared.zip(gradients.k_shared.as_deref()).iter().for_each(|(part, d)| same(*part, d));
}
