//! Where documents come from: folders of text, HTML, PDF, JSONL, Parquet.
//!
//! A corpus is a sorted list of files; reading it gives the same documents in the same order on every machine. A file's
//! name within the corpus (not its place on this machine) goes into hashes.

mod cargo;
mod html;
mod jsonl;
mod parquet;
mod pdf;
mod text;

pub use cargo::CARGO_CRATES;

use std::fs;
use std::path::{Path, PathBuf};

use crate::columns::ColumnError;

/// Text files longer than this, and longer texts of JSONL and Parquet, are cut into several documents, at a line end
/// where there is one: it bounds the memory that a reader takes.
pub const DOCUMENT_BYTES_MAX: usize = 1 << 20;

/// Extensions of files that are read as one text each.
pub const TEXT_EXTENSIONS: &[&str] = &[
    "txt",
    "text",
    "md",
    "markdown",
    "rst",
    "adoc",
    "org",
    "tex",
    "xml",
    "csv",
    "tsv",
    "json",
    "yaml",
    "yml",
    "toml",
    "ini",
    "cfg",
    "rs",
    "py",
    "pyi",
    "c",
    "h",
    "cc",
    "cpp",
    "cxx",
    "hh",
    "hpp",
    "cu",
    "cuh",
    "go",
    "java",
    "kt",
    "scala",
    "swift",
    "js",
    "mjs",
    "ts",
    "jsx",
    "tsx",
    "css",
    "rb",
    "php",
    "pl",
    "pm",
    "lua",
    "r",
    "jl",
    "hs",
    "ml",
    "mli",
    "ex",
    "exs",
    "erl",
    "clj",
    "cs",
    "fs",
    "vb",
    "sql",
    "sh",
    "bash",
    "zsh",
    "fish",
    "ps1",
    "zig",
    "nim",
    "d",
    "f90",
    "asm",
    "s",
    "proto",
    "cmake",
    "dockerfile",
    "makefile",
];

/// What can go wrong with a corpus.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// A file or folder cannot be read.
    #[error("cannot read {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// Nothing to read in a folder.
    #[error(
        "{path} holds no file that can be read: text (.txt, .md, .rs, …), .html, .pdf, .jsonl, .jsonl.gz, .jsonl.zst \
         or .parquet"
    )]
    NoFiles { path: PathBuf },
    /// A single file of a kind that is not read.
    #[error(
        "{path} is of no kind that can be read: text (.txt, .md, .rs, …), .html, .pdf, .jsonl, .jsonl.gz, .jsonl.zst \
         or .parquet"
    )]
    UnknownKind { path: PathBuf },
    /// A record that is not what it should be.
    #[error("{path}, line {line}, column {column}: {reason}")]
    BadRecord {
        path: PathBuf,
        /// From 1.
        line: u64,
        /// In bytes, from 1; 0 where only the line is known.
        column: usize,
        reason: String,
    },
    /// A Parquet file that is damaged or lacks the column.
    #[error("{path}: {reason}")]
    BadParquet { path: PathBuf, reason: String },
    /// A PDF file that is damaged, encrypted or without text, or that this program does not read.
    #[error("{path} {reason}")]
    BadPdf { path: PathBuf, reason: String },
    /// The Rust sources of the quickstart's corpus are not there.
    #[error("cannot find the Rust sources that {manifest} pins: {reason}")]
    CargoSources {
        /// The workspace's manifest.
        manifest: PathBuf,
        reason: String,
    },
}

impl CorpusError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            CorpusError::Io { .. } => "check the path and its permissions",
            CorpusError::NoFiles { .. } | CorpusError::UnknownKind { .. } => "name a folder or file of those kinds",
            CorpusError::BadRecord { .. } => {
                "mend the line, name the right `field`, or set `skip_bad = true` to count and skip such records"
            }
            CorpusError::BadParquet { .. } => "fetch the file again, or name its string column with `field`",
            CorpusError::BadPdf { .. } => {
                "take it out of the sources, or set `skip_bad = true` to count and skip such files"
            }
            CorpusError::CargoSources { .. } => {
                "run `cargo fetch` in the workspace, or name a folder of text as the corpus"
            }
        }
    }
}

impl From<ColumnError> for CorpusError {
    fn from(error: ColumnError) -> CorpusError {
        match error {
            ColumnError::Io { path, source } => CorpusError::Io { path, source },
            ColumnError::Bad { path, reason } => CorpusError::BadParquet { path, reason },
        }
    }
}

/// How a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The whole file is one document.
    Text,
    /// The text of a page is one document.
    Html,
    /// The text of all pages is one document.
    Pdf,
    /// One JSON object a line.
    Jsonl(Compression),
    /// A column of strings.
    Parquet,
}

/// How the bytes of a JSONL file are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Kind {
    /// By the file's name; `None` for what is not read.
    pub fn of(path: &Path) -> Option<Kind> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let ends = |suffixes: [&str; 2]| suffixes.iter().any(|suffix| name.ends_with(suffix));
        if ends([".jsonl", ".ndjson"]) {
            Some(Kind::Jsonl(Compression::None))
        } else if ends([".jsonl.gz", ".ndjson.gz"]) {
            Some(Kind::Jsonl(Compression::Gzip))
        } else if ends([".jsonl.zst", ".ndjson.zst"]) {
            Some(Kind::Jsonl(Compression::Zstd))
        } else if name.ends_with(".parquet") {
            Some(Kind::Parquet)
        } else if ends([".html", ".htm"]) {
            Some(Kind::Html)
        } else if name.ends_with(".pdf") {
            Some(Kind::Pdf)
        } else {
            let extension = name.rsplit_once('.').map_or(name.as_str(), |(_, extension)| extension);
            TEXT_EXTENSIONS.contains(&extension).then_some(Kind::Text)
        }
    }
}

/// One file of a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name within the corpus, with `/` between folders.
    pub name: String,
    /// Where it is on this machine.
    pub path: PathBuf,
    /// How it is read.
    pub kind: Kind,
}

/// How files are turned into documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// The key or column that holds the text, in JSONL and Parquet.
    pub field: String,
    /// Count bad records and go on, instead of stopping at the first.
    pub skip_bad: bool,
    /// Longest document; see [`DOCUMENT_BYTES_MAX`].
    pub document_bytes_max: usize,
}

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions { field: "text".to_owned(), skip_bad: false, document_bytes_max: DOCUMENT_BYTES_MAX }
    }
}

/// A sorted list of files and how to read them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpus {
    sources: Vec<Source>,
    options: ReadOptions,
}

/// What was left out while reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Skipped {
    /// Documents that are not UTF-8.
    pub invalid_utf8: u64,
    /// Records that are not JSON or lack the field, with [`ReadOptions::skip_bad`].
    pub bad_records: u64,
    /// Documents of white space only.
    pub empty: u64,
}

impl Corpus {
    /// The file `path`, or all readable files of the folder `path` and the folders in it. Names that start with a dot,
    /// links to folders and links that lead out of the folder are passed over.
    pub fn open(path: &Path, options: ReadOptions) -> Result<Corpus, CorpusError> {
        Self::open_all(&[path], options)
    }

    /// Several files or folders, in the order given. The last part of each path becomes the first part of its files'
    /// names.
    pub fn open_all<P: AsRef<Path>>(paths: &[P], options: ReadOptions) -> Result<Corpus, CorpusError> {
        let mut sources = Vec::new();
        for path in paths.iter().map(AsRef::as_ref) {
            let metadata = fs::metadata(path).map_err(|source| CorpusError::Io { path: path.to_owned(), source })?;
            let resolved =
                fs::canonicalize(path).map_err(|source| CorpusError::Io { path: path.to_owned(), source })?;
            let name = resolved.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
            if metadata.is_dir() {
                let found = list_folder(path, &name, |kind| kind.is_some())?;
                if found.is_empty() {
                    return Err(CorpusError::NoFiles { path: path.to_owned() });
                }
                sources.extend(found);
            } else {
                // What a hub's cache links to has no name of its own, only a hash.
                let own = path.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
                let known = Kind::of(&resolved).map(|kind| (name, kind));
                let known = known.or_else(|| Kind::of(path).map(|kind| (own, kind)));
                let (name, kind) = known.ok_or_else(|| CorpusError::UnknownKind { path: path.to_owned() })?;
                sources.push(Source { name, path: path.to_owned(), kind });
            }
        }
        Ok(Corpus { sources, options })
    }

    /// The Rust sources of widely used crates ([`CARGO_CRATES`]) that the `Cargo.lock` of the workspace around
    /// `manifest_dir` pins, found with `cargo metadata`: real text that is there wherever Wels was built.
    ///
    /// The crates are under their own permissive licences (MIT, Apache-2.0, BSD, Zlib, Unlicense), whose texts lie
    /// beside the sources. They are read where cargo put them; nothing of them is copied into Wels or given on.
    pub fn cargo_sources(manifest_dir: &Path) -> Result<Corpus, CorpusError> {
        let sources = cargo::sources(manifest_dir)?;
        Ok(Corpus { sources, options: ReadOptions::default() })
    }

    /// The files, in reading order.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// How the files are read.
    pub fn options(&self) -> &ReadOptions {
        &self.options
    }

    /// The same files, cut into documents of at most `bytes`.
    pub fn with_document_bytes_max(mut self, bytes: usize) -> Corpus {
        self.options.document_bytes_max = bytes;
        self
    }

    /// All documents, in order.
    pub fn documents(&self) -> Documents<'_> {
        Documents { corpus: self, next_source: 0, current: None, pieces: Vec::new(), skipped: Skipped::default() }
    }
}

/// What a reader of one file finds next.
enum Record {
    Text(String),
    InvalidUtf8,
    /// Left out because of [`ReadOptions::skip_bad`].
    Bad,
}

type Records = Box<dyn Iterator<Item = Result<Record, CorpusError>>>;

/// The documents of a corpus, in order. Ends after the first error.
pub struct Documents<'a> {
    corpus: &'a Corpus,
    next_source: usize,
    current: Option<Records>,
    /// The rest of a text that was cut, last piece first.
    pieces: Vec<String>,
    skipped: Skipped,
}

impl Documents<'_> {
    /// What was left out so far.
    pub fn skipped(&self) -> Skipped {
        self.skipped
    }

    /// The file that the last document came from.
    pub fn source(&self) -> Option<&Source> {
        self.corpus.sources.get(self.next_source.checked_sub(1)?)
    }

    fn open(&self, source: &Source) -> Result<Records, CorpusError> {
        let options = &self.corpus.options;
        Ok(match source.kind {
            Kind::Text => Box::new(text::Reader::open(&source.path, options.document_bytes_max)?),
            Kind::Jsonl(compression) => Box::new(jsonl::Reader::open(&source.path, compression, options)?),
            Kind::Parquet => Box::new(parquet::Reader::open(&source.path, options)?),
            Kind::Html => Box::new(std::iter::once(page(&source.path))),
            Kind::Pdf => Box::new(std::iter::once(pdf::read(&source.path, options.skip_bad))),
        })
    }

    fn advance(&mut self) -> Result<Option<String>, CorpusError> {
        loop {
            if let Some(piece) = self.pieces.pop() {
                return Ok(Some(piece));
            }
            let Some(records) = &mut self.current else {
                let Some(source) = self.corpus.sources.get(self.next_source) else { return Ok(None) };
                self.current = Some(self.open(source)?);
                self.next_source += 1;
                continue;
            };
            match records.next().transpose()? {
                None => self.current = None,
                Some(Record::InvalidUtf8) => self.skipped.invalid_utf8 += 1,
                Some(Record::Bad) => self.skipped.bad_records += 1,
                Some(Record::Text(text)) if text.trim().is_empty() => self.skipped.empty += 1,
                Some(Record::Text(text)) => {
                    self.pieces = text::cut(text, self.corpus.options.document_bytes_max);
                    self.pieces.reverse();
                }
            }
        }
    }
}

impl Iterator for Documents<'_> {
    type Item = Result<String, CorpusError>;

    fn next(&mut self) -> Option<Self::Item> {
        let result = self.advance();
        if result.is_err() {
            self.current = None;
            self.pieces.clear();
            self.next_source = usize::MAX;
        }
        result.transpose()
    }
}

/// The text of a file of HTML.
fn page(path: &Path) -> Result<Record, CorpusError> {
    let bytes = fs::read(path).map_err(|source| CorpusError::Io { path: path.to_owned(), source })?;
    Ok(String::from_utf8(bytes).map_or(Record::InvalidUtf8, |html| Record::Text(html::text_of(&html))))
}

/// The files below `folder` whose kind is wanted, sorted by name, their names starting with `prefix`.
fn list_folder(folder: &Path, prefix: &str, wanted: impl Fn(Option<Kind>) -> bool) -> Result<Vec<Source>, CorpusError> {
    let mut sources = Vec::new();
    let io = |source| CorpusError::Io { path: folder.to_owned(), source };
    let within = fs::canonicalize(folder).map_err(io)?;
    // A hub's cache keeps what its folders of names link to beside them.
    let within = match within.parent().filter(|above| above.file_name().is_some_and(|name| name == "snapshots")) {
        Some(snapshots) => snapshots.parent().unwrap_or(snapshots).to_owned(),
        None => within,
    };
    let leads_out = |path: &Path| fs::canonicalize(path).is_ok_and(|target| !target.starts_with(&within));
    let mut folders = vec![(folder.to_owned(), prefix.to_owned())];
    while let Some((folder, prefix)) = folders.pop() {
        let io = |source| CorpusError::Io { path: folder.clone(), source };
        for entry in fs::read_dir(&folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let full_name = format!("{prefix}/{name}");
            let kind = entry.file_type().map_err(io)?;
            if name.starts_with('.') || (kind.is_symlink() && leads_out(&entry.path())) {
                continue;
            }
            if kind.is_dir() {
                folders.push((entry.path(), full_name));
            } else if wanted(Kind::of(&entry.path())) && fs::metadata(entry.path()).is_ok_and(|m| m.is_file()) {
                let kind = Kind::of(&entry.path()).expect("only known kinds are wanted");
                sources.push(Source { name: full_name, path: entry.path(), kind });
            }
        }
    }
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(sources)
}
