//! Parquet: a column of strings or bytes, row group by row group.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::basic::Type as PhysicalType;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::guard;

/// Largest footer that is read into memory.
const FOOTER_BYTES_MAX: u64 = 256 << 20;

/// Why a column cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ColumnError {
    /// The system refuses.
    #[error("cannot read {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// The file is damaged, or lacks the column.
    #[error("{path}: {reason}")]
    Bad { path: PathBuf, reason: String },
}

/// The values of one column in the order of the rows; `None` for a null.
pub struct ByteColumn {
    path: PathBuf,
    file: SerializedFileReader<File>,
    column: usize,
    /// Definition level of a value that is there; below it the value is null.
    level_max: i16,
    next_row_group: usize,
    current: Option<ColumnReaderImpl<ByteArrayType>>,
    batch: usize,
    /// Decoded but not yet given out.
    values: VecDeque<Option<ByteArray>>,
}

impl ByteColumn {
    /// The first of the columns `names` that the file has (parts of a group are `group.part`), of which `batch` values
    /// are decoded at a time.
    ///
    /// # Errors
    /// Where there is none of them, it names the columns that are there.
    pub fn open(path: &Path, names: &[&str], batch: usize) -> Result<ByteColumn, ColumnError> {
        let bad = |reason: String| ColumnError::Bad { path: path.to_owned(), reason };
        let file = open_file(path)?;
        let schema = file.metadata().file_metadata().schema_descr();
        let there: Vec<String> = schema.columns().iter().map(|column| column.path().string()).collect();
        let found = names.iter().find_map(|name| there.iter().position(|other| other == name));
        let Some(column) = found else {
            return Err(bad(format!("there is no column `{}`, only {}", names.join("` or `"), there.join(", "))));
        };
        let descriptor = schema.column(column);
        if descriptor.physical_type() != PhysicalType::BYTE_ARRAY || descriptor.max_rep_level() != 0 {
            return Err(bad(format!("column `{}` does not hold strings", there[column])));
        }
        Ok(ByteColumn {
            path: path.to_owned(),
            column,
            level_max: descriptor.max_def_level(),
            file,
            next_row_group: 0,
            current: None,
            batch,
            values: VecDeque::new(),
        })
    }

    /// Decodes more values; `false` at the end of the file.
    fn fill(&mut self) -> Result<bool, String> {
        while self.values.is_empty() {
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
            let batch = self.batch;
            let (records, ..) = guarded(|| column.read_records(batch, Some(&mut levels), None, &mut values))?;
            if records == 0 {
                self.current = None;
                continue;
            }
            let mut values = values.into_iter();
            match self.level_max {
                0 => self.values.extend(values.map(Some)),
                max => self.values.extend(levels.iter().map(|&level| if level == max { values.next() } else { None })),
            }
        }
        Ok(true)
    }
}

impl Iterator for ByteColumn {
    type Item = Result<Option<Vec<u8>>, ColumnError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.fill() {
            Ok(true) => {}
            Ok(false) => return None,
            Err(reason) => return Some(Err(ColumnError::Bad { path: self.path.clone(), reason })),
        }
        let value = self.values.pop_front().flatten();
        Some(Ok(value.map(|value| value.data().to_vec())))
    }
}

/// The names of all columns; parts of a group are `group.part`.
pub fn names(path: &Path) -> Result<Vec<String>, ColumnError> {
    let file = open_file(path)?;
    let columns = file.metadata().file_metadata().schema_descr().columns();
    Ok(columns.iter().map(|column| column.path().string()).collect())
}

fn open_file(path: &Path) -> Result<SerializedFileReader<File>, ColumnError> {
    let file = File::open(path).map_err(|source| ColumnError::Io { path: path.to_owned(), source })?;
    check_footer(&file, path)?;
    guarded(|| SerializedFileReader::new(file)).map_err(|reason| ColumnError::Bad { path: path.to_owned(), reason })
}

/// Compares the footer's length with the file before memory is taken for it.
fn check_footer(file: &File, path: &Path) -> Result<(), ColumnError> {
    use std::io::{Read, Seek, SeekFrom};
    let io = |source| ColumnError::Io { path: path.to_owned(), source };
    let bad = |reason: String| Err(ColumnError::Bad { path: path.to_owned(), reason });
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
