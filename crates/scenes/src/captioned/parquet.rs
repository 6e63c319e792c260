//! Parquet: a column of encoded pictures and one of captions, as `datasets` of Hugging Face writes them.

use std::path::{Path, PathBuf};

use wels_data::columns::{ByteColumn, ColumnError, names};

use super::{Captioned, TEXT_FIELDS, caption, image};
use crate::read::ReadError;

/// Rows decoded at a time: encoded pictures are large.
const BATCH: usize = 1;

pub(super) struct Reader {
    path: PathBuf,
    images: ByteColumn,
    texts: ByteColumn,
    /// Where pictures are groups of bytes and path.
    paths: Option<ByteColumn>,
    row: u64,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Reader, ReadError> {
        let column = |names: &[&str]| ByteColumn::open(path, names, BATCH).map_err(translated);
        let images = column(&["image", "image.bytes"])?;
        let texts = column(&TEXT_FIELDS)?;
        let has_paths = names(path).map_err(translated)?.iter().any(|name| name == "image.path");
        let paths = if has_paths { Some(column(&["image.path"])?) } else { None };
        Ok(Reader { path: path.to_owned(), images, texts, paths, row: 0 })
    }

    fn sample(&mut self) -> Result<Option<Captioned>, ReadError> {
        let mut next = |column: &mut ByteColumn| column.next().transpose().map_err(translated);
        let (bytes, text) = (next(&mut self.images)?, next(&mut self.texts)?);
        let path = self.paths.as_mut().map(&mut next).transpose()?.flatten().flatten();
        self.row += 1;
        let fail = |reason: &str| ReadError::entry(&self.path, format!("row {}", self.row), reason);
        let (bytes, text) = match (bytes, text) {
            (None, None) => return Ok(None),
            (Some(bytes), Some(text)) => (bytes, text),
            _ => return Err(fail("one of the columns has fewer rows than the other")),
        };
        let bytes = bytes.ok_or_else(|| fail("a caption without a picture: `bytes` is null"))?;
        let text = text.ok_or_else(|| fail("a picture without a caption: the text is null"))?;
        let text = String::from_utf8(text).map_err(|_| fail("the caption is not UTF-8"))?;
        let name = path.and_then(|path| String::from_utf8(path).ok()).filter(|path| !path.is_empty());
        Ok(Some(Captioned {
            image: image(bytes).map_err(|reason| fail(&reason))?,
            caption: caption(&text).map_err(|reason| fail(&reason))?,
            name: name.unwrap_or_else(|| format!("row {}", self.row)),
        }))
    }
}

impl Iterator for Reader {
    type Item = Result<Captioned, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.sample().transpose()
    }
}

fn translated(error: ColumnError) -> ReadError {
    match error {
        ColumnError::Io { path, source } => ReadError::Io { path, source },
        ColumnError::Bad { path, reason } => ReadError::File { path, reason },
    }
}
