//! Attention over packed sequences in bf16 on tensor cores: `kernels/attention/hopper_*.cu` by wgmma and TMA, and
//! `ampere.cu` by mma.sync on all other cards. `kernels/attention/tile.cuh` states the order of sums.

use wels_device::{AttentionGradients, AttentionInputs, AttentionShape, ColumnHeads, Tensor};

use super::{Packed, Widths};
use crate::Cuda;
use crate::launch::{Buffer, Launch, MapShape};
use crate::memory::{bf16s, bf16s_mut, done, f32s, f32s_mut};
use crate::tensor_cores::{BOX, Generation};

/// Most heads that share a key-value head: rows of the smallest tile.
const MOST_GROUP: usize = 64;
/// Numbers in a piece of 16 bytes, of which rows and heads are made.
pub(crate) const PIECE: usize = 8;

/// A kernel, and its shared memory in bytes.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub name: &'static str,
    pub bytes: usize,
}

const fn kernel(name: &'static str, bytes: usize) -> Kernel {
    Kernel { name, bytes }
}

/// The kernels of one generation for some widths.
#[derive(Debug)]
pub(crate) struct Kernels {
    pub generation: Generation,
    pub widths: Widths,
    forward: Kernel,
    dq: Kernel,
    dkv: Kernel,
    /// Queries that dkv loads at a time.
    dkv_queries: usize,
    /// Over pages, with few rows in a tile, and with many; and how many these are.
    pub paged: [(Kernel, usize); 2],
}

/// In the files' order: 64, 128, 128 + 64 with values of 128 (MLA).
const WIDTHS: [Widths; 3] = [
    Widths { own: 64, shared: 0, v: 64 },
    Widths { own: 128, shared: 0, v: 128 },
    Widths { own: 128, shared: 64, v: 128 },
];

const HOPPER: [Kernels; 3] = [
    Kernels {
        generation: Generation::Hopper,
        widths: WIDTHS[0],
        forward: kernel("attention_64", 114_760),
        dq: kernel("attention_dq_64", 65_576),
        dkv: kernel("attention_dkv_64", 114_760),
        dkv_queries: 64,
        paged: [(kernel("paged_64", 139_264), 64), (kernel("paged_chunk_64", 147_456), 128)],
    },
    Kernels {
        generation: Generation::Hopper,
        widths: WIDTHS[1],
        forward: kernel("attention_128", 229_448),
        dq: kernel("attention_dq_128", 131_112),
        dkv: kernel("attention_dkv_128", 213_064),
        dkv_queries: 64,
        paged: [(kernel("paged_128", 212_992), 64), (kernel("paged_chunk_128", 229_376), 128)],
    },
    Kernels {
        generation: Generation::Hopper,
        widths: WIDTHS[2],
        forward: kernel("attention_192_128", 213_064),
        dq: kernel("attention_dq_192_128", 163_880),
        dkv: kernel("attention_dkv_192_128", 172_104),
        dkv_queries: 32,
        paged: [(kernel("paged_192_128", 188_416), 64), (kernel("paged_chunk_192_128", 212_992), 128)],
    },
];

const AMPERE: [Kernels; 3] = [
    Kernels {
        generation: Generation::Ampere,
        widths: WIDTHS[0],
        forward: kernel("attention80_64", 57_344),
        dq: kernel("attention80_dq_64", 49_152),
        dkv: kernel("attention80_dkv_64", 32_768),
        dkv_queries: 32,
        paged: [(kernel("paged80_64", 40_960), 64), (kernel("paged80_64", 40_960), 64)],
    },
    Kernels {
        generation: Generation::Ampere,
        widths: WIDTHS[1],
        forward: kernel("attention80_128", 114_688),
        dq: kernel("attention80_dq_128", 98_304),
        dkv: kernel("attention80_dkv_128", 65_536),
        dkv_queries: 32,
        paged: [(kernel("paged80_128", 81_920), 64), (kernel("paged80_128", 81_920), 64)],
    },
    Kernels {
        generation: Generation::Ampere,
        widths: WIDTHS[2],
        forward: kernel("attention80_192_128", 106_496),
        dq: kernel("attention80_dq_192_128", 122_880),
        dkv: kernel("attention80_dkv_192_128", 81_920),
        dkv_queries: 32,
        paged: [(kernel("paged80_192_128", 106_496), 64), (kernel("paged80_192_128", 106_496), 64)],
    },
];

impl Kernels {
    fn most_bytes(&self) -> usize {
        let paged = self.paged.iter().map(|(kernel, _)| kernel.bytes);
        paged.chain([self.forward.bytes, self.dq.bytes, self.dkv.bytes]).max().unwrap_or_default()
    }

    fn threads(&self) -> usize {
        match self.generation {
            Generation::Hopper => 384,
            Generation::Ampere => 128,
        }
    }

    /// Rows of a block in the backward pass, and on Hopper in the forward pass too.
    fn rows(&self) -> usize {
        match self.generation {
            Generation::Hopper => 128,
            Generation::Ampere => 64,
        }
    }
}

/// As in `pages.cuh`: positions of a tile of so many rows, each position having a row for each head of a group.
pub(crate) fn positions_of(rows: usize, group: usize) -> usize {
    assert!((1..=rows).contains(&group), "{group} heads in a tile of {rows} rows");
    let most = rows / group;
    1 << most.ilog2()
}

/// Tiles of `rows` tokens of all sequences.
fn tiles(starts: &[u32], rows: usize) -> usize {
    starts.windows(2).map(|pair| ((pair[1] - pair[0]) as usize).div_ceil(rows)).sum()
}

/// Whether a part is made of pieces of 16 bytes.
pub(crate) fn in_pieces(part: &ColumnHeads) -> bool {
    [part.of.cols(), part.offset, part.head_stride, part.dim].iter().all(|size| size.is_multiple_of(PIECE))
}

/// The numbers of a kernel's arguments that `AttentionArgs` holds.
fn with_places<'a>(launch: Launch<'a>, it: &Packed, starts: &'a Buffer) -> Launch<'a> {
    let Packed { shape, tokens, inputs, .. } = *it;
    let AttentionInputs { q, k, k_shared, v, .. } = inputs;
    let launch = launch.read(starts).int(it.starts.len() - 1).int(tokens).int(shape.heads);
    let launch = launch.int(shape.heads / shape.kv_heads).int(q.offset).int(q.head_stride);
    let launch = launch.int(k.offset).int(k.head_stride).int(k_shared.map_or(0, |part| part.offset));
    launch.int(v.offset).int(v.head_stride).float(shape.scale)
}

/// Numbers of each head and token for dkv: as pointers, or as maps of the rows of `attention_shift`, each f32 standing
/// for two columns.
fn with_stats<'a>(launch: Launch<'a>, kernels: &Kernels, stats: [&'a Buffer; 2], stride: usize) -> Launch<'a> {
    let cols = u32::try_from(2 * stride).expect("statistics that fit a map");
    let shape = MapShape { rows: 4, cols, stride: cols, box_rows: 1, box_cols: BOX as u32 };
    stats.into_iter().fold(launch, |launch, of| match kernels.generation {
        Generation::Hopper => launch.map(done(of.map(shape)), of),
        Generation::Ampere => launch.read(of),
    })
}

/// Numbers of a row of `attention_shift` of so many.
fn shifted_stride(len: usize) -> usize {
    (len + 3).next_multiple_of(4)
}

impl Cuda {
    /// Shared memory that a block may have on this card, in bytes.
    pub(crate) fn shared_limit(&self) -> usize {
        match self.driver.capability() {
            (8, 0 | 7) => 163 << 10,
            (9..=11, _) => 227 << 10,
            _ => 99 << 10,
        }
    }

    /// The kernels for such operands, if there are any: there are none with a window or a cap.
    pub(crate) fn attention_kernels<'a>(
        &self,
        shape: AttentionShape,
        widths: Widths,
        mut parts: impl Iterator<Item = ColumnHeads<'a>>,
    ) -> Option<&'static Kernels> {
        if shape.window.is_some() || shape.cap.is_some() {
            return None;
        }
        let all = match self.generation() {
            Generation::Hopper => &HOPPER,
            Generation::Ampere => &AMPERE,
        };
        let kernels = all.iter().find(|kernels| kernels.widths == widths)?;
        let fit = shape.heads / shape.kv_heads <= MOST_GROUP && kernels.most_bytes() <= self.shared_limit();
        (fit && parts.all(|part| in_pieces(&part))).then_some(kernels)
    }

    /// q, k, shared, v, and d_out where it is there: maps with boxes of so many queries and keys, or pointers and the
    /// lengths of their rows.
    fn with_operands<'a>(
        &self,
        launch: Launch<'a>,
        kernels: &Kernels,
        it: &Packed<'a>,
        d_out: Option<&'a Tensor>,
        [queries, keys]: [usize; 2],
    ) -> Launch<'a> {
        let AttentionInputs { q, k, k_shared, v, .. } = it.inputs;
        let operands = [(q.of, queries), (k.of, keys), (k_shared.unwrap_or(k).of, keys), (v.of, keys)];
        let operands = operands.into_iter().map(|(of, rows)| (of, of.cols(), rows));
        let out_cols = it.shape.heads * it.widths.v;
        let operands = operands.chain(d_out.map(|of| (of, out_cols, queries)));
        match kernels.generation {
            Generation::Hopper => operands.fold(launch, |launch, (of, cols, rows)| {
                launch.map(self.map(bf16s(of), it.tokens, cols, rows), bf16s(of))
            }),
            Generation::Ampere => {
                let launch = operands.clone().fold(launch, |launch, (of, ..)| launch.read(bf16s(of)));
                operands.fold(launch, |launch, (_, cols, _)| launch.int(cols))
            }
        }
    }

    /// `out[T, H·v]` in bf16; of `stats` the first half becomes the log-sum-exps `[H, T]` in powers of two, and the
    /// second zeros.
    pub(super) fn tensor_forward(&self, kernels: &Kernels, it: &Packed, out: &mut Tensor, stats: &mut Tensor) {
        if it.tokens == 0 {
            return; // TMA knows no matrix without rows
        }
        let Packed { shape, starts, .. } = *it;
        let (columns, stats_len) = (out.cols(), stats.len());
        done(f32s_mut(stats).fill(0, stats_len));
        let blocks = match kernels.generation {
            Generation::Hopper => (shape.heads, tiles(starts, kernels.rows())),
            Generation::Ampere => {
                let positions = positions_of(kernels.rows(), shape.heads / shape.kv_heads);
                (shape.kv_heads, tiles(starts, positions))
            }
        };
        let launch = self.launch(kernels.forward.name).threads(kernels.threads()).blocks(blocks.0, blocks.1, 1);
        let launch = self.with_operands(launch.shared(kernels.forward.bytes), kernels, it, None, [128, 128]);
        let launch = launch.write(bf16s_mut(out)).int(columns).write(f32s_mut(stats));
        with_places(launch, it, &self.ids(starts).list).run();
    }

    /// The four rows of `attention_shift`.
    fn shifted(&self, of: &Buffer, len: usize) -> Buffer {
        let stride = shifted_stride(len);
        let mut rows = self.temporary(4 * stride);
        let launch = self.launch("attention_shift").over(stride).read(of).write(&mut rows);
        launch.int(len).int(stride).run();
        rows
    }

    /// Backward of [`Cuda::tensor_forward`], in two passes: queries, then keys and values.
    pub(super) fn tensor_backward(
        &self,
        kernels: &Kernels,
        it: &Packed,
        [out, stats, d_out]: [&Tensor; 3],
        gradients: AttentionGradients,
    ) {
        if it.tokens == 0 {
            return;
        }
        let Packed { shape, widths, starts, tokens, .. } = *it;
        let AttentionGradients { q: dq, k: dk, k_shared: d_shared, v: dv } = gradients;
        let list = &self.ids(starts).list;
        let (threads, tiles) = (kernels.threads(), tiles(starts, kernels.rows()));
        let delta_len = tokens * shape.heads;
        let mut delta = self.temporary(delta_len);
        let launch = self.launch("attention_delta_bf16").blocks((tokens * shape.heads).div_ceil(8), 1, 1);
        let launch = launch.read(bf16s(out)).read(bf16s(d_out)).write(&mut delta);
        launch.int(tokens).int(shape.heads).int(widths.v).run();

        let launch = self.launch(kernels.dq.name).threads(threads).blocks(shape.heads, tiles, 1);
        let launch = self.with_operands(launch.shared(kernels.dq.bytes), kernels, it, Some(d_out), [128, 64]);
        let columns = dq.cols();
        let launch = launch.read(f32s(stats)).read(&delta).write(bf16s_mut(dq)).int(columns);
        with_places(launch, it, list).run();

        let shifted = (kernels.generation == Generation::Hopper)
            .then(|| [f32s(stats), &delta].map(|of| self.shifted(of, delta_len)));
        let mut shared_sums = self.temporary(tokens * shape.kv_heads * widths.shared);
        let launch = self.launch(kernels.dkv.name).threads(threads).blocks(shape.kv_heads, tiles, 1);
        let boxes = [kernels.dkv_queries, 128];
        let launch = self.with_operands(launch.shared(kernels.dkv.bytes), kernels, it, Some(d_out), boxes);
        let launch = match &shifted {
            Some([lse, delta]) => with_stats(launch, kernels, [lse, delta], shifted_stride(delta_len)),
            None => with_stats(launch, kernels, [f32s(stats), &delta], 0),
        };
        let k_columns = dk.cols();
        let launch = match dv {
            Some(dv) => {
                let v_columns = dv.cols();
                launch.write(bf16s_mut(dk)).write(bf16s_mut(dv)).int(k_columns).int(v_columns)
            }
            None => launch.write_both(bf16s_mut(dk), [0, 0]).int(k_columns).int(k_columns),
        };
        with_places(launch.write(&mut shared_sums), it, list).run();
        if let (Some(part), Some(d_shared)) = (it.inputs.k_shared, d_shared) {
            let columns = d_shared.cols();
            let launch = self.launch("attention_shared_bf16").over(tokens * widths.shared).read(&shared_sums);
            let launch = launch.write(bf16s_mut(d_shared)).int(tokens).int(shape.kv_heads);
            launch.int(widths.shared).int(part.offset).int(columns).run();
        }
    }
}
