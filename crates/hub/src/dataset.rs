//! Files of datasets: `hf://datasets/ORG/NAME[@REVISION]/PATH`, where `*` and `?` stand for letters of one name and
//! `**` for any folders.

use std::fmt;

use crate::cache;
use crate::error::HubError;
use crate::id::is_dataset;
use crate::name::{MAIN, SCHEME, is_name, is_revision, is_safe_path};
use crate::select::Entry;

/// Ends of names of data. Nothing else of a dataset is fetched: scripts are programs, and pickles can be.
const DATA_ENDS: [&str; 12] = [
    ".json",
    ".jsonl",
    ".ndjson",
    ".jsonl.gz",
    ".ndjson.gz",
    ".jsonl.zst",
    ".ndjson.zst",
    ".parquet",
    ".txt",
    ".md",
    ".csv",
    ".tsv",
];

/// Files of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataName {
    /// `datasets/ORG/NAME`.
    pub id: String,
    /// A branch, a tag or a commit; `refs/convert/…` and `refs/pr/…` are branches too.
    pub revision: String,
    /// A path in the repository, or a pattern of some.
    pub pattern: String,
}

impl DataName {
    /// Reads a name. `None` for what cannot be one.
    pub fn parse(text: &str) -> Option<DataName> {
        let rest = text.strip_prefix(SCHEME).filter(|rest| is_dataset(rest))?;
        let mut parts = rest.split('/');
        let (datasets, owner, named) = (parts.next()?, parts.next()?, parts.next()?);
        let (name, revision) = named.split_once('@').map_or((named, None), |(name, revision)| (name, Some(revision)));
        let revision = match revision {
            Some("refs") => format!("refs/{}/{}", parts.next()?, parts.next()?),
            Some(revision) => revision.to_owned(),
            None => MAIN.to_owned(),
        };
        let pattern = parts.collect::<Vec<_>>().join("/");
        let is_sound = is_name(owner) && is_name(name) && is_revision(&revision) && is_safe_path(&pattern);
        is_sound.then(|| DataName { id: format!("{datasets}/{owner}/{name}"), revision, pattern })
    }

    /// Whether it names one file and no pattern.
    pub fn is_file(&self) -> bool {
        !self.pattern.contains(['*', '?'])
    }

    /// The part of the pattern that is a folder's path, `""` for the repository's own.
    pub fn folder(&self) -> &str {
        let literal = self.pattern.find(['*', '?']).unwrap_or(self.pattern.len());
        self.pattern[..literal].rsplit_once('/').map_or("", |(folder, _)| folder)
    }

    /// The same for one of its files at a commit.
    pub fn at(&self, commit: &str, file: &str) -> DataName {
        DataName { id: self.id.clone(), revision: commit.to_owned(), pattern: file.to_owned() }
    }

    /// Those that it means, in the order of their paths.
    ///
    /// # Errors
    /// [`HubError::NoFile`]; [`HubError::NotData`] if none of them is data.
    pub(crate) fn choose<'a>(&self, entries: &'a [Entry]) -> Result<Vec<&'a Entry>, HubError> {
        let (id, file) = (self.id.clone(), self.pattern.clone());
        let mut found: Vec<&Entry> = entries.iter().filter(|entry| is_match(&self.pattern, &entry.name)).collect();
        if found.is_empty() {
            return Err(HubError::NoFile { id, file });
        }
        found.retain(|entry| is_data(&entry.name));
        found.sort_by(|a, b| a.name.cmp(&b.name));
        if found.is_empty() { Err(HubError::NotData { id, file }) } else { Ok(found) }
    }

    /// Whether its revision says for ever what it means.
    pub(crate) fn is_fixed(&self) -> bool {
        self.is_file() && cache::is_commit(&self.revision)
    }
}

impl fmt::Display for DataName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}@{}/{}", self.id, self.revision, self.pattern)
    }
}

fn is_data(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    DATA_ENDS.iter().any(|end| name.ends_with(end))
}

/// Whether a path is of that pattern.
fn is_match(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    // reached[n]: whether the patterns until now may mean the first n names.
    let mut reached = vec![false; path.len() + 1];
    reached[0] = true;
    for part in pattern {
        let mut next = vec![false; path.len() + 1];
        for n in (0..=path.len()).filter(|n| reached[*n]) {
            match part {
                "**" => next[n..].fill(true),
                _ if n < path.len() && is_name_match(part, path[n]) => next[n + 1] = true,
                _ => {}
            }
        }
        reached = next;
    }
    reached[path.len()]
}

/// The same of one name: `*` is any letters, `?` one.
fn is_name_match(pattern: &str, name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    for letter in pattern.chars() {
        let mut next = vec![false; name.len() + 1];
        for n in (0..=name.len()).filter(|n| reached[*n]) {
            match letter {
                '*' => next[n..].fill(true),
                _ if n < name.len() && (letter == '?' || letter == name[n]) => next[n + 1] = true,
                _ => {}
            }
        }
        reached = next;
    }
    reached[name.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_dataset_a_revision_and_a_path() {
        let parse = |text: &str| DataName::parse(text).map(|name| (name.id, name.revision, name.pattern));
        let is = |id: &str, revision: &str, pattern: &str| Some((id.into(), revision.into(), pattern.into()));
        assert_eq!(parse("hf://datasets/a/b/c.jsonl"), is("datasets/a/b", "main", "c.jsonl"));
        assert_eq!(parse("hf://datasets/a/b@v1/x/*.parquet"), is("datasets/a/b", "v1", "x/*.parquet"));
        let converted = "hf://datasets/a/b@refs/convert/parquet/c/train/0.parquet";
        assert_eq!(parse(converted), is("datasets/a/b", "refs/convert/parquet", "c/train/0.parquet"));
        assert_eq!(DataName::parse(converted).unwrap().to_string(), converted);
        for text in [
            "datasets/a/b/c.jsonl",
            "hf://a/b/c.jsonl",
            "hf://datasets/a/b",
            "hf://datasets/a/b/",
            "hf://datasets/a/b/../c",
            "hf://datasets/a/b@/c",
            "hf://datasets/a/b@../c",
            "hf://datasets/../b/c",
            "hf://datasets/a/b@refs/pr",
        ] {
            assert_eq!(DataName::parse(text), None, "{text}");
        }
    }

    #[test]
    fn patterns_match_within_a_name_or_over_folders() {
        for (pattern, path, expected) in [
            ("a.json", "a.json", true),
            ("a.json", "b/a.json", false),
            ("*.json", "a.json", true),
            ("*.json", "b/a.json", false),
            ("*/*.json", "b/a.json", true),
            ("**/*.json", "a.json", true),
            ("**/*.json", "c/b/a.json", true),
            ("c/**", "c/b/a.json", true),
            ("train-*-of-?.x", "train-03-of-4.x", true),
            ("train-*-of-?.x", "train-03-of-14.x", false),
            ("*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(is_match(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn the_folder_is_what_no_star_stands_in() {
        let folder = |path: &str| DataName::parse(&format!("hf://datasets/a/b/{path}")).unwrap().folder().to_owned();
        assert_eq!((folder("*.csv"), folder("x/y/*.csv"), folder("x/y*/z")), ("".into(), "x/y".into(), "x".into()));
        assert_eq!(folder("x/a.csv"), "x");
    }
}
