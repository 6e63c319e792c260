//! Attention over pages in bf16 on tensor cores: `kernels/attention/hopper_paged.cu`, `hopper_latent.cu` and
//! `ampere.cu`, to the bits of the forward pass over packed sequences, or of latents in any other cut into calls.

use wels_device::{
    AttentionInputs, ColumnHeads, ExpandedQuery, KvLayout, LatentLayout, LatentQuery, PAGE, Sequence, Tensor,
};

use super::{Pages, Part, row_width};
use crate::Cuda;
use crate::attention::parts;
use crate::attention::tensor_cores::{Kernels, PIECE, in_pieces, positions_of};
use crate::launch::{Buffer, Launch};
use crate::memory::{bf16s, bf16s_mut};
use crate::tensor_cores::Generation;

/// Keys of a split; where a sequence has more, blocks share it and `attention_join` adds up.
const SPLIT: usize = 1024;
/// Widths of the kernels of latents, and how many heads share their tiles.
const LATENT: LatentLayout = LatentLayout { latent: 512, rotary: 64 };
const LATENT_HEADS: usize = 64;

/// The sequences of a call.
pub(super) struct Tables {
    /// For each, a row of its pages, of `stride` numbers.
    pages: Buffer,
    stride: usize,
    /// Tokens before the call.
    past: Buffer,
    /// First rows of the new tokens, and their end.
    starts: Buffer,
    /// Past and new tokens, of sequences that have new ones.
    counts: Vec<[usize; 2]>,
}

impl Tables {
    fn of(cuda: &Cuda, sequences: &[Sequence]) -> Tables {
        let used = |sequence: &Sequence| (sequence.past + sequence.new).div_ceil(PAGE);
        let stride = sequences.iter().map(used).max().unwrap_or_default();
        let (mut pages, mut past, mut starts) = (Vec::new(), Vec::new(), vec![0]);
        for sequence in sequences {
            pages.extend_from_slice(&sequence.pages[..used(sequence)]);
            pages.resize(pages.len() + stride - used(sequence), 0);
            past.push(sequence.past as u32);
            starts.push(starts[starts.len() - 1] + sequence.new as u32);
        }
        let counts = sequences.iter().filter(|it| it.new > 0).map(|it| [it.past, it.new]).collect();
        let [pages, past, starts] = [pages, past, starts].map(|list| cuda.upload(&list));
        Tables { pages, stride, past, starts, counts }
    }

    fn most_new(&self) -> usize {
        self.counts.iter().map(|[_, new]| *new).max().unwrap_or_default()
    }

    /// Splits of the sequence with the most tokens.
    fn splits(&self) -> usize {
        self.counts.iter().map(|[past, new]| (past + new).div_ceil(SPLIT)).max().unwrap_or(1)
    }

    /// Tiles of new tokens, at whole multiples of `positions`.
    fn tiles(&self, positions: usize) -> usize {
        self.counts.iter().map(|[past, new]| (past + new - 1) / positions - past / positions + 1).sum()
    }
}

/// Whether a layer's part of the pages is made of pieces of 16 bytes, if its rows are.
pub(super) fn reads(pages: &Pages, offset: usize) -> bool {
    pages.page_len.is_multiple_of(PIECE) && offset.is_multiple_of(PIECE)
}

/// Whether keys and values can be copied in such pieces; `inputs` has no other operands.
pub(super) fn appends(pages: &Pages, offset: usize, layout: KvLayout, inputs: &AttentionInputs) -> bool {
    let rows_fit = reads(pages, offset) && row_width(&layout).is_multiple_of(PIECE);
    rows_fit && parts(inputs).all(|part| in_pieces(&part))
}

/// Whether latents can.
pub(super) fn appends_latent(pages: &Pages, offset: usize, layout: LatentLayout) -> bool {
    reads(pages, offset) && [layout.latent, layout.rotary].iter().all(|width| width.is_multiple_of(PIECE))
}

/// Where a token's numbers are in its row: of the first head, and from head to head.
#[derive(Clone, Copy)]
struct Places {
    row: usize,
    first: usize,
    stride: usize,
}

/// The results of splits before they are joined: 512 new tokens of 32 heads of 128 behind 32,768 others take 270 MB.
struct Splits {
    count: usize,
    sums: Buffer,
    /// The greatest score and the sum of the weights.
    weights: Buffer,
}

impl Splits {
    /// Of so many results, each `width` numbers.
    fn of(cuda: &Cuda, count: usize, results: usize, width: usize) -> Splits {
        let results = if count > 1 { count * results } else { 0 };
        Splits { count, sums: cuda.temporary(results * width), weights: cuda.temporary(results * 2) }
    }
}

impl<'a> Part<'a> {
    fn tables(&self, cuda: &Cuda) -> &'a Tables {
        self.plan.tables.get_or_init(|| Tables::of(cuda, self.at.sequences))
    }
}

/// Heads, group, and where the queries are: the numbers that follow the sequences.
fn with_queries<'a>(launch: Launch<'a>, [heads, group]: [usize; 2], q: &ColumnHeads) -> Launch<'a> {
    launch.int(heads).int(group).int(q.offset).int(q.head_stride).int(q.of.cols())
}

impl Cuda {
    /// Copies `heads` heads of each new token to its pages.
    fn append_heads(&self, to: &mut Pages, part: &Part, x: ColumnHeads, heads: usize, at: Places) {
        let (tables, rows, page_len) = (part.tables(self), part.plan.new, to.page_len);
        let launch = self.launch("append_bf16").over((rows * heads * x.dim).div_ceil(PIECE)).read(bf16s(x.of));
        let launch =
            launch.int(x.of.cols()).int(x.offset).int(x.head_stride).write_at(&mut to.memory, part.at.offset * 2);
        let launch = launch.read(&tables.pages).int(tables.stride).long(page_len);
        let launch = launch.int(at.row).int(at.stride).int(at.first).read(&tables.past).read(&tables.starts);
        launch.int(part.at.sequences.len()).int(rows).int(heads).int(x.dim).run();
    }

    pub(super) fn tensor_append(&self, to: &mut Pages, part: Part, layout: KvLayout, inputs: &AttentionInputs) {
        let KvLayout { kv_heads, own, shared, v } = layout;
        let row = row_width(&layout);
        self.append_heads(to, &part, inputs.k, kv_heads, Places { row, first: 0, stride: own });
        if let Some(rotary) = inputs.k_shared {
            self.append_heads(to, &part, rotary, 1, Places { row, first: kv_heads * own, stride: 0 });
        }
        let at = Places { row, first: kv_heads * own + shared, stride: v };
        self.append_heads(to, &part, inputs.v, kv_heads, at);
    }

    pub(super) fn tensor_append_latent(
        &self,
        to: &mut Pages,
        part: Part,
        LatentLayout { latent: width, rotary: turned }: LatentLayout,
        latent: &Tensor,
        rotary: &Tensor,
    ) {
        let row = width + turned;
        let whole = |of, dim| ColumnHeads { of, offset: 0, head_stride: dim, dim };
        self.append_heads(to, &part, whole(latent, width), 1, Places { row, first: 0, stride: 0 });
        self.append_heads(to, &part, whole(rotary, turned), 1, Places { row, first: width, stride: 0 });
    }

    /// `out[T, H·v]` of the new tokens. The rows of a tile are a group's heads of some positions; how many changes no
    /// bit.
    pub(super) fn tensor_attend(
        &self,
        kernels: &Kernels,
        over: &Pages,
        part: Part,
        ExpandedQuery { shape, q, .. }: ExpandedQuery,
        out: &mut Tensor,
    ) {
        let (tables, rows, widths) = (part.tables(self), part.plan.new, kernels.widths);
        let group = shape.heads / shape.kv_heads;
        let (kernel, tile) = &kernels.paged[usize::from(tables.most_new() * group > kernels.paged[0].1)];
        let tiles = tables.tiles(positions_of(*tile, group));
        // 192/128 has no splits: it serves training and rollouts, not long contexts.
        let splits = if widths.shared == 0 { tables.splits() } else { 1 };
        let mut splits = Splits::of(self, splits, rows * shape.heads, widths.v);
        let launch = self.launch(kernel.name).threads(tile * 2).blocks(shape.kv_heads, tiles, splits.count);
        let launch = launch.shared(kernel.bytes).read(bf16s(q.of)).read_at(&over.memory, part.at.offset * 2);
        let launch = launch.write(bf16s_mut(out)).int(shape.heads * widths.v);
        let launch = launch.read(&tables.pages).int(tables.stride).long(over.page_len);
        let keys = shape.kv_heads * widths.own;
        let launch = launch.int(keys + widths.shared + shape.kv_heads * widths.v).int(widths.own);
        let launch = launch.int(0).int(keys + widths.shared).int(keys).read(&tables.past).read(&tables.starts);
        let launch = with_queries(launch.int(part.at.sequences.len()), [shape.heads, group], &q).float(shape.scale);
        launch.write(&mut splits.sums).write(&mut splits.weights).int(rows).run();
        let strides = [shape.heads * widths.v, widths.v];
        self.join(&part, &splits, [shape.heads, widths.v], shape.scale, (out, strides));
    }

    /// Joins the splits of those rows that have several.
    fn join(
        &self,
        part: &Part,
        splits: &Splits,
        [heads, width]: [usize; 2],
        scale: f32,
        (out, [row_stride, head_stride]): (&mut Tensor, [usize; 2]),
    ) {
        if splits.count <= 1 {
            return;
        }
        let (tables, rows) = (part.tables(self), part.plan.new);
        let launch = self.launch("attention_join").blocks((rows * heads).div_ceil(8), 1, 1);
        let launch = launch.read(&splits.sums).read(&splits.weights).int(rows).int(heads);
        let launch = launch.read(&tables.past).read(&tables.starts).float(scale).int(SPLIT).int(width);
        launch.write(bf16s_mut(out)).long(row_stride).long(head_stride).run();
    }

    /// Whether there is a kernel for such latents.
    pub(super) fn has_latent_kernel(&self, layout: LatentLayout, rotary: &ColumnHeads) -> bool {
        layout == LATENT && in_pieces(rotary) && self.latent_kernel().1 <= self.shared_limit()
    }

    /// The kernel of latents, its shared memory, and to how many heads it fills a tile up at least.
    fn latent_kernel(&self) -> (&'static str, usize, usize) {
        match self.generation() {
            Generation::Hopper => ("latent", 221_184, 1),
            Generation::Ampere => ("latent80", 147_456, 2),
        }
    }

    /// `out[H·T, 512]` of the new tokens, the heads one below the other.
    pub(super) fn tensor_attend_latent(
        &self,
        over: &Pages,
        part: Part,
        LatentQuery { heads, scale, absorbed, rotary, .. }: LatentQuery,
        out: &mut Tensor,
    ) {
        let (tables, rows, group) = (part.tables(self), part.plan.new, heads.min(LATENT_HEADS));
        let (kernel, bytes, least) = self.latent_kernel();
        let tiles = tables.tiles(positions_of(LATENT_HEADS, group.max(least)));
        let mut splits = Splits::of(self, tables.splits(), rows * heads, LATENT.latent);
        let launch = self.launch(kernel).blocks(heads.div_ceil(LATENT_HEADS), tiles, splits.count).shared(bytes);
        let launch = launch.read(bf16s(absorbed)).read(bf16s(rotary.of));
        let launch = launch.read_at(&over.memory, part.at.offset * 2).write(bf16s_mut(out));
        let launch = launch.read(&tables.pages).int(tables.stride).long(over.page_len);
        let launch = launch.int(LATENT.latent + LATENT.rotary).read(&tables.past).read(&tables.starts);
        let launch = with_queries(launch.int(part.at.sequences.len()), [heads, group], &rotary).float(scale);
        launch.write(&mut splits.sums).write(&mut splits.weights).int(rows).run();
        let strides = [LATENT.latent, rows * LATENT.latent];
        self.join(&part, &splits, [heads, LATENT.latent], scale, (out, strides));
    }
}
