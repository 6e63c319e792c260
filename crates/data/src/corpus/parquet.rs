//! Parquet: a column of strings.

use std::path::Path;

use super::{CorpusError, ReadOptions, Record};
use crate::columns::ByteColumn;

/// Records decoded at a time.
const BATCH_RECORDS: usize = 256;

pub(super) struct Reader(ByteColumn);

impl Reader {
    pub(super) fn open(path: &Path, options: &ReadOptions) -> Result<Self, CorpusError> {
        Ok(Reader(ByteColumn::open(path, &[&options.field], BATCH_RECORDS)?))
    }
}

impl Iterator for Reader {
    type Item = Result<Record, CorpusError>;

    fn next(&mut self) -> Option<Self::Item> {
        // A null has no text: an empty one, which the corpus counts.
        let bytes = self.0.next()?.map(Option::unwrap_or_default);
        let text = bytes.map(|bytes| String::from_utf8(bytes).map_or(Record::InvalidUtf8, Record::Text));
        Some(text.map_err(CorpusError::from))
    }
}
