//! Small tables that the host makes and a device reads: token ids, places in a sequence, angles.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use crate::Memory;
use crate::host::{Layout, Table};

/// What a device has made of a table of the host when it first met it; devices without memory of their own make
/// nothing.
#[derive(Default)]
pub struct Uploaded(OnceLock<Memory>);

impl Uploaded {
    /// The device's copy, made by `upload` at the first call.
    pub fn get_or_init(&self, upload: impl FnOnce() -> Memory) -> &Memory {
        self.0.get_or_init(upload)
    }
}

/// A list of whole numbers: token ids, positions, or where sequences begin. Clones share it and the device's copy.
#[derive(Clone, Default)]
pub struct Ids(Arc<(Vec<u32>, Uploaded)>);

impl Ids {
    /// The device's copy.
    pub fn uploaded(&self) -> &Uploaded {
        &self.0.1
    }
}

impl From<Vec<u32>> for Ids {
    fn from(ids: Vec<u32>) -> Self {
        Ids(Arc::new((ids, Uploaded::default())))
    }
}

impl From<&[u32]> for Ids {
    fn from(ids: &[u32]) -> Self {
        ids.to_vec().into()
    }
}

impl Deref for Ids {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.0.0
    }
}

impl PartialEq for Ids {
    fn eq(&self, other: &Ids) -> bool {
        self[..] == other[..]
    }
}

impl Eq for Ids {}

impl fmt::Debug for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self[..].fmt(f)
    }
}

/// Angles and layout of a model's rotary embedding. Clones share the table and the device's copy.
#[derive(Clone)]
pub struct Rotary {
    table: Arc<(Table, Uploaded)>,
    /// Which elements are a pair.
    pub layout: Layout,
}

impl Rotary {
    /// With the sines and cosines of `table`.
    pub fn new(table: Table, layout: Layout) -> Self {
        Rotary { table: Arc::new((table, Uploaded::default())), layout }
    }

    /// The same angles for other pairs.
    pub fn of_layout(&self, layout: Layout) -> Self {
        Rotary { table: self.table.clone(), layout }
    }

    /// Sines and cosines.
    pub fn table(&self) -> &Table {
        &self.table.0
    }

    /// The device's copy.
    pub fn uploaded(&self) -> &Uploaded {
        &self.table.1
    }
}

impl fmt::Debug for Rotary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rotary").field("layout", &self.layout).finish_non_exhaustive()
    }
}
