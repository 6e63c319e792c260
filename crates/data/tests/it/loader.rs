//! Batches: every token once, purity, masks, FIM.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use wels_data::corpus::ReadOptions;
use wels_data::loader::{Fim, FimRate, IGNORE, LoaderConfig};
use wels_data::shards::{Dataset, ShardOptions, Split, build};
use wels_data::{Batch, Corpus, Loader, Tokenizer};

use crate::{babble, small_tokenizer, write_files};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(small_tokenizer);

static DATASET: LazyLock<Arc<Dataset>> = LazyLock::new(|| {
    let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for seed in 0..60 {
        write_files(source.path(), &[(&format!("{seed}.txt"), babble(seed, 1 + seed as usize * 2).as_bytes())]);
    }
    Arc::new(open(source.path(), out.path()))
});

fn open(source: &Path, out: &Path) -> Dataset {
    let corpus = Corpus::open(source, ReadOptions { document_bytes_max: 4000, ..ReadOptions::default() }).unwrap();
    let options = ShardOptions { validation_fraction: 0.2, shard_tokens: 1000 };
    build(&corpus, &TOKENIZER, out, &options, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    Dataset::open(out).unwrap()
}

fn config(seq_len: usize, seed: u64) -> LoaderConfig {
    let ids = TOKENIZER.special();
    LoaderConfig { seq_len, seed, bos: ids.bos, eos: ids.eos, fim: None, window: 1, mask_documents: false }
}

fn with_fim(config: LoaderConfig, rate: f64) -> LoaderConfig {
    let ids = TOKENIZER.special();
    let [begin, hole, end] = [ids.fim_begin, ids.fim_hole, ids.fim_end].map(Option::unwrap);
    LoaderConfig { fim: Some(Fim { rate: FimRate::new(rate), begin, hole, end }), ..config }
}

/// The documents of a split, as ids.
fn documents(split: Split) -> Vec<Vec<u32>> {
    let mut all = Vec::new();
    for shard in DATASET.shards(split) {
        for document in 0..shard.documents() {
            let mut ids = Vec::new();
            shard.copy_tokens(document, 0..shard.document_tokens(document), &mut ids);
            all.push(ids);
        }
    }
    all
}

/// The documents that `ids` are made of, BOS and EOS taken off.
fn split_at_eos(ids: &[u32]) -> Vec<Vec<u32>> {
    let (bos, eos) = (TOKENIZER.special().bos.unwrap(), TOKENIZER.special().eos.unwrap());
    let documents = ids.split_inclusive(|&id| id == eos);
    documents.map(|d| d.strip_prefix(&[bos]).unwrap().strip_suffix(&[eos]).unwrap().to_vec()).collect()
}

fn sorted(mut documents: Vec<Vec<u32>>) -> Vec<Vec<u32>> {
    documents.sort();
    documents
}

#[test]
fn an_epoch_has_every_document_once_in_an_order_of_its_own() {
    let loader = Loader::train(DATASET.clone(), config(1, 7));
    let len = loader.epoch_tokens() as usize;
    let stream = loader.batch(0, 3 * len).tokens;
    let epochs: Vec<Vec<Vec<u32>>> = stream.chunks(len).map(split_at_eos).collect();
    for epoch in &epochs {
        assert_eq!(sorted(epoch.clone()), sorted(documents(Split::Train)));
    }
    assert_ne!(epochs[0], epochs[1]);
    assert_ne!(epochs[0], documents(Split::Train));
    let other_seed = Loader::train(DATASET.clone(), config(1, 8)).batch(0, len).tokens;
    assert_ne!(stream[..len], other_seed);
}

#[test]
fn validation_is_read_in_order_once() {
    let loader = Loader::validation(DATASET.clone(), with_fim(config(32, 7), 1.0));
    let batch = loader.batch(0, loader.sequences() as usize);
    let eos = TOKENIZER.special().eos.unwrap();
    let mut stream = vec![batch.tokens[0]];
    stream.extend(batch.targets.iter().copied().take_while(|&target| target != IGNORE));
    assert_eq!(split_at_eos(&stream), documents(Split::Validation));
    assert_eq!(batch.target_count() as u64, loader.epoch_tokens() - 1);
    assert!(batch.tokens[batch.target_count()..].iter().all(|&id| id == eos));
    // Every byte of text is predicted once.
    let bytes = DATASET.manifest().validation.bytes;
    assert_eq!(batch.target_bytes(&TOKENIZER.byte_lengths()), bytes);
    assert_eq!(loader.batch(loader.sequences(), 1).target_count(), 0);
}

/// Prefix, suffix and middle put back in order; `None` if the document is not marked as FIM.
fn unscramble(document: &[u32]) -> Option<Vec<u32>> {
    let ids = TOKENIZER.special();
    let rest = document.strip_prefix(&[ids.fim_begin.unwrap()])?;
    let at = |mark: Option<u32>| rest.iter().position(|&id| Some(id) == mark).unwrap();
    let (hole, end) = (at(ids.fim_hole), at(ids.fim_end));
    Some([&rest[..hole], &rest[end + 1..], &rest[hole + 1..end]].concat())
}

#[test]
fn fim_moves_the_middle_of_some_documents_behind_them() {
    let loader = Loader::train(DATASET.clone(), with_fim(config(1, 3), 0.5));
    let plain = loader.epoch_tokens() as usize;
    let stream = loader.batch(0, 2 * plain).tokens;
    // An epoch is longer than without FIM: take the whole documents of the first one.
    let count = documents(Split::Train).len();
    let eos = TOKENIZER.special().eos.unwrap();
    let ends: Vec<usize> = stream.iter().enumerate().filter(|(_, id)| **id == eos).map(|(at, _)| at + 1).collect();
    let epoch = split_at_eos(&stream[..ends[count - 1]]);
    let scrambled = epoch.iter().filter(|document| unscramble(document).is_some()).count();
    assert!((count / 4..count * 3 / 4).contains(&scrambled), "{scrambled} of {count}");
    let restored = epoch.iter().map(|document| unscramble(document).unwrap_or_else(|| document.clone())).collect();
    assert_eq!(sorted(restored), sorted(documents(Split::Train)));
    let changed = epoch.iter().filter_map(|d| Some((unscramble(d)?, d))).filter(|(u, d)| u[..] != d[1..d.len() - 2]);
    assert!(changed.count() > scrambled / 2);
}

/// Whether a fresh loader gives for any stretch what one that has read everything gives.
#[test]
fn a_batch_does_not_depend_on_what_was_read_before() {
    for rate in [0.0, 0.3] {
        let config = with_fim(config(16, 5), rate);
        let far = 5 * Loader::train(DATASET.clone(), config.clone()).epoch_tokens() / 16;
        let reader = Loader::train(DATASET.clone(), config.clone());
        (0..far).for_each(|sequence| _ = reader.batch(sequence, 1));
        for first in [far, 0, far / 2, 3, far / 3] {
            let fresh = Loader::train(DATASET.clone(), config.clone());
            assert_eq!(fresh.batch(first, 4), reader.batch(first, 4), "rate {rate}, sequence {first}");
        }
    }
}

#[test]
fn a_window_has_every_sequence_once_in_an_order_of_its_own() {
    let plain = Loader::train(DATASET.clone(), config(8, 3));
    let shuffled = Loader::train(DATASET.clone(), LoaderConfig { window: 16, ..config(8, 3) });
    let windows = |loader: &Loader, window: u64| -> Vec<Vec<u32>> {
        loader.batch(16 * window, 16).tokens.chunks(8).map(<[u32]>::to_vec).collect()
    };
    for window in 0..3 {
        assert_eq!(sorted(windows(&shuffled, window)), sorted(windows(&plain, window)));
        assert_ne!(windows(&shuffled, window), windows(&plain, window));
    }
    assert_eq!(shuffled.batch(21, 2), {
        let whole = shuffled.batch(16, 16);
        Batch {
            tokens: whole.tokens[40..56].to_vec(),
            targets: whole.targets[40..56].to_vec(),
            starts: vec![0, 8, 16],
            positions: whole.positions[40..56].to_vec(),
        }
    });
}

fn check_shape(batch: &Batch, seq_len: usize, count: usize) {
    assert_eq!(batch.tokens.len(), seq_len * count);
    assert_eq!(batch.targets.len(), seq_len * count);
    assert_eq!((batch.starts[0], batch.starts[batch.starts.len() - 1]), (0, (seq_len * count) as u32));
    assert!(batch.starts.is_sorted_by(|a, b| a < b));
    let mut last = 0;
    for (at, &position) in batch.positions.iter().enumerate() {
        if batch.starts.contains(&(at as u32)) {
            last = at;
        }
        assert_eq!(position as usize, at - last);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn batches_are_made_of_their_sequences(
        seq_len in 1usize..50, seed in any::<u64>(), first in 0u64..400, count in 1usize..8,
        mask_documents in any::<bool>(), rate in prop::sample::select(vec![0.0, 0.5, 1.0])
    ) {
        let config = LoaderConfig { mask_documents, ..with_fim(config(seq_len, seed), rate) };
        let loader = Loader::train(DATASET.clone(), config.clone());
        let batch = loader.batch(first, count);
        check_shape(&batch, seq_len, count);
        let mut joined = Batch { tokens: vec![], targets: vec![], starts: vec![0], positions: vec![] };
        for sequence in first..first + count as u64 {
            let single = Loader::train(DATASET.clone(), config.clone()).batch(sequence, 1);
            let base = joined.tokens.len() as u32;
            joined.starts.extend(single.starts[1..].iter().map(|start| base + start));
            joined.tokens.extend(single.tokens);
            joined.targets.extend(single.targets);
            joined.positions.extend(single.positions);
        }
        prop_assert_eq!(&joined, &batch);
        // The next token is the target, except where a document begins and documents are kept apart.
        let bos = TOKENIZER.special().bos.unwrap();
        for at in 0..batch.tokens.len() - 1 {
            let begins = batch.tokens[at + 1] == bos;
            let expected = if mask_documents && begins { IGNORE } else { batch.tokens[at + 1] };
            prop_assert_eq!(batch.targets[at], expected);
            let starts = (at + 1) % seq_len == 0 || mask_documents && begins;
            prop_assert_eq!(batch.starts.contains(&(at as u32 + 1)), starts);
        }
    }
}

#[test]
fn documents_are_spread_evenly_over_the_order() {
    // Over many seeds each document comes first about equally often.
    let mut firsts: HashMap<Vec<u32>, u32> = HashMap::new();
    let count = documents(Split::Train).len() as u32;
    for seed in 0..40 * u64::from(count) {
        let loader = Loader::train(DATASET.clone(), config(400, seed));
        let tokens = loader.batch(0, 1).tokens;
        let end = tokens.iter().position(|&id| Some(id) == TOKENIZER.special().eos).unwrap_or(tokens.len());
        *firsts.entry(tokens[..end].to_vec()).or_default() += 1;
    }
    assert_eq!(firsts.len(), count as usize);
    // 40 expected, standard deviation 6.3.
    assert!(firsts.values().all(|n| (10..=80).contains(n)), "{:?}", firsts.values());
}
