//! Attention over packed sequences in f32, to the bits of the processor: `kernels/attention/plain.cu`.

use wels_device::{AttentionGradients, AttentionInputs, AttentionShape, ColumnHeads, Tensor};

use super::{Packed, Widths};
use crate::Cuda;
use crate::launch::{Buffer, Launch};
use crate::memory::{f32s, f32s_mut};

/// Queries of a tile, and keys that are looked at together.
pub(crate) const QUERIES: usize = 8;
const KEYS: usize = 16;
/// Threads of a block: a query and a key each.
pub(crate) const THREADS: usize = QUERIES * KEYS;

/// Tiles of up to eight tokens, each of one sequence.
struct Tiles {
    count: usize,
    /// First token of the sequence, first of the tile, how many.
    tiles: Buffer,
    /// End of the sequence.
    ends: Buffer,
}

impl Tiles {
    fn of(cuda: &Cuda, starts: &[u32]) -> Tiles {
        let (mut tiles, mut ends) = (Vec::new(), Vec::new());
        for pair in starts.windows(2) {
            for first in (pair[0]..pair[1]).step_by(QUERIES) {
                tiles.extend([pair[0], first, (pair[1] - first).min(QUERIES as u32)]);
                ends.push(pair[1]);
            }
        }
        Tiles { count: ends.len(), tiles: cuda.upload(&tiles), ends: cuda.upload(&ends) }
    }
}

impl Widths {
    /// Shared memory of `attend`.
    pub fn forward_bytes(&self) -> usize {
        let (qk, v) = (self.qk(), self.v);
        (QUERIES * qk + KEYS * (qk + 1) + KEYS * v + QUERIES * v + THREADS) * 4
    }

    fn dq_bytes(&self) -> usize {
        let (qk, v) = (self.qk(), self.v);
        (2 * QUERIES * qk + QUERIES * v + KEYS * (qk + 1) + KEYS * (v + 1) + THREADS) * 4
    }

    fn dkv_bytes(&self) -> usize {
        let (qk, v) = (self.qk(), self.v);
        (2 * QUERIES * (qk + v) + KEYS * (qk + 1) + KEYS * (v + 1) + 2 * THREADS) * 4
    }

    pub fn with<'a>(&self, launch: Launch<'a>) -> Launch<'a> {
        launch.int(self.own).int(self.shared).int(self.v)
    }
}

/// A part as three arguments: where its first head begins, from row to row, from head to head.
pub(crate) fn with_heads<'a>(launch: Launch<'a>, part: ColumnHeads<'a>) -> Launch<'a> {
    launch.read_at(f32s(part.of), part.offset * 4).int(part.of.cols()).int(part.head_stride)
}

/// The part that all heads share, as two arguments.
pub(crate) fn with_shared<'a>(launch: Launch<'a>, part: Option<ColumnHeads<'a>>) -> Launch<'a> {
    match part {
        Some(part) => launch.read_at(f32s(part.of), part.offset * 4).int(part.of.cols()),
        None => launch.read_if(None).int(0),
    }
}

fn with_inputs<'a>(launch: Launch<'a>, inputs: &AttentionInputs<'a>) -> Launch<'a> {
    let launch = with_heads(with_heads(launch, inputs.q), inputs.k);
    with_heads(with_shared(launch, inputs.k_shared), inputs.v)
}

/// How many keys a query attends to, as the kernels have it.
pub(crate) fn window_of(shape: AttentionShape) -> usize {
    const ALL_KEYS: usize = 1 << 30;
    assert!(shape.window != Some(0), "a window of no keys");
    shape.window.map_or(ALL_KEYS, |window| window.min(ALL_KEYS))
}

/// What scores are capped at, as the kernels have it.
pub(crate) fn cap_of(shape: AttentionShape) -> f32 {
    assert!(shape.cap.is_none_or(|cap| cap > 0.0), "a cap of {:?}", shape.cap);
    shape.cap.unwrap_or(0.0)
}

fn with_shape<'a>(launch: Launch<'a>, shape: AttentionShape, widths: Widths) -> Launch<'a> {
    let launch = launch.float(shape.scale).float(cap_of(shape)).int(shape.heads).int(shape.kv_heads);
    widths.with(launch.int(window_of(shape)))
}

impl Cuda {
    /// `out[T, H·v]`, and of each query and head the greatest score and one over the sum of the weights.
    pub(super) fn plain_forward(&self, it: &Packed, out: &mut Tensor, stats: &mut Tensor) {
        let Packed { shape, widths, starts, inputs, .. } = *it;
        let tiles = self.ids(starts).derived(|| Tiles::of(self, starts));
        let launch = self.launch("attention_forward").threads(THREADS).blocks(tiles.count, shape.heads, 1);
        let launch = with_inputs(launch.shared(widths.forward_bytes()), &inputs).read(&tiles.tiles);
        let launch = launch.read_if(inputs.sinks.map(f32s));
        with_shape(launch, shape, widths).write(f32s_mut(out)).write(f32s_mut(stats)).run();
    }

    /// What each query adds to the gradients of the sinks, after [`Cuda::plain_forward`].
    pub(crate) fn plain_sink_terms(&self, sinks: &Tensor, [out, stats, d_out]: [&Tensor; 3], terms: &mut Tensor) {
        let (heads, len) = (sinks.len(), terms.len());
        let launch = self.launch("attention_sink_terms").over(len * 16).read(f32s(sinks)).read(f32s(out));
        let launch = launch.read(f32s(d_out)).read(f32s(stats)).write(f32s_mut(terms));
        launch.int(heads).int(out.len() / len.max(1)).long(len).run();
    }

    /// Backward of [`Cuda::plain_forward`], in two passes: queries, then keys and values.
    pub(super) fn plain_backward(&self, it: &Packed, [out, stats, d_out]: [&Tensor; 3], gradients: AttentionGradients) {
        let Packed { shape, widths, starts, tokens, inputs } = *it;
        let AttentionGradients { q: dq, k: dk, k_shared: d_shared, v: dv } = gradients;
        let tiles = self.ids(starts).derived(|| Tiles::of(self, starts));
        let heads = tokens * shape.heads;
        let mut delta = self.temporary(heads);
        let launch = self.launch("attention_delta").over(heads * 16).read(f32s(out)).read(f32s(d_out));
        launch.write(&mut delta).int(widths.v).long(heads).run();
        let saved = |launch| -> Launch<'_> {
            with_shape(launch, shape, widths).read(f32s(stats)).read(&delta).read(f32s(d_out))
        };

        let launch = self.launch("attention_dq").threads(THREADS).blocks(tiles.count, shape.heads, 1);
        let launch = with_inputs(launch.shared(widths.dq_bytes()), &inputs).read(&tiles.tiles);
        saved(launch).write_at(f32s_mut(dq), inputs.q.offset * 4).run();

        let mut shared_sums = self.temporary(tokens * shape.kv_heads * widths.shared);
        let launch = self.launch("attention_dkv").threads(THREADS).blocks(tiles.count, shape.kv_heads, 1);
        let launch = with_inputs(launch.shared(widths.dkv_bytes()), &inputs).read(&tiles.tiles).read(&tiles.ends);
        let (k_at, v_at) = (inputs.k.offset * 4, inputs.v.offset * 4);
        let launch = match dv {
            Some(dv) => saved(launch).write_at(f32s_mut(dk), k_at).write_at(f32s_mut(dv), v_at),
            None => saved(launch).write_both(f32s_mut(dk), [k_at, v_at]),
        };
        launch.write(&mut shared_sums).run();
        if let (Some(part), Some(d_shared)) = (inputs.k_shared, d_shared) {
            let (cols, len) = (d_shared.cols(), tokens * widths.shared);
            let launch = self.launch("attention_shared").over(len).read(&shared_sums);
            let launch = launch.write_at(f32s_mut(d_shared), part.offset * 4);
            launch.int(cols).int(shape.kv_heads).int(widths.shared).long(len).run();
        }
    }
}
