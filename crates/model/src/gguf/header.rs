//! The header of a file: counts, metadata, the table of tensors. Every length is compared with what is left of the
//! file before anything is done with it.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use super::metadata::{Kind, Raw};
use super::types::{from_id, name_of};
use wels_device::BlockType;

const MAGIC: &[u8; 4] = b"GGUF";
const DEFAULT_ALIGNMENT: usize = 32;

/// More than any model has: DeepSeek-V3 has 1,086 tensors, and files about 40 keys.
const TENSORS_MAX: u64 = 1 << 20;
const KEYS_MAX: u64 = 1 << 16;
const NAME_BYTES_MAX: usize = 1 << 10;
const DIMS_MAX: usize = 4;

/// The shortest possible entries: a key with a type and one byte, a tensor with one letter and one dimension.
const KEY_BYTES_MIN: usize = 8 + 4 + 1;
const TENSOR_BYTES_MIN: usize = 8 + 1 + 4 + 8 + 4 + 8;

/// What a header says.
#[derive(Debug)]
pub(super) struct Header {
    /// Where each key's value lies.
    pub keys: BTreeMap<String, Raw>,
    /// In the order of the file.
    pub tensors: Vec<(String, TensorInfo)>,
}

/// Type, shape and place of a tensor.
#[derive(Clone, Debug)]
pub(super) struct TensorInfo {
    /// The number of its type where it is not read.
    pub kind: Result<BlockType, u32>,
    /// Fastest-changing first: [columns, rows, …].
    pub dims: Vec<u64>,
    /// In the file; empty for a type that is not read.
    pub bytes: Range<usize>,
}

impl TensorInfo {
    /// What to call its type in a message.
    pub fn kind_name(&self) -> String {
        self.kind.map_or_else(name_of, |kind| kind.name().to_owned())
    }
}

impl Header {
    /// Reads the header of a whole file.
    ///
    /// # Errors
    /// What is wrong, as the rest of the sentence "FILE is not a valid GGUF file: …".
    pub fn read(file: &[u8]) -> Result<Header, String> {
        let mut cursor = Cursor { file, at: 0 };
        if !file.starts_with(MAGIC) {
            return Err("it does not begin with `GGUF`".to_owned());
        }
        cursor.at = MAGIC.len();
        match cursor.u32("the version")? {
            2 | 3 => {}
            version if version.swap_bytes() <= 3 => return Err("it is big-endian, which is not read".to_owned()),
            version => return Err(format!("its version is {version}, and versions 2 and 3 are read")),
        }
        let tensor_count = cursor.count("tensors", TENSORS_MAX, TENSOR_BYTES_MIN)?;
        let key_count = cursor.count("keys", KEYS_MAX, KEY_BYTES_MIN)?;
        let keys = read_keys(&mut cursor, key_count)?;
        let alignment = alignment(file, &keys)?;
        let tensors = read_tensors(&mut cursor, tensor_count, alignment)?;
        check_overlaps(&tensors)?;
        Ok(Header { keys, tensors })
    }
}

fn read_keys(cursor: &mut Cursor, count: usize) -> Result<BTreeMap<String, Raw>, String> {
    let mut keys = BTreeMap::new();
    for number in 0..count {
        let what = || format!("the name of key {} of {count}", number + 1);
        let name = cursor.name(&what)?;
        let raw = read_value(cursor, &name)?;
        if keys.insert(name.clone(), raw).is_some() {
            return Err(format!("the key `{name}` comes twice"));
        }
    }
    Ok(keys)
}

fn read_value(cursor: &mut Cursor, key: &str) -> Result<Raw, String> {
    let what = || format!("the value of `{key}`");
    let unknown = |id| format!("`{key}` has type {id}, which GGUF does not define");
    let id = cursor.u32(&what())?;
    let kind = Kind::from_id(id).ok_or_else(|| unknown(id))?;
    if kind != Kind::Array {
        let start = cursor.at;
        cursor.skip(kind, &what)?;
        return Ok(Raw { kind, count: None, bytes: start..cursor.at });
    }
    let id = cursor.u32(&what())?;
    let kind = Kind::from_id(id).ok_or_else(|| unknown(id))?;
    if kind == Kind::Array {
        return Err(format!("`{key}` is a list of lists"));
    }
    let count = cursor.u64(&what())?;
    let left = (cursor.file.len() - cursor.at) as u64;
    if count > left / kind.bytes_min() as u64 {
        return Err(format!("`{key}` claims {count} elements, and {left} bytes are left in the file"));
    }
    let start = cursor.at;
    match kind.bytes() {
        Some(bytes) => _ = cursor.take(bytes * count as usize, &what)?,
        None => (0..count).try_for_each(|_| cursor.skip(kind, &what))?,
    }
    Ok(Raw { kind, count: Some(count as usize), bytes: start..cursor.at })
}

fn alignment(file: &[u8], keys: &BTreeMap<String, Raw>) -> Result<usize, String> {
    let Some(raw) = keys.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    let value = raw.value(file);
    match value.as_u64() {
        Some(alignment) if alignment.is_power_of_two() && alignment <= 1 << 16 => Ok(alignment as usize),
        _ => Err(format!("`general.alignment` is {value}, expected a power of two up to 65536")),
    }
}

fn read_tensors(cursor: &mut Cursor, count: usize, alignment: usize) -> Result<Vec<(String, TensorInfo)>, String> {
    let mut tensors = Vec::with_capacity(count);
    let mut names = HashSet::new();
    for number in 0..count {
        let what = || format!("the entry of tensor {} of {count}", number + 1);
        let name = cursor.name(&what)?;
        let what = || format!("the entry of tensor `{name}`");
        if !names.insert(name.clone()) {
            return Err(format!("the tensor `{name}` comes twice"));
        }
        let dim_count = cursor.u32(&what())? as usize;
        if !(1..=DIMS_MAX).contains(&dim_count) {
            return Err(format!("`{name}` has {dim_count} dimensions, expected 1 to {DIMS_MAX}"));
        }
        let dims = (0..dim_count).map(|_| cursor.u64(&what())).collect::<Result<Vec<_>, _>>()?;
        let id = cursor.u32(&what())?;
        let offset = cursor.u64(&what())?;
        tensors.push((name, dims, id, offset));
    }
    let data = cursor.at.next_multiple_of(alignment);
    let place = |(name, dims, id, offset): (String, Vec<u64>, u32, u64)| {
        let info = place(cursor.file.len(), data, alignment, &name, dims, id, offset)?;
        Ok((name, info))
    };
    tensors.into_iter().map(place).collect()
}

/// Checks that a tensor lies within a file of `len` bytes whose data begin at `data`.
fn place(
    len: usize,
    data: usize,
    alignment: usize,
    name: &str,
    dims: Vec<u64>,
    id: u32,
    offset: u64,
) -> Result<TensorInfo, String> {
    let elements = dims.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
    let elements = match elements {
        Some(elements) if elements > 0 && elements <= 1 << 50 => elements,
        _ => return Err(format!("`{name}` has the shape {dims:?}")),
    };
    if !offset.is_multiple_of(alignment as u64) {
        return Err(format!("`{name}` begins at {offset}, which is no multiple of the alignment {alignment}"));
    }
    let Some(kind) = from_id(id) else {
        return Ok(TensorInfo { kind: Err(id), dims, bytes: 0..0 });
    };
    let block = kind.len() as u64;
    if !dims[0].is_multiple_of(block) {
        let kind = kind.name();
        return Err(format!("`{name}` has rows of {}, and {kind} takes multiples of {block}", dims[0]));
    }
    let bytes = elements / block * kind.bytes() as u64;
    let end = (data as u64).checked_add(offset).and_then(|start| start.checked_add(bytes));
    match end {
        Some(end) if end <= len as u64 => {
            Ok(TensorInfo { kind: Ok(kind), dims, bytes: (end - bytes) as usize..end as usize })
        }
        _ => Err(format!(
            "`{name}` takes {bytes} bytes from {offset} on, beyond the {} bytes of data (truncated?)",
            len.saturating_sub(data),
        )),
    }
}

fn check_overlaps(tensors: &[(String, TensorInfo)]) -> Result<(), String> {
    let mut order: Vec<_> = tensors.iter().filter(|(_, info)| info.kind.is_ok()).collect();
    order.sort_by_key(|(_, info)| info.bytes.start);
    match order.windows(2).find(|pair| pair[1].1.bytes.start < pair[0].1.bytes.end) {
        Some(pair) => Err(format!("`{}` and `{}` overlap", pair[0].0, pair[1].0)),
        None => Ok(()),
    }
}

/// A place in a file, moving forward.
struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize, what: &dyn Fn() -> String) -> Result<&'a [u8], String> {
        let left = self.file.len() - self.at;
        if count > left {
            return Err(format!("{} takes {count} bytes, and {left} are left in the file (truncated?)", what()));
        }
        let bytes = &self.file[self.at..self.at + count];
        self.at += count;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        let bytes = self.take(4, &|| what.to_owned())?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        let bytes = self.take(8, &|| what.to_owned())?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    }

    /// A number of things of which each takes at least `bytes_min`.
    fn count(&mut self, what: &str, max: u64, bytes_min: usize) -> Result<usize, String> {
        let count = self.u64(&format!("the number of {what}"))?;
        let left = self.file.len() - self.at;
        if count > max || count > (left / bytes_min) as u64 {
            return Err(format!("it claims {count} {what}, and {left} bytes are left in the file"));
        }
        Ok(count as usize)
    }

    fn string(&mut self, what: &dyn Fn() -> String) -> Result<&'a [u8], String> {
        let length = self.u64(&what())?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.take(length, what)
    }

    fn name(&mut self, what: &dyn Fn() -> String) -> Result<String, String> {
        let bytes = self.string(what)?;
        if bytes.is_empty() || bytes.len() > NAME_BYTES_MAX {
            return Err(format!("{} has a name of {} bytes, expected 1 to {NAME_BYTES_MAX}", what(), bytes.len()));
        }
        let name = std::str::from_utf8(bytes).map_err(|_| format!("{} has a name that is not UTF-8", what()))?;
        Ok(name.to_owned())
    }

    fn skip(&mut self, kind: Kind, what: &dyn Fn() -> String) -> Result<(), String> {
        match kind.bytes() {
            Some(bytes) => self.take(bytes, what)?,
            None => self.string(what)?,
        };
        Ok(())
    }
}
