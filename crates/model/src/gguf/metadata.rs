//! Values of the metadata. They stay in the mapped file until they are asked for.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// The types that GGUF defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    const ALL: [Kind; 13] = [
        Kind::U8,
        Kind::I8,
        Kind::U16,
        Kind::I16,
        Kind::U32,
        Kind::I32,
        Kind::F32,
        Kind::Bool,
        Kind::String,
        Kind::Array,
        Kind::U64,
        Kind::I64,
        Kind::F64,
    ];

    pub fn from_id(id: u32) -> Option<Kind> {
        Kind::ALL.get(id as usize).copied()
    }

    pub fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of a value; `None` for strings and lists.
    pub fn bytes(self) -> Option<usize> {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => Some(1),
            Kind::U16 | Kind::I16 => Some(2),
            Kind::U32 | Kind::I32 | Kind::F32 => Some(4),
            Kind::U64 | Kind::I64 | Kind::F64 => Some(8),
            Kind::String | Kind::Array => None,
        }
    }

    /// Bytes that a value takes at least.
    pub fn bytes_min(self) -> usize {
        self.bytes().unwrap_or(8)
    }

    /// The value in `bytes`, which have its length.
    fn value(self, bytes: &[u8]) -> Value<'_> {
        macro_rules! number {
            ($type:ty) => {
                <$type>::from_le_bytes(bytes.try_into().expect("the header's reader has measured it"))
            };
        }
        match self {
            Kind::U8 => Value::Unsigned(number!(u8).into()),
            Kind::U16 => Value::Unsigned(number!(u16).into()),
            Kind::U32 => Value::Unsigned(number!(u32).into()),
            Kind::U64 => Value::Unsigned(number!(u64)),
            Kind::I8 => Value::Signed(number!(i8).into()),
            Kind::I16 => Value::Signed(number!(i16).into()),
            Kind::I32 => Value::Signed(number!(i32).into()),
            Kind::I64 => Value::Signed(number!(i64)),
            Kind::F32 => Value::Single(number!(f32)),
            Kind::F64 => Value::Double(number!(f64)),
            Kind::Bool => Value::Bool(bytes != [0]),
            Kind::String => Value::String(&bytes[8..]),
            Kind::Array => unreachable!("a list has an element type of its own"),
        }
    }
}

/// Where a value lies.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    /// Of a list, its elements'.
    pub kind: Kind,
    /// Elements of a list; `None` for a single value.
    pub count: Option<usize>,
    /// Of a string, with its length in front; of a list, all elements.
    pub bytes: Range<usize>,
}

impl Raw {
    pub fn value<'a>(&self, file: &'a [u8]) -> Value<'a> {
        let bytes = &file[self.bytes.clone()];
        match self.count {
            None => self.kind.value(bytes),
            Some(count) => Value::Array(Array { kind: self.kind, count, bytes }),
        }
    }
}

/// One value. `Display` abbreviates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Single(f32),
    Double(f64),
    Bool(bool),
    /// Not necessarily UTF-8.
    String(&'a [u8]),
    Array(Array<'a>),
}

impl<'a> Value<'a> {
    /// A whole number that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::Unsigned(number) => Some(number),
            Value::Signed(number) => u64::try_from(number).ok(),
            _ => None,
        }
    }

    /// A number with a fraction, or a whole one. An f32 becomes the f64 with the same shortest decimal, so that 0.1 in
    /// a file is 0.1.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::Single(number) => Some(number.to_string().parse().expect("a number prints as one")),
            Value::Double(number) => Some(number),
            Value::Unsigned(number) => Some(number as f64),
            Value::Signed(number) => Some(number as f64),
            _ => None,
        }
    }

    /// True or false.
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(flag) = *self { Some(flag) } else { None }
    }

    /// Text that is UTF-8.
    pub fn as_str(&self) -> Option<&'a str> {
        if let Value::String(bytes) = *self { std::str::from_utf8(bytes).ok() } else { None }
    }

    /// A list.
    pub fn as_array(&self) -> Option<Array<'a>> {
        if let Value::Array(array) = *self { Some(array) } else { None }
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Unsigned(number) => write!(f, "{number}"),
            Value::Signed(number) => write!(f, "{number}"),
            Value::Single(number) => write!(f, "{number}"),
            Value::Double(number) => write!(f, "{number}"),
            Value::Bool(flag) => write!(f, "{flag}"),
            Value::String(bytes) => {
                let text = String::from_utf8_lossy(&bytes[..bytes.len().min(240)]);
                match text.char_indices().nth(60) {
                    Some((end, _)) => write!(f, "{:?}…", &text[..end]),
                    None => write!(f, "{text:?}"),
                }
            }
            Value::Array(array) => write!(f, "a list of {}", array.len()),
        }
    }
}

/// A list of values of one type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    kind: Kind,
    count: usize,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The elements.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (kind, mut rest) = (self.kind, self.bytes);
        (0..self.count).map(move |_| {
            let length = kind.bytes().unwrap_or_else(|| {
                let length = u64::from_le_bytes(rest[..8].try_into().expect("eight bytes"));
                8 + length as usize
            });
            let (bytes, after) = rest.split_at(length);
            rest = after;
            kind.value(bytes)
        })
    }
}

/// All metadata of a file.
#[derive(Clone, Copy)]
pub struct Metadata<'a> {
    file: &'a [u8],
    keys: &'a BTreeMap<String, Raw>,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(file: &'a [u8], keys: &'a BTreeMap<String, Raw>) -> Metadata<'a> {
        Metadata { file, keys }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.keys.get(key).map(|raw| raw.value(self.file))
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.keys.keys().map(String::as_str)
    }
}
