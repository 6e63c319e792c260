//! Attention over pages in f32, to the bits of the processor: `kernels/attention/paged.cu`. Pages may be of any format.

use wels_device::{
    AttentionInputs, CacheDtype, ExpandedQuery, KvLayout, LatentLayout, LatentQuery, PAGE, Sequence, Tensor,
};

use super::{Pages, Part};
use crate::Cuda;
use crate::attention::Widths;
use crate::attention::plain::{QUERIES, THREADS, cap_of, window_of, with_heads, with_shared};
use crate::launch::{Buffer, Launch};
use crate::memory::{f32s, f32s_mut};

/// The sequences of a call, as `paged.cu` takes them.
pub(super) struct Lists {
    tiles_len: usize,
    /// All sequences' pages.
    pages: Buffer,
    /// Two numbers for each new token, four for each tile of them.
    tokens: Buffer,
    tiles: Buffer,
}

impl Lists {
    fn of(cuda: &Cuda, sequences: &[Sequence]) -> Lists {
        let (mut lists, mut tokens, mut tiles, mut first) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for Sequence { pages, past, new } in sequences {
            let list = lists.len();
            lists.extend_from_slice(&pages[..(past + new).div_ceil(PAGE)]);
            tokens.extend((0..*new).flat_map(|at| [list as i32, (past + at) as i32]));
            for at in (0..*new).step_by(QUERIES) {
                let count = (new - at).min(QUERIES);
                tiles.extend([list as i32, (past + at) as i32, (first + at) as i32, count as i32]);
            }
            first += new;
        }
        let (pages, tokens) = (cuda.upload(&lists), cuda.upload(&tokens));
        Lists { tiles_len: tiles.len() / 4, pages, tokens, tiles: cuda.upload(&tiles) }
    }
}

impl Pages {
    /// The format of its numbers, as the kernels have it.
    fn format(&self) -> usize {
        match self.numbers {
            CacheDtype::F32 => 0,
            CacheDtype::F16 => 1,
            CacheDtype::Bf16 => 2,
        }
    }
}

impl Part<'_> {
    fn lists(&self, cuda: &Cuda) -> &Lists {
        self.plan.plain.get_or_init(|| Lists::of(cuda, self.at.sequences))
    }
}

impl Cuda {
    /// A launch of a kernel that reads pages: one block for each tile of new tokens and head.
    fn reading_pages<'a>(&'a self, kernel: &str, pages: &'a Pages, part: &'a Part, heads: usize) -> Launch<'a> {
        let lists = part.lists(self);
        let launch = self.launch(kernel).threads(THREADS).blocks(lists.tiles_len, heads, 1);
        let launch = launch.read(&pages.memory).read(&lists.pages).read(&lists.tiles);
        launch.long(pages.page_len).long(part.at.offset).int(pages.format())
    }

    /// A launch of a kernel that writes pages: one block for each new token.
    fn writing_pages<'a>(&'a self, kernel: &str, to: &'a mut Pages, part: &'a Part) -> Launch<'a> {
        let (lists, page_len, format) = (part.lists(self), to.page_len, to.format());
        let launch = self.launch(kernel).threads(128).blocks(part.plan.new, 1, 1).write(&mut to.memory);
        launch.read(&lists.pages).read(&lists.tokens).long(page_len).long(part.at.offset).int(format)
    }

    pub(super) fn plain_append(&self, to: &mut Pages, part: Part, layout: KvLayout, inputs: &AttentionInputs) {
        let launch = with_heads(self.writing_pages("paged_append", to, &part), inputs.k);
        let launch = with_heads(with_shared(launch, inputs.k_shared), inputs.v).int(layout.kv_heads);
        launch.int(layout.own).int(layout.shared).int(layout.v).run();
    }

    pub(super) fn plain_attend(
        &self,
        over: &Pages,
        part: Part,
        layout: KvLayout,
        ExpandedQuery { shape, q, sinks, .. }: ExpandedQuery,
        out: &mut Tensor,
    ) {
        let widths = Widths { own: layout.own, shared: layout.shared, v: layout.v };
        let launch = self.reading_pages("paged_attend", over, &part, shape.heads);
        let launch = with_heads(launch.shared(widths.forward_bytes()), q).read_if(sinks.map(f32s));
        let launch = launch.float(shape.scale).float(cap_of(shape)).int(shape.heads).int(layout.kv_heads);
        widths.with(launch.int(window_of(shape))).write(f32s_mut(out)).run();
    }

    pub(super) fn plain_append_latent(
        &self,
        to: &mut Pages,
        part: Part,
        layout: LatentLayout,
        latent: &Tensor,
        rotary: &Tensor,
    ) {
        let launch = self.writing_pages("paged_append_latent", to, &part);
        launch.read(f32s(latent)).read(f32s(rotary)).int(layout.latent).int(layout.rotary).run();
    }

    pub(super) fn plain_attend_latent(
        &self,
        over: &Pages,
        part: Part,
        layout: LatentLayout,
        LatentQuery { heads, scale, absorbed, rotary, .. }: LatentQuery,
        out: &mut Tensor,
    ) {
        let widths = Widths { own: layout.latent, shared: layout.rotary, v: layout.latent };
        let launch = self.reading_pages("paged_attend_latent", over, &part, heads);
        let launch = launch.shared(widths.forward_bytes()).read(f32s(absorbed));
        let launch = with_heads(launch, rotary).float(scale).int(part.plan.new);
        launch.int(layout.latent).int(layout.rotary).write(f32s_mut(out)).run();
    }
}
