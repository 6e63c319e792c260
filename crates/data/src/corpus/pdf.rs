//! The text of PDF files, page by page, if the program was built to read them (the feature `pdf`).

use std::path::Path;

use super::{CorpusError, Record};

/// Files that are read; a larger one is refused, since it is taken into memory whole.
#[cfg(feature = "pdf")]
const BYTES_MAX: u64 = 256 << 20;

/// Reads a file: one document, or with `skip_bad` none where it cannot be read.
pub(super) fn read(path: &Path, skip_bad: bool) -> Result<Record, CorpusError> {
    match text_of(path) {
        Ok(text) => Ok(Record::Text(text)),
        Err(_) if skip_bad => Ok(Record::Bad),
        Err(reason) => Err(CorpusError::BadPdf { path: path.to_owned(), reason }),
    }
}

#[cfg(not(feature = "pdf"))]
fn text_of(_path: &Path) -> Result<String, String> {
    Err("was not read: this program was built without a reader of PDF files (cargo install … --features pdf)"
        .to_owned())
}

#[cfg(feature = "pdf")]
fn text_of(path: &Path) -> Result<String, String> {
    let bytes = std::fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?.len();
    if bytes > BYTES_MAX {
        return Err(format!("has {bytes} bytes, and files of up to {BYTES_MAX} are read"));
    }
    // What strangers write makes the reader panic now and then.
    let read = std::panic::catch_unwind(|| pages(path));
    let text = read.map_err(|_| "is damaged, or of a form that is not read".to_owned())??;
    match text.trim().is_empty() {
        true => Err("has no text; pages that are pictures are not read".to_owned()),
        false => Ok(text),
    }
}

#[cfg(feature = "pdf")]
fn pages(path: &Path) -> Result<String, String> {
    let file = lopdf::Document::load(path).map_err(|error| format!("is no PDF that can be read: {error}"))?;
    // What opens without a password has been decrypted, and no longer says so.
    if file.trailer.has(b"Encrypt") {
        return Err("is encrypted: save it without a password".to_owned());
    }
    let numbers: Vec<u32> = file.get_pages().into_keys().collect();
    if numbers.is_empty() {
        return Err("has no page that can be read".to_owned());
    }
    let page = |number: &u32| file.extract_text(&[*number]).map_err(|error| format!("page {number}: {error}"));
    let pages: Vec<String> = numbers.iter().map(page).collect::<Result<_, _>>()?;
    Ok(pages.iter().map(|page| page.trim()).collect::<Vec<_>>().join("\n\n"))
}
