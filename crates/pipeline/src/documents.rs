//! The texts of `[data]`: files, folders, patterns, and what a hub's cache has.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use wels_data::corpus::{Corpus, ReadOptions};
use wels_runs::recipe::{CARGO_SOURCES, DataSection};

use crate::named;
use crate::refusal::refuse;

/// The texts that `[data]` names; of a path, `*` in its last part stands for any characters.
pub(crate) fn open_corpus(data: &DataSection) -> Result<Corpus> {
    if data.sources == [CARGO_SOURCES] {
        // The workspace that this program was built from.
        return Ok(Corpus::cargo_sources(Path::new(env!("CARGO_MANIFEST_DIR")))?);
    }
    let options = ReadOptions { field: data.field.clone(), skip_bad: data.skip_bad, ..ReadOptions::default() };
    let mut places = Vec::new();
    for source in &data.sources {
        let place = named::file(source)?;
        let name = place.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match name.contains('*') && !place.exists() {
            true => places.extend(matching(&place, name)?),
            false => places.push(place.into_owned()),
        }
    }
    Ok(Corpus::open_all(&places, options)?)
}

/// The names in a folder that fit `pattern`, the last part of `path`, in order.
fn matching(path: &Path, pattern: &str) -> Result<Vec<PathBuf>> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        if entry.file_name().to_str().is_some_and(|name| !name.starts_with('.') && fits(name, pattern)) {
            found.push(entry.path());
        }
    }
    found.sort();
    match found.is_empty() {
        true => {
            Err(refuse(format!("no name fits {}", path.display()), "`*` stands for any characters of the last part"))
        }
        false => Ok(found),
    }
}

/// Whether `name` is `pattern` with something, or nothing, for each `*`.
fn fits(name: &str, pattern: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return name == pattern };
    let Some(mut left) = name.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for piece in middle.split('*') {
        let Some(at) = left.find(piece) else { return false };
        left = &left[at + piece.len()..];
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_characters() {
        for (name, pattern, expected) in [
            ("a.md", "*.md", true),
            ("a.md", "*", true),
            ("a.md", "b*.md", false),
            ("ab.md", "a*b*.md", true),
            ("a-1-b-2.md", "a*1*2.md", true),
            ("a.mdx", "*.md", false),
            ("aa", "a*aa", false),
            ("a.md", "a.md", true),
        ] {
            assert_eq!(fits(name, pattern), expected, "{name} {pattern}");
        }
    }
}
