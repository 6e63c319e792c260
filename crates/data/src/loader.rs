//! Shards → batches. A batch is a pure function of (shards, configuration, number of its first sequence): resuming
//! needs one number, and any split of a step into micro-batches gives the same sequences.
//!
//! The documents of an epoch, in an order drawn for it, are laid end to end, one epoch after the other; sequence `s` is
//! tokens `s·T .. (s+1)·T` of that stream, its targets the same one further. Sequences are then shuffled within
//! windows. So every token of an epoch is read exactly once, and nothing is padded. DeepSeek-V3 packs like this without
//! masking across documents (V3 §4.1); [`LoaderConfig::mask_documents`] cuts attention at them.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::random::{Permutation, below, bits};
use crate::shards::{Dataset, Shard, Split};

/// Target of a position that does not count.
pub const IGNORE: u32 = u32::MAX;

/// The tokens around the parts of a document that is read as fill-in-the-middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fim {
    /// Part of the documents, in 0..=1; DeepSeek-V3 uses 0.1 (§4.1).
    pub rate: FimRate,
    /// Before the prefix.
    pub begin: u32,
    /// Between prefix and suffix.
    pub hole: u32,
    /// Between suffix and middle.
    pub end: u32,
}

/// A probability in 2⁻⁶⁴ths, so that configurations can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FimRate(u64);

impl FimRate {
    /// From a number in 0..=1.
    pub fn new(rate: f64) -> Self {
        assert!((0.0..=1.0).contains(&rate), "the FIM rate {rate} is not in 0..=1");
        FimRate((rate * 2f64.powi(64)) as u64)
    }
}

/// How documents become sequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Tokens a sequence, T.
    pub seq_len: usize,
    /// Of the order of documents and of FIM.
    pub seed: u64,
    /// Put before each document.
    pub bos: Option<u32>,
    /// Put after each document.
    pub eos: Option<u32>,
    /// Fill-in-the-middle: prefix, suffix, middle, cut at token boundaries.
    pub fim: Option<Fim>,
    /// Training sequences come in a random order within windows of so many; 1 leaves them as they lie in the stream,
    /// where the sequences of a batch are often pieces of one long document.
    pub window: u64,
    /// Start a new sequence of attention at each document, and predict no document's first token from the one before.
    pub mask_documents: bool,
}

/// Sequences to train or validate on: B of T tokens each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// \[B·T\] input ids.
    pub tokens: Vec<u32>,
    /// \[B·T\] the id to predict at each position, or [`IGNORE`].
    pub targets: Vec<u32>,
    /// Where attention starts anew, ascending, from 0 to B·T inclusive.
    pub starts: Vec<u32>,
    /// \[B·T\] distance from the last start.
    pub positions: Vec<u32>,
}

impl Batch {
    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORE).count()
    }

    /// Bytes of text that the targets stand for, given [`Tokenizer::byte_lengths`]: bits per byte is the sum of −ln p
    /// over the targets, divided by ln 2 and by this. BOS, EOS and FIM marks are predicted but stand for no byte.
    ///
    /// [`Tokenizer::byte_lengths`]: crate::Tokenizer::byte_lengths
    pub fn target_bytes(&self, byte_lengths: &[u32]) -> u64 {
        let counted = self.targets.iter().filter(|&&target| target != IGNORE);
        counted.map(|&target| u64::from(byte_lengths[target as usize])).sum()
    }
}

/// Gives out the batches of one split.
pub struct Loader {
    dataset: Arc<Dataset>,
    split: Split,
    config: LoaderConfig,
    /// Number of the first document of each shard, and the number of documents.
    shard_starts: Vec<u64>,
    /// Tokens of an epoch without FIM marks.
    plain_tokens: u64,
    /// Shuffled and without end, or in order and once.
    endless: bool,
    /// The epochs used last, newest first.
    epochs: Mutex<Vec<Arc<Epoch>>>,
}

/// How the documents of one pass lie in the stream.
struct Epoch {
    number: u64,
    /// Where in the stream it begins.
    first: u64,
    /// By place in this epoch: where each document starts, from 0; the last entry is the epoch's length.
    starts: Vec<u64>,
    order: Option<Permutation>,
}

impl Epoch {
    fn end(&self) -> u64 {
        self.first + self.starts[self.starts.len() - 1]
    }
}

/// What a document is made of when it is read.
#[derive(Clone)]
enum Part {
    Mark(u32),
    Text(Range<u64>),
}

impl Part {
    fn len(&self) -> u64 {
        match self {
            Part::Mark(_) => 1,
            Part::Text(range) => range.end - range.start,
        }
    }
}

/// Streams of [`bits`].
mod stream {
    pub const ORDER: u64 = 1;
    pub const FIM_CHOICE: u64 = 2;
    pub const FIM_CUT: u64 = 3;
    pub const WINDOW: u64 = 4;
}

impl Loader {
    /// The training documents, shuffled anew each epoch, without end.
    pub fn train(dataset: Arc<Dataset>, config: LoaderConfig) -> Loader {
        Self::new(dataset, Split::Train, config, true)
    }

    /// The validation documents, in order, once, without FIM. The last sequence is filled up with targets [`IGNORE`].
    pub fn validation(dataset: Arc<Dataset>, config: LoaderConfig) -> Loader {
        Self::new(dataset, Split::Validation, LoaderConfig { fim: None, ..config }, false)
    }

    fn new(dataset: Arc<Dataset>, split: Split, config: LoaderConfig, endless: bool) -> Loader {
        assert!(config.seq_len > 0, "a sequence of 0 tokens");
        assert!(config.window > 0, "a window of 0 sequences");
        let mut shard_starts = vec![0];
        let mut plain_tokens = 0;
        for shard in dataset.shards(split) {
            shard_starts.push(shard_starts[shard_starts.len() - 1] + shard.documents() as u64);
            plain_tokens += shard.tokens();
        }
        let documents = shard_starts[shard_starts.len() - 1];
        plain_tokens += documents * (u64::from(config.bos.is_some()) + u64::from(config.eos.is_some()));
        assert!(plain_tokens > 0, "the {} split has no token", split.name());
        Loader { dataset, split, config, shard_starts, plain_tokens, endless, epochs: Mutex::default() }
    }

    /// Tokens of one epoch, BOS and EOS included, FIM marks not.
    pub fn epoch_tokens(&self) -> u64 {
        self.plain_tokens
    }

    /// Sequences of one pass over the split: as many as it takes to predict every token but the first.
    pub fn sequences(&self) -> u64 {
        (self.plain_tokens - 1).div_ceil(self.config.seq_len as u64).max(1)
    }

    /// How many epochs lie before the end of sequence `sequence`, as a fraction.
    pub fn epochs_at(&self, sequence: u64) -> f64 {
        (sequence * self.config.seq_len as u64) as f64 / self.plain_tokens as f64
    }

    /// Sequences `first .. first + count`.
    pub fn batch(&self, first: u64, count: usize) -> Batch {
        let t = self.config.seq_len;
        let mut batch = Batch {
            tokens: Vec::with_capacity(count * t),
            targets: Vec::with_capacity(count * t),
            starts: Vec::with_capacity(count + 1),
            positions: Vec::with_capacity(count * t),
        };
        let mut stream = Vec::with_capacity(t + 1);
        let mut document_starts = Vec::new();
        for sequence in first..first + count as u64 {
            stream.clear();
            document_starts.clear();
            self.read(self.place(sequence) * t as u64, t + 1, &mut stream, &mut document_starts);
            self.append(&stream, &document_starts, &mut batch);
        }
        batch.starts.push((count * t) as u32);
        batch
    }

    /// Which sequence of the stream is handed out as the `sequence`th.
    fn place(&self, sequence: u64) -> u64 {
        let LoaderConfig { seed, window, .. } = self.config;
        if !self.endless {
            return sequence;
        }
        let number = sequence / window;
        number * window + Permutation::new(window, bits(seed, stream::WINDOW, number, 0)).at(sequence % window)
    }

    /// Appends one sequence, given its T + 1 tokens of the stream (fewer at the end of validation) and where documents
    /// start among them.
    fn append(&self, stream: &[u32], document_starts: &[u32], batch: &mut Batch) {
        let t = self.config.seq_len;
        let base = batch.tokens.len();
        let known = stream.len().min(t);
        batch.tokens.extend_from_slice(&stream[..known]);
        batch.targets.extend_from_slice(stream.get(1..).unwrap_or_default());
        batch.tokens.resize(base + t, self.config.eos.or(self.config.bos).unwrap_or(0));
        batch.targets.resize(base + t, IGNORE);
        batch.starts.push(base as u32);
        if self.config.mask_documents {
            for &start in document_starts.iter().filter(|&&start| start > 0) {
                batch.targets[base + start as usize - 1] = IGNORE;
                if (start as usize) < t {
                    batch.starts.push((base as u32) + start);
                }
            }
        }
        let first = batch.starts.iter().rposition(|&start| start as usize == base).expect("pushed above");
        let mut starts = batch.starts[first + 1..].iter().map(|&start| start as usize).peekable();
        let mut position = 0;
        for at in base..base + t {
            if starts.next_if_eq(&at).is_some() {
                position = 0;
            }
            batch.positions.push(position);
            position += 1;
        }
    }

    /// Appends `count` tokens of the stream from `position` on, and the places among them where documents start.
    fn read(&self, position: u64, count: usize, out: &mut Vec<u32>, document_starts: &mut Vec<u32>) {
        let mut epoch = self.epoch_of(position);
        let mut at = position - epoch.first;
        let mut place = epoch.starts.partition_point(|&start| start <= at) - 1;
        while out.len() < count {
            if place + 1 == epoch.starts.len() {
                if !self.endless {
                    return;
                }
                epoch = self.epoch_of(epoch.end());
                (place, at) = (0, 0);
                continue;
            }
            let document = epoch.order.map_or(place as u64, |order| order.at(place as u64));
            let skip = at - epoch.starts[place];
            if skip == 0 && epoch.starts[place] < epoch.starts[place + 1] {
                document_starts.push(out.len() as u32);
            }
            self.read_document(epoch.number, document, skip, count - out.len(), out);
            place += 1;
            at = epoch.starts[place];
        }
    }

    /// Appends up to `count` tokens of a document, as it is read in `epoch`, from its token `skip` on.
    fn read_document(&self, epoch: u64, document: u64, mut skip: u64, count: usize, out: &mut Vec<u32>) {
        let (shard, index) = self.locate(document);
        let mut left = count as u64;
        for part in self.parts(epoch, document, shard.document_tokens(index)).into_iter().flatten() {
            let len = part.len();
            let take = len.saturating_sub(skip).min(left);
            if take > 0 {
                match part {
                    Part::Mark(id) => out.push(id),
                    Part::Text(text) => {
                        let first = text.start + skip;
                        shard.copy_tokens(index, first..first + take, out);
                    }
                }
            }
            left -= take;
            skip = skip.saturating_sub(len);
        }
    }

    fn parts(&self, epoch: u64, document: u64, len: u64) -> [Option<Part>; 8] {
        let mark = |id: Option<u32>| id.map(Part::Mark);
        let (bos, eos) = (mark(self.config.bos), mark(self.config.eos));
        match self.config.fim.filter(|fim| self.is_fim(fim, epoch, document)) {
            None => [bos, Some(Part::Text(0..len)), eos, None, None, None, None, None],
            Some(fim) => {
                let cut = |i: u64| below(bits(self.config.seed, stream::FIM_CUT + (i << 32), epoch, document), len + 1);
                let (a, b) = (cut(0).min(cut(1)), cut(0).max(cut(1)));
                [
                    bos,
                    Some(Part::Mark(fim.begin)),
                    Some(Part::Text(0..a)),
                    Some(Part::Mark(fim.hole)),
                    Some(Part::Text(b..len)),
                    Some(Part::Mark(fim.end)),
                    Some(Part::Text(a..b)),
                    eos,
                ]
            }
        }
    }

    fn is_fim(&self, fim: &Fim, epoch: u64, document: u64) -> bool {
        bits(self.config.seed, stream::FIM_CHOICE, epoch, document) < fim.rate.0
    }

    /// The shard of a document and its number there.
    fn locate(&self, document: u64) -> (&Shard, usize) {
        let shard = self.shard_starts.partition_point(|&start| start <= document) - 1;
        (&self.dataset.shards(self.split)[shard], (document - self.shard_starts[shard]) as usize)
    }

    /// The epoch that `position` of the stream lies in (of a single pass, the only one).
    fn epoch_of(&self, position: u64) -> Arc<Epoch> {
        let mut known = self.epochs.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(epoch) = known.iter().find(|epoch| (epoch.first..epoch.end()).contains(&position) || !self.endless)
        {
            return epoch.clone();
        }
        // FIM marks make the length of an epoch depend on its number, so they are laid out one after the other, from
        // the nearest known one or from the start.
        let before = known.iter().filter(|epoch| epoch.end() <= position).max_by_key(|epoch| epoch.number);
        let (mut number, mut first) = before.map_or((0, 0), |epoch| (epoch.number + 1, epoch.end()));
        if self.config.fim.is_none() {
            number = position / self.plain_tokens;
            first = number * self.plain_tokens;
        }
        loop {
            let epoch = Arc::new(self.lay_out(number, first));
            if position < epoch.end() || !self.endless {
                known.insert(0, epoch.clone());
                known.truncate(2);
                return epoch;
            }
            (number, first) = (number + 1, epoch.end());
        }
    }

    fn lay_out(&self, number: u64, first: u64) -> Epoch {
        let documents = self.shard_starts[self.shard_starts.len() - 1];
        let order = self.endless.then(|| Permutation::new(documents, bits(self.config.seed, stream::ORDER, number, 0)));
        let mut starts = Vec::with_capacity(documents as usize + 1);
        let mut at = 0;
        starts.push(at);
        for place in 0..documents {
            let document = order.map_or(place, |order| order.at(place));
            let (shard, index) = self.locate(document);
            let len = shard.document_tokens(index);
            at += self.parts(number, document, len).iter().flatten().map(Part::len).sum::<u64>();
            starts.push(at);
        }
        Epoch { number, first, starts, order }
    }
}
