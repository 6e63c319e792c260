//! Pictures of one's own with their captions, as they lie in files: encoded pictures, which others decode.
//!
//! ```text
//! FOLDER or FILE.jsonl   {"image": "cats/1.png", "text": "a cat"}, the path from the file's folder
//! FILE.parquet           columns `image` (bytes, or a group of `bytes` and `path`) and `text`
//! FILE.tar               WebDataset: 0001.jpg beside 0001.txt, or 0001.json with a `text`
//! ```
//! `text` may also be called `caption`. A folder is read with all its files of these kinds, in the order of their
//! names, and each picture that lies in it must have a caption. Nothing outside the folder is read. Memory holds one
//! sample, within the limits below, a page of a Parquet file, and the names of a folder's pictures.

mod folder;
mod jsonl;
mod parquet;
mod tar;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub use crate::read::ReadError;

/// Largest encoded picture.
pub const IMAGE_BYTES_MAX: u64 = 64 << 20;
/// Longest caption.
pub const CAPTION_BYTES_MAX: u64 = 64 << 10;
/// Endings of pictures' names, in lower case.
pub const IMAGE_EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];
/// Names of a caption's field or column.
const TEXT_FIELDS: [&str; 2] = ["text", "caption"];

/// A picture with what it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captioned {
    /// The encoded picture: PNG, JPEG, WebP. Not looked into here.
    pub image: Vec<u8>,
    pub caption: String,
    /// For messages: its path, stem or row.
    pub name: String,
}

type Samples = Box<dyn Iterator<Item = Result<Captioned, ReadError>>>;

/// The samples of a file or folder, in order. Ends after the first error.
pub struct Captions {
    /// Files that were not opened yet, the next one last.
    files: Vec<PathBuf>,
    current: Option<Samples>,
    /// Pictures of the folder that no line has named yet; `None` if a single file is read.
    unnamed: Option<(PathBuf, BTreeSet<PathBuf>)>,
}

/// Opens a folder, or a file by the end of its name.
pub fn open(path: &Path) -> Result<Captions, ReadError> {
    let metadata = std::fs::metadata(path).map_err(|source| ReadError::io(path, source))?;
    if !metadata.is_dir() {
        return match folder::is_list(path) {
            true => Ok(Captions { files: vec![path.to_owned()], current: None, unnamed: None }),
            false => Err(ReadError::file(path, "it is none of .jsonl, .parquet, .tar, nor a folder")),
        };
    }
    let found = folder::list(path)?;
    if found.lists.is_empty() {
        return Err(ReadError::file(path, "there is no .jsonl, .parquet or .tar in the folder"));
    }
    let files = found.lists.into_iter().rev().collect();
    Ok(Captions { files, current: None, unnamed: Some((path.to_owned(), found.images)) })
}

impl Captions {
    fn advance(&mut self) -> Result<Option<Captioned>, ReadError> {
        loop {
            if let Some(samples) = &mut self.current
                && let Some(sample) = samples.next().transpose()?
            {
                return Ok(Some(sample));
            }
            let Some(path) = self.files.pop() else { return self.end().map(|()| None) };
            self.current = Some(self.open_file(&path)?);
        }
    }

    fn open_file(&mut self, path: &Path) -> Result<Samples, ReadError> {
        let extension = path.extension().map(|extension| extension.to_ascii_lowercase()).unwrap_or_default();
        Ok(match extension.to_str() {
            Some("parquet") => Box::new(parquet::Reader::open(path)?),
            Some("tar") => Box::new(tar::Reader::open(path)?),
            _ => {
                if let Some((_, images)) = &mut self.unnamed {
                    jsonl::images(path)?.iter().for_each(|image| {
                        images.remove(image);
                    });
                }
                Box::new(jsonl::Reader::open(path)?)
            }
        })
    }

    /// Pictures without captions are an error, once all captions are known.
    fn end(&mut self) -> Result<(), ReadError> {
        let Some((folder, images)) = self.unnamed.take() else { return Ok(()) };
        match images.first() {
            Some(first) => {
                let name = first.strip_prefix(&folder).unwrap_or(first).display().to_string();
                let reason = format!("the picture has no caption ({} such in the folder)", images.len());
                Err(ReadError::entry(&folder, name, reason))
            }
            None => Ok(()),
        }
    }
}

impl Iterator for Captions {
    type Item = Result<Captioned, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance();
        if next.is_err() {
            (self.files, self.current, self.unnamed) = (Vec::new(), None, None);
        }
        next.transpose()
    }
}

/// A caption without the white space around it, or what is wrong with it.
fn caption(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("the caption is empty".to_owned()),
        text if text.len() as u64 > CAPTION_BYTES_MAX => {
            Err(format!("the caption has {} bytes, more than {CAPTION_BYTES_MAX}", text.len()))
        }
        text => Ok(text.to_owned()),
    }
}

/// An encoded picture, or what is wrong with it.
fn image(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    match bytes.len() as u64 {
        0 => Err("the picture is empty".to_owned()),
        length if length > IMAGE_BYTES_MAX => Err(too_large(length)),
        _ => Ok(bytes),
    }
}

fn too_large(bytes: u64) -> String {
    format!("the picture has {bytes} bytes, more than {IMAGE_BYTES_MAX}")
}

/// Whether a name may stand for something below a folder: no absolute path, no `..`, no `\`, which one system reads as
/// a folder's end and others do not.
fn is_below(name: &str) -> bool {
    let plain = !name.is_empty() && !name.contains(['\\', '\0']) && !name.starts_with('/');
    plain && name.as_bytes().get(1) != Some(&b':') && name.split('/').all(|part| part != "..")
}
