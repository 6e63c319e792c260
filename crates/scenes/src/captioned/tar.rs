//! WebDataset: a tar file whose entries with one stem are one sample.
//!
//! Formats are those that Python's `tarfile` and GNU tar write: ustar, with long names as pax headers or GNU's. Nothing
//! is unpacked. Memory is taken as bytes come, never for what a header claims.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::{CAPTION_BYTES_MAX, Captioned, IMAGE_BYTES_MAX, IMAGE_EXTENSIONS, TEXT_FIELDS, caption, image, is_below};
use crate::read::{ReadError, object, text};

/// Headers and contents are multiples of it.
const BLOCK: usize = 512;
/// Longest header with a long name.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;

pub(super) struct Reader {
    path: PathBuf,
    input: BufReader<File>,
    /// Read already, and of the next sample.
    waiting: Option<Entry>,
}

/// A file of the archive.
struct Entry {
    name: String,
    content: Content,
}

/// What of it is needed.
enum Content {
    Image(Vec<u8>),
    Text(String),
    /// The caption in it, which a text goes before, or why there is none.
    Json(Result<String, String>),
    Other,
}

/// A sample while its entries come.
#[derive(Default)]
struct Sample {
    stem: String,
    image: Option<Vec<u8>>,
    text: Option<String>,
    json: Option<Result<String, String>>,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Reader, ReadError> {
        let file = File::open(path).map_err(|source| ReadError::io(path, source))?;
        Ok(Reader { path: path.to_owned(), input: BufReader::with_capacity(1 << 16, file), waiting: None })
    }

    fn fail(&self, name: &str, reason: impl Into<String>) -> ReadError {
        ReadError::entry(&self.path, name, reason)
    }

    fn sample(&mut self) -> Result<Option<Captioned>, ReadError> {
        let mut sample: Option<Sample> = None;
        loop {
            let entry = match self.waiting.take() {
                Some(entry) => Some(entry),
                None => self.entry()?,
            };
            let Some(entry) = entry else { break };
            if matches!(entry.content, Content::Other) {
                continue;
            }
            let (stem, _) = split(&entry.name);
            if sample.as_ref().is_some_and(|sample| sample.stem != stem) {
                self.waiting = Some(entry);
                break;
            }
            let sample = sample.get_or_insert_with(|| Sample { stem: stem.to_owned(), ..Sample::default() });
            if !sample.add(entry.content) {
                return Err(self.fail(&entry.name, format!("the sample `{}` has two such entries", sample.stem)));
            }
        }
        match sample {
            // A JSON file that belongs to no sample.
            Some(Sample { image: None, text: None, json: Some(Err(_)), .. }) => self.sample(),
            sample => sample.map(|sample| self.finish(sample)).transpose(),
        }
    }

    fn finish(&self, sample: Sample) -> Result<Captioned, ReadError> {
        let Sample { stem, image: bytes, text, json } = sample;
        let fail = |reason: String| self.fail(&stem, reason);
        let bytes = bytes.ok_or_else(|| fail("a caption without a picture".to_owned()))?;
        let text = text.map(Ok).or(json).unwrap_or_else(|| Err("there is no text beside it".to_owned()));
        let text = text.map_err(|reason| fail(format!("a picture without a caption: {reason}")))?;
        let (image, caption) = (image(bytes).map_err(fail)?, caption(&text).map_err(fail)?);
        Ok(Captioned { image, caption, name: stem })
    }

    /// The next file; `None` at the end of the archive.
    fn entry(&mut self) -> Result<Option<Entry>, ReadError> {
        let mut long_name: Option<String> = None;
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            let name = match long_name.take() {
                Some(name) => name,
                None => header.name().map_err(|reason| self.fail("a header", reason))?,
            };
            let size = header.size().map_err(|reason| self.fail(&name, reason))?;
            match header.kind() {
                b'0' | b'\0' | b'7' => return self.file(name, size).map(Some),
                b'L' => {
                    let bytes = self.bytes(&name, size, EXTENSION_BYTES_MAX)?;
                    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
                    long_name = Some(utf8(&bytes[..end]).map_err(|reason| self.fail(&name, reason))?);
                }
                b'x' => {
                    let bytes = self.bytes(&name, size, EXTENSION_BYTES_MAX)?;
                    long_name = pax_path(&bytes).map_err(|reason| self.fail(&name, reason))?;
                }
                b'g' => self.bytes(&name, size, EXTENSION_BYTES_MAX).map(drop)?,
                b'5' => self.skip(&name, size)?,
                b'1' | b'2' => return Err(self.fail(&name, "it is a link, which is not followed")),
                kind => return Err(self.fail(&name, format!("it is of a kind that is not read ({kind})"))),
            }
        }
    }

    fn file(&mut self, name: String, size: u64) -> Result<Entry, ReadError> {
        if !is_below(&name) {
            return Err(self.fail(&name, "its path is absolute or leads out of the archive"));
        }
        let (_, extension) = split(&name);
        let extension = extension.to_ascii_lowercase();
        let content = match extension.as_str() {
            image if IMAGE_EXTENSIONS.contains(&image) => Content::Image(self.bytes(&name, size, IMAGE_BYTES_MAX)?),
            "txt" | "text" | "caption" => {
                let bytes = self.bytes(&name, size, CAPTION_BYTES_MAX)?;
                Content::Text(utf8(&bytes).map_err(|reason| self.fail(&name, reason))?)
            }
            "json" => {
                let bytes = self.bytes(&name, size, EXTENSION_BYTES_MAX)?;
                let said = object(&bytes).and_then(|object| text(&object, &TEXT_FIELDS).map(str::to_owned));
                Content::Json(said)
            }
            _ => {
                self.skip(&name, size)?;
                Content::Other
            }
        };
        Ok(Entry { name, content })
    }

    /// The next header that is none of the zeros at the end; `None` there.
    fn header(&mut self) -> Result<Option<Header>, ReadError> {
        let mut block = [0; BLOCK];
        self.read(&mut block, "the end")?;
        if block == [0; BLOCK] {
            return Ok(None);
        }
        let header = Header(block);
        match header.is_sound() {
            true => Ok(Some(header)),
            false => Err(ReadError::file(&self.path, "it is damaged, or no tar file: a header's checksum is wrong")),
        }
    }

    fn read(&mut self, block: &mut [u8], name: &str) -> Result<(), ReadError> {
        self.input.read_exact(block).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => self.fail(name, "the archive is cut short"),
            _ => ReadError::io(&self.path, error),
        })
    }

    /// The content of an entry, with what fills its last block.
    fn bytes(&mut self, name: &str, size: u64, max: u64) -> Result<Vec<u8>, ReadError> {
        if size > max {
            return Err(self.fail(name, format!("it has {size} bytes, more than {max}")));
        }
        let mut bytes = Vec::new();
        let read = self.input.by_ref().take(size).read_to_end(&mut bytes);
        if (read.map_err(|source| ReadError::io(&self.path, source))? as u64) < size {
            return Err(self.fail(name, "the archive is cut short"));
        }
        let mut rest = [0; BLOCK];
        self.read(&mut rest[..padding(size)], name)?;
        Ok(bytes)
    }

    fn skip(&mut self, name: &str, size: u64) -> Result<(), ReadError> {
        let whole = size.saturating_add(padding(size) as u64);
        let skipped = std::io::copy(&mut self.input.by_ref().take(whole), &mut std::io::sink());
        match skipped.map_err(|source| ReadError::io(&self.path, source))? {
            skipped if skipped == whole => Ok(()),
            _ => Err(self.fail(name, "the archive is cut short")),
        }
    }
}

impl Iterator for Reader {
    type Item = Result<Captioned, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.sample().transpose()
    }
}

impl Sample {
    /// `false` if there is one already.
    fn add(&mut self, content: Content) -> bool {
        match content {
            Content::Image(bytes) => self.image.replace(bytes).is_none(),
            Content::Text(text) => self.text.replace(text).is_none(),
            Content::Json(text) => self.json.replace(text).is_none(),
            Content::Other => true,
        }
    }
}

/// Bytes behind a content up to the next block.
fn padding(size: u64) -> usize {
    (size.next_multiple_of(BLOCK as u64) - size) as usize
}

/// Stem and ending: the name before and after the first dot of its last part.
fn split(name: &str) -> (&str, &str) {
    let last = name.rfind('/').map_or(0, |at| at + 1);
    match name[last..].find('.') {
        Some(dot) => (&name[..last + dot], &name[last + dot + 1..]),
        None => (name, ""),
    }
}

fn utf8(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "it is not UTF-8".to_owned())
}

/// The `path` of a pax header: records "LENGTH KEY=VALUE\n", of which LENGTH counts all bytes.
fn pax_path(mut bytes: &[u8]) -> Result<Option<String>, String> {
    let mut path = None;
    while !bytes.is_empty() {
        let damaged = || "its extended header is damaged".to_owned();
        let space = bytes.iter().take(20).position(|&byte| byte == b' ').ok_or_else(damaged)?;
        let length = std::str::from_utf8(&bytes[..space]).ok().and_then(|text| text.parse::<usize>().ok());
        let length = length.filter(|length| (space + 2..=bytes.len()).contains(length)).ok_or_else(damaged)?;
        let record = &bytes[space + 1..length - 1];
        if let Some(value) = record.strip_prefix(b"path=") {
            path = Some(utf8(value)?);
        }
        if record.starts_with(b"size=") {
            return Err("its size stands in an extended header: it is too large".to_owned());
        }
        bytes = &bytes[length..];
    }
    Ok(path)
}

/// The block before an entry, as ustar lays it out.
struct Header([u8; BLOCK]);

impl Header {
    fn kind(&self) -> u8 {
        self.0[156]
    }

    /// The sum of all bytes, those of the sum itself as spaces.
    fn is_sound(&self) -> bool {
        let own = 148..156;
        let sum = |(at, byte): (usize, &u8)| if own.contains(&at) { u64::from(b' ') } else { u64::from(*byte) };
        octal(&self.0[own.clone()]) == Some(self.0.iter().enumerate().map(sum).sum())
    }

    /// With ustar's prefix.
    fn name(&self) -> Result<String, String> {
        let text = |field: &[u8]| utf8(field.split(|&byte| byte == 0).next().unwrap_or_default());
        let (name, prefix) = (text(&self.0[..100])?, text(&self.0[345..500])?);
        let ustar = self.0[257..263] == *b"ustar\0";
        Ok(if ustar && !prefix.is_empty() { format!("{prefix}/{name}") } else { name })
    }

    fn size(&self) -> Result<u64, String> {
        octal(&self.0[124..136]).ok_or_else(|| "its size is no octal number of at most eleven digits".to_owned())
    }
}

/// Digits with spaces and zeros around them.
fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    let text = text.trim_matches([' ', '\0']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok().filter(|_| !text.starts_with('+')) }
}
