//! Parquet: a column of strings, row group by row group.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::basic::Type as PhysicalType;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::{CorpusError, ReadOptions, Record};
use crate::guard;

/// Records decoded at a time.
const BATCH_RECORDS: usize = 256;

/// Largest footer that is read into memory.
const FOOTER_BYTES_MAX: u64 = 256 << 20;

pub(super) struct Reader {
    path: PathBuf,
    file: SerializedFileReader<File>,
    column: usize,
    /// Definition level of a value that is there; below it the value is null.
    level_max: i16,
    next_row_group: usize,
    current: Option<ColumnReaderImpl<ByteArrayType>>,
    /// Decoded but not yet given out; `None` is a null.
    records: VecDeque<Option<ByteArray>>,
}

impl Reader {
    pub(super) fn open(path: &Path, options: &ReadOptions) -> Result<Self, CorpusError> {
        let io = |source| CorpusError::Io { path: path.to_owned(), source };
        let bad = |reason: String| CorpusError::BadParquet { path: path.to_owned(), reason };
        let file = File::open(path).map_err(io)?;
        check_footer(&file, path)?;
        let file = guarded(|| SerializedFileReader::new(file)).map_err(bad)?;
        let schema = file.metadata().file_metadata().schema_descr();
        let names: Vec<String> = schema.columns().iter().map(|column| column.path().string()).collect();
        let Some(column) = names.iter().position(|name| *name == options.field) else {
            return Err(bad(format!("there is no column `{}`, only {}", options.field, names.join(", "))));
        };
        let descriptor = schema.column(column);
        if descriptor.physical_type() != PhysicalType::BYTE_ARRAY || descriptor.max_rep_level() != 0 {
            return Err(bad(format!("column `{}` does not hold strings", options.field)));
        }
        Ok(Reader {
            path: path.to_owned(),
            column,
            level_max: descriptor.max_def_level(),
            file,
            next_row_group: 0,
            current: None,
            records: VecDeque::new(),
        })
    }

    /// Decodes more records; `false` at the end of the file.
    fn fill(&mut self) -> Result<bool, String> {
        while self.records.is_empty() {
            let Some(column) = &mut self.current else {
                if self.next_row_group == self.file.num_row_groups() {
                    return Ok(false);
                }
                let (file, group, column) = (&self.file, self.next_row_group, self.column);
                match guarded(|| file.get_row_group(group)?.get_column_reader(column))? {
                    ColumnReader::ByteArrayColumnReader(reader) => self.current = Some(reader),
                    _ => return Err("the column changes its type between row groups".to_owned()),
                }
                self.next_row_group += 1;
                continue;
            };
            let (mut values, mut levels) = (Vec::new(), Vec::new());
            let (records, ..) = guarded(|| column.read_records(BATCH_RECORDS, Some(&mut levels), None, &mut values))?;
            if records == 0 {
                self.current = None;
                continue;
            }
            let mut values = values.into_iter();
            match self.level_max {
                0 => self.records.extend(values.map(Some)),
                max => self.records.extend(levels.iter().map(|&level| if level == max { values.next() } else { None })),
            }
        }
        Ok(true)
    }
}

impl Iterator for Reader {
    type Item = Result<Record, CorpusError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.fill() {
            Ok(true) => {}
            Ok(false) => return None,
            Err(reason) => return Some(Err(CorpusError::BadParquet { path: self.path.clone(), reason })),
        }
        // A null has no text: an empty one, which the corpus counts.
        let bytes = self.records.pop_front().flatten().map_or(Vec::new(), |value| value.data().to_vec());
        Some(Ok(String::from_utf8(bytes).map_or(Record::InvalidUtf8, Record::Text)))
    }
}

/// Compares the footer's length with the file before memory is taken for it.
fn check_footer(file: &File, path: &Path) -> Result<(), CorpusError> {
    use std::io::{Read, Seek, SeekFrom};
    let io = |source| CorpusError::Io { path: path.to_owned(), source };
    let bad = |reason: String| Err(CorpusError::BadParquet { path: path.to_owned(), reason });
    let bytes = file.metadata().map_err(io)?.len();
    if bytes < 12 {
        return bad(format!("{bytes} bytes are too few for a Parquet file"));
    }
    let (mut file, mut tail) = (file, [0; 8]);
    file.seek(SeekFrom::End(-8)).and_then(|_| file.read_exact(&mut tail)).map_err(io)?;
    let [a, b, c, d, magic @ ..] = tail;
    let footer = u64::from(u32::from_le_bytes([a, b, c, d]));
    if magic != *b"PAR1" {
        return bad("it does not end in `PAR1`: cut short, or no Parquet file".to_owned());
    }
    if footer > (bytes - 12).min(FOOTER_BYTES_MAX) {
        return bad(format!("it claims a footer of {footer} bytes in a file of {bytes}"));
    }
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    Ok(())
}

/// Runs a call into the `parquet` crate, which panics on some damaged pages instead of reporting them.
fn guarded<T>(call: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, String> {
    match guard::catch(call) {
        Some(result) => result.map_err(|e| e.to_string()),
        None => Err("its pages are damaged".to_owned()),
    }
}
