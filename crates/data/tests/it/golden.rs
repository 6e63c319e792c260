//! The same bytes everywhere: hashes of what the three stages make of a fixed corpus. They change only when the text of
//! a vocabulary, the layout of a shard or the order of sequences is meant to change; then every run starts anew.

use std::ops::ControlFlow;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use wels_data::corpus::ReadOptions;
use wels_data::loader::{Fim, FimRate, LoaderConfig};
use wels_data::shards::{Dataset, ShardOptions, build};
use wels_data::{Corpus, Loader};

use crate::{babble, small_tokenizer, write_files};

#[test]
fn tokenizer_shards_and_batches_have_known_hashes() {
    let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = source.path().join("corpus");
    (0..100).for_each(|seed| write_files(&folder, &[(&format!("{seed}.txt"), babble(seed, 100).as_bytes())]));
    let tokenizer = small_tokenizer();
    let corpus = Corpus::open(&folder, ReadOptions::default()).unwrap();
    let manifest =
        build(&corpus, &tokenizer, out.path(), &ShardOptions::default(), &mut |_| ControlFlow::Continue(())).unwrap();
    let ids = tokenizer.special();
    let [begin, hole, end] = [ids.fim_begin, ids.fim_hole, ids.fim_end].map(Option::unwrap);
    let fim = Some(Fim { rate: FimRate::new(0.1), begin, hole, end });
    let config =
        LoaderConfig { seq_len: 64, seed: 1, bos: ids.bos, eos: ids.eos, fim, window: 1, mask_documents: true };
    let loader = Loader::train(Arc::new(Dataset::open(out.path()).unwrap()), config);
    let batch = loader.batch(1000, 50);
    let numbers = [batch.tokens, batch.targets, batch.starts, batch.positions].concat();
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let batch_sha256: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let found = [
        tokenizer.sha256(),
        manifest.corpus_sha256,
        manifest.train.shards[0].sha256.clone(),
        manifest.validation.shards[0].sha256.clone(),
        batch_sha256,
    ];
    assert_eq!(
        found.each_ref().map(|hash| &hash[..16]),
        ["99a58d482250f422", "743887d32e562a7b", "5e761ddf33256385", "e2ac877ae5a779cb", "554b6fda7764878c"]
    );
}
