//! JSON Lines beside the pictures that they name.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Captioned, IMAGE_BYTES_MAX, TEXT_FIELDS, caption, image, is_below, too_large};
use crate::read::{JsonLines, ReadError, text};

pub(super) struct Reader {
    path: PathBuf,
    /// Without links; nothing outside it is read.
    folder: PathBuf,
    lines: JsonLines,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Reader, ReadError> {
        let folder = folder_of(path);
        let folder = fs::canonicalize(&folder).map_err(|source| ReadError::io(&folder, source))?;
        Ok(Reader { path: path.to_owned(), folder, lines: JsonLines::open(path)? })
    }

    fn sample(&self, record: &Map<String, Value>) -> Result<Captioned, String> {
        let name = text(record, &["image"])?.to_owned();
        let caption = caption(text(record, &TEXT_FIELDS)?)?;
        if !is_below(&name) {
            return Err(format!("the path `{name}` is not one below the folder of the file"));
        }
        let missing = |error: std::io::Error| format!("the picture `{name}` cannot be read: {error}");
        let path = fs::canonicalize(self.folder.join(&name)).map_err(missing)?;
        if !path.starts_with(&self.folder) {
            return Err(format!("the picture `{name}` is a link that leads out of the folder"));
        }
        let metadata = fs::metadata(&path).map_err(missing)?;
        if !metadata.is_file() {
            return Err(format!("the picture `{name}` is no file"));
        }
        if metadata.len() > IMAGE_BYTES_MAX {
            return Err(too_large(metadata.len()));
        }
        let mut bytes = Vec::new();
        File::open(&path).and_then(|file| file.take(IMAGE_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(missing)?;
        Ok(Captioned { image: image(bytes)?, caption, name })
    }
}

impl Iterator for Reader {
    type Item = Result<Captioned, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = self.lines.next()?;
        Some(record.and_then(|(line, record)| {
            self.sample(&record).map_err(|reason| ReadError::line(&self.path, line, reason))
        }))
    }
}

/// The paths of all pictures that a file names.
pub(super) fn images(path: &Path) -> Result<Vec<PathBuf>, ReadError> {
    let folder = folder_of(path);
    let named = |record: Result<(u64, Map<String, Value>), ReadError>| {
        let (line, record) = record?;
        let name = text(&record, &["image"]).map_err(|reason| ReadError::line(path, line, reason))?;
        // As a folder is listed: `./a.png` and `a.png` are one.
        let parts = Path::new(name).components().filter(|part| !matches!(part, std::path::Component::CurDir));
        Ok(folder.join(parts.collect::<PathBuf>()))
    };
    JsonLines::open(path)?.map(named).collect()
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}
