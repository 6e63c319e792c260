//! Routing, and what joins the experts' results: `kernels/experts.cu`. Nothing of it waits for the device.

use wels_device::{Balance, Dispatch, Dtype, Experts, Ids, Router, Scoring, Start, Tensor, experts_in_order};

use crate::Cuda;
use crate::launch::{Buffer, Launch};
use crate::memory::{bf16s, bf16s_mut, download, f32s, f32s_mut};
use crate::pieces::{pieces, wide};
use crate::rows::goes_on;

/// Rows of a tile of a product.
pub(crate) const TILE: usize = 64;
/// Warps of a block, each with a token of its own.
const WARPS: usize = 4;

/// Choices that a warp puts in order.
const CHUNK: usize = 512;
/// Bytes of shared memory of `balance_sums`: two batches of 224 tokens' shares for 32 experts, and counts.
const BALANCE_SHARED: usize = (2 * 224 * 32 + 32) * 4;

/// Where each choice of each token goes.
pub(crate) struct Tables {
    /// E.
    pub experts: usize,
    /// Choices of all tokens.
    pub slots_len: usize,
    /// `[T, K]`, a token's ascending.
    chosen: Buffer,
    /// `[E + 1]`.
    pub offsets: Buffer,
    /// `[S]`: the token of each slot.
    pub rows: Buffer,
    /// `[T·K]`: the slot of each choice.
    slots: Buffer,
    /// For each tile of slots its expert, or −1, its first slot, and its end.
    pub tiles: Buffer,
    /// How many tiles `tiles` has room for.
    pub tiles_max: usize,
}

/// What the balance loss keeps.
struct Shares {
    sequences: usize,
    /// `[sequences, E]`.
    shares: Buffer,
    losses: Buffer,
}

pub(crate) fn tables(dispatch: &Dispatch) -> &Tables {
    dispatch.memory.downcast_ref().expect("a dispatch of a CUDA device's")
}

fn shares_of(balance: &Balance) -> &Shares {
    balance.memory.downcast_ref().expect("a balance of a CUDA device's")
}

fn is_sigmoid(router: &Router) -> usize {
    usize::from(router.scoring == Scoring::Sigmoid)
}

impl Cuda {
    /// A launch with a warp for each token, or whatever there is so many of.
    fn by_tokens(&self, kernel: &str, tokens: usize) -> Launch<'_> {
        self.launch(kernel).threads(32 * WARPS).blocks(tokens.div_ceil(WARPS), 1, 1)
    }

    fn tables_of(&self, chosen: Buffer, tokens: usize, top_k: usize, experts: usize) -> Tables {
        let choices = tokens * top_k;
        let tiles_max = choices.div_ceil(TILE) + experts.min(choices);
        let chunks = choices.div_ceil(CHUNK);
        let (mut counts, mut totals) = (self.temporary(experts * chunks), self.temporary(experts));
        let (mut offsets, mut tiles) = (self.temporary(experts + 1), self.temporary(tiles_max * 3));
        let (mut rows, mut slots) = (self.temporary(choices), self.temporary(choices));
        let by_chunks = |kernel| self.by_tokens(kernel, chunks).shared(WARPS * experts * 4).read(&chosen);
        let launch = by_chunks("dispatch_count").write(&mut counts);
        launch.int(choices).int(experts).int(chunks).run();
        let launch = self.launch("dispatch_scan").blocks(experts, 1, 1).shared(32).write(&mut counts);
        launch.write(&mut totals).int(chunks).run();
        let launch = self.launch("dispatch_offsets").shared(2 * (experts + 1) * 4).read(&totals);
        let launch = launch.write(&mut offsets).write(&mut tiles);
        launch.int(experts).int(TILE).int(tiles_max).run();
        let launch = by_chunks("dispatch_fill").read(&offsets).read(&counts).write(&mut rows).write(&mut slots);
        launch.int(choices).int(top_k).int(experts).int(chunks).run();
        Tables { experts, slots_len: choices, chosen, offsets, rows, slots, tiles, tiles_max }
    }
}

impl Experts for Cuda {
    fn route(
        &self,
        router: &Router,
        logits: &Tensor,
        bias: Option<&Tensor>,
        scores: &mut Tensor,
        weights: &mut Tensor,
    ) -> Dispatch {
        let Router { experts, top_k, groups, top_groups, scale, .. } = *router;
        let (tokens, sigmoid) = (logits.rows(), is_sigmoid(router));
        assert_eq!((logits.cols(), scores.len()), (experts, tokens * experts), "{logits:?} to {scores:?}");
        assert_eq!(weights.len(), tokens * top_k, "{weights:?} of {tokens} tokens with {top_k} experts");
        assert!(bias.is_none_or(|bias| bias.len() == experts), "a bias of {experts} experts");
        assert!(groups > 0 && experts.is_multiple_of(groups), "{experts} experts in {groups} groups");
        let reachable = experts / groups * top_groups.min(groups);
        assert!(0 < top_k && top_k <= reachable, "{top_k} of {reachable} experts");
        let mut chosen = self.temporary(tokens * top_k);
        let launch = self.by_tokens("route", tokens).shared(WARPS * (2 * experts + 2 * groups) * 4);
        let launch = launch.read(f32s(logits)).read_if(bias.map(f32s));
        let launch = launch.write(f32s_mut(scores)).write(&mut chosen).write(f32s_mut(weights));
        let launch = launch.int(tokens).int(experts).int(top_k).int(groups).int(top_groups).int(sigmoid);
        launch.int(router.normalize.into()).float(scale).run();
        let memory = Box::new(self.tables_of(chosen, tokens, top_k, experts));
        Dispatch { tokens, experts, top_k, memory }
    }

    fn route_backward(
        &self,
        router: &Router,
        scores: &Tensor,
        dispatch: &Dispatch,
        dweights: &Tensor,
        dscores: Option<&Tensor>,
        dlogits: &mut Tensor,
    ) {
        let Dispatch { tokens, experts, top_k, .. } = *dispatch;
        assert_eq!((scores.len(), dlogits.len()), (tokens * experts, tokens * experts), "{scores:?} to {dlogits:?}");
        assert_eq!(dweights.len(), tokens * top_k, "{dweights:?} of {dispatch:?}");
        let launch = self.by_tokens("route_backward", tokens).shared(WARPS * experts * 4).read(f32s(scores));
        let launch = launch.read(&tables(dispatch).chosen).read(f32s(dweights)).read_if(dscores.map(f32s));
        let launch = launch.write(f32s_mut(dlogits)).int(tokens).int(experts).int(top_k).int(is_sigmoid(router));
        launch.int(router.normalize.into()).float(router.scale).run();
    }

    fn balance(&self, router: &Router, scores: &Tensor, dispatch: &Dispatch, starts: &Ids) -> Balance {
        let Dispatch { tokens, experts, top_k, .. } = *dispatch;
        let (sequences, len) = (starts.len() - 1, (starts.len() - 1) * experts);
        assert_eq!(scores.len(), tokens * experts, "{scores:?} of {dispatch:?}");
        assert!(starts[sequences] as usize <= tokens, "sequences up to {} of {tokens} tokens", starts[sequences]);
        let (mut shares, mut means) = (self.temporary(len), self.temporary(len));
        let (mut losses, starts) = (self.temporary(sequences), &self.ids(starts).list);
        let (mut counted, mut totals) = (self.temporary(tokens * top_k), self.temporary(tokens));
        let sigmoid = router.scoring == Scoring::Sigmoid;
        if sigmoid {
            let launch = self.by_tokens("balance_tokens", tokens).shared(WARPS * experts * 4).read(f32s(scores));
            launch.write(&mut counted).write(&mut totals).int(tokens).int(experts).int(top_k).run();
        }
        let counted = if sigmoid { &counted } else { &tables(dispatch).chosen };
        let blocks = sequences * experts.div_ceil(32);
        let launch = self.launch("balance_sums").blocks(blocks, 1, 1).shared(BALANCE_SHARED);
        let launch = launch.read(f32s(scores)).read(counted);
        let launch = launch.read_if(sigmoid.then_some(&totals)).read(starts);
        launch.write(&mut shares).write(&mut means).int(experts).int(top_k).run();
        let launch = self.launch("balance_losses").over(sequences * 16).read(&shares).read(&means);
        launch.write(&mut losses).int(experts).int(sequences).run();
        Balance { memory: Box::new(Shares { sequences, shares, losses }) }
    }

    fn balance_backward(
        &self,
        router: &Router,
        scores: &Tensor,
        starts: &Ids,
        balance: &Balance,
        coefficient: f32,
        dscores: &mut Tensor,
    ) {
        let Shares { sequences, shares, .. } = shares_of(balance);
        let tokens = starts[*sequences] as usize;
        assert_eq!(starts.len(), sequences + 1, "sequences of a balance loss");
        assert!(tokens * router.experts <= dscores.len().min(scores.len()), "{tokens} tokens of {dscores:?}");
        let launch = self.launch("balance_backward").over(tokens * 16).read(f32s(scores)).read(shares);
        let launch = launch.read(&self.ids(starts).list).int(*sequences).float(coefficient);
        launch.write(f32s_mut(dscores)).int(tokens).int(router.experts).int(is_sigmoid(router)).run();
    }

    fn balance_losses(&self, balance: &Balance) -> Vec<f32> {
        let Shares { sequences, losses, .. } = shares_of(balance);
        download(losses, *sequences)
    }

    fn loads(&self, dispatch: &Dispatch) -> Vec<u32> {
        let tables = tables(dispatch);
        let offsets: Vec<u32> = download(&tables.offsets, tables.experts + 1);
        offsets.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    fn tokens_of_slots(&self, dispatch: &Dispatch) -> Vec<u32> {
        let tables = tables(dispatch);
        download(&tables.rows, tables.slots_len)
    }

    fn in_order(&self, loads: &[u32]) -> Dispatch {
        let chosen = experts_in_order(loads);
        let (tokens, experts) = (chosen.len(), loads.len());
        let memory = Box::new(self.tables_of(self.upload(&chosen), tokens, 1, experts));
        Dispatch { tokens, experts, top_k: 1, memory }
    }

    fn add_expert_bias(&self, bias: &Tensor, dispatch: &Dispatch, y: &mut Tensor) {
        let (tables, cols, len) = (tables(dispatch), y.cols(), y.len());
        assert_eq!((bias.len(), y.rows()), (tables.experts * cols, tables.slots_len), "{bias:?} to {y:?}");
        if y.dtype() == Dtype::Bf16 {
            let mut wide = self.widened(y);
            self.add_expert_bias(bias, dispatch, &mut wide);
            return self.narrow(&wide, y);
        }
        let launch = self.launch("add_expert_bias").over(len).read(f32s(bias)).read(&tables.offsets);
        launch.write(f32s_mut(y)).int(tables.experts).int(cols).long(len).run();
    }

    fn expert_bias_backward(&self, dy: &Tensor, dispatch: &Dispatch, (dbias, start): (&mut Tensor, Start)) {
        let (tables, cols, len) = (tables(dispatch), dy.cols(), dbias.len());
        assert_eq!((len, dy.rows()), (tables.experts * cols, tables.slots_len), "{dbias:?} of {dy:?}");
        if dy.dtype() == Dtype::Bf16 {
            return self.expert_bias_backward(&self.widened(dy), dispatch, (dbias, start));
        }
        let launch = self.launch("expert_bias_backward").over(len).read(f32s(dy)).read(&tables.offsets);
        launch.write(f32s_mut(dbias)).int(cols).int(goes_on(start)).long(len).run();
    }

    fn combine(&self, h: &Tensor, weights: &Tensor, dispatch: &Dispatch, base: Option<&Tensor>, y: &mut Tensor) {
        let (d, len, top_k) = (h.cols(), y.len(), dispatch.top_k);
        assert_eq!((h.rows(), weights.len()), (dispatch.slots(), dispatch.slots()), "{h:?} of {dispatch:?}");
        assert_eq!((y.rows(), y.cols()), (dispatch.tokens, d), "{y:?} of {h:?}");
        assert!(base.is_none_or(|base| base.len() == len), "{base:?} for {y:?}");
        let slots = &tables(dispatch).slots;
        if y.dtype() == Dtype::Bf16 {
            let pieces = pieces(y.rows(), d);
            let launch = self.launch("combine_bf16").over(pieces).read(bf16s(h)).read(f32s(weights)).read(slots);
            let launch = launch.read_if(base.map(bf16s)).write(bf16s_mut(y)).int(top_k).int(d);
            return launch.int(wide(&[d])).int(pieces).run();
        }
        let launch = self.launch("combine").over(len).read(f32s(h)).read(f32s(weights));
        let launch = launch.read(slots).read_if(base.map(f32s)).write(f32s_mut(y));
        launch.int(top_k).int(d).long(len).run();
    }

    fn combine_backward(
        &self,
        dy: &Tensor,
        h: &Tensor,
        weights: &Tensor,
        dispatch: &Dispatch,
        dh: &mut Tensor,
        dweights: &mut Tensor,
    ) {
        let (d, choices) = (h.cols(), dispatch.slots());
        assert_eq!((h.rows(), weights.len(), dweights.len()), (choices, choices, choices), "{h:?} of {dispatch:?}");
        assert_eq!((dy.rows(), dy.cols(), dh.len()), (dispatch.tokens, d, h.len()), "{dy:?} and {dh:?} of {h:?}");
        let slots = &tables(dispatch).slots;
        if dy.dtype() == Dtype::Bf16 {
            let launch = self.launch("combine_backward_bf16").over(choices * 32).read(bf16s(dy)).read(bf16s(h));
            let launch = launch.read(f32s(weights)).read(slots).write(bf16s_mut(dh)).write(f32s_mut(dweights));
            return launch.int(dispatch.top_k).int(d).int(wide(&[d])).int(choices).run();
        }
        let launch = self.launch("combine_backward").over(choices * 16).read(f32s(dy)).read(f32s(h));
        let launch = launch.read(f32s(weights)).read(slots);
        let launch = launch.write(f32s_mut(dh)).write(f32s_mut(dweights));
        launch.int(dispatch.top_k).int(d).int(choices).run();
    }

    fn gather_slots(&self, dslots: &Tensor, dispatch: &Dispatch, (dx, start): (&mut Tensor, Start)) {
        let (d, len) = (dslots.cols(), dx.len());
        assert_eq!(
            (dslots.rows(), dx.rows(), dx.cols()),
            (dispatch.slots(), dispatch.tokens, d),
            "{dslots:?} to {dx:?}"
        );
        let slots = &tables(dispatch).slots;
        if dx.dtype() == Dtype::Bf16 {
            let pieces = pieces(dx.rows(), d);
            let launch = self.launch("gather_slots_bf16").over(pieces).read(bf16s(dslots)).read(slots);
            let launch = launch.write(bf16s_mut(dx)).int(dispatch.top_k).int(d).int(goes_on(start));
            return launch.int(wide(&[d])).int(pieces).run();
        }
        let launch = self.launch("gather_slots").over(len).read(f32s(dslots)).read(slots);
        launch.write(f32s_mut(dx)).int(dispatch.top_k).int(d).int(goes_on(start)).long(len).run();
    }
}
