//! Which rows the parts of a stacked matrix are multiplied with, as the kernels of products take them.

use wels_device::Groups;

use crate::experts::{self, TILE};
use crate::launch::{Buffer, Launch};

/// Which rows each part of a stacked matrix is multiplied with.
#[derive(Clone, Copy)]
pub(crate) enum Parts<'a> {
    /// Slots of experts, and the row of x of each slot where x has those of the tokens.
    Slots(&'a experts::Tables, Option<&'a Buffer>),
    /// Parts of as many rows: how many parts, and rows of each.
    Equal(usize, usize),
}

impl<'a> Parts<'a> {
    /// A dense product.
    pub fn one(rows: usize) -> Parts<'a> {
        Parts::Equal(1, rows)
    }

    pub fn of(groups: Groups<'a>, rows: usize) -> Parts<'a> {
        match groups {
            Groups::Slots(dispatch) => Parts::Slots(experts::tables(dispatch), None),
            Groups::Tokens(dispatch) => {
                let tables = experts::tables(dispatch);
                Parts::Slots(tables, Some(&tables.rows))
            }
            Groups::Equal(parts) => {
                assert!(rows.is_multiple_of(parts), "{rows} rows in {parts} equal parts");
                Parts::Equal(parts, rows / parts)
            }
        }
    }

    pub fn count(&self) -> usize {
        match self {
            Parts::Slots(tables, _) => tables.experts,
            Parts::Equal(parts, _) => *parts,
        }
    }

    /// Tiles of rows that a grid has to have, at most.
    pub fn tiles(&self) -> usize {
        match self {
            Parts::Slots(tables, _) => tables.tiles_max,
            Parts::Equal(parts, rows) => parts * rows.div_ceil(TILE),
        }
    }

    pub fn slots(&self) -> usize {
        match self {
            Parts::Slots(tables, _) => tables.slots_len,
            Parts::Equal(parts, rows) => parts * rows,
        }
    }

    /// The row of x of each slot.
    pub fn rows(&self) -> Option<&'a Buffer> {
        match self {
            Parts::Slots(_, rows) => *rows,
            Parts::Equal(..) => None,
        }
    }

    /// The arguments `tiles` and `equal`.
    pub fn with_tiles<'l>(&self, launch: Launch<'l>) -> Launch<'l>
    where
        'a: 'l,
    {
        match *self {
            Parts::Slots(tables, _) => launch.read(&tables.tiles).int(0),
            Parts::Equal(_, rows) => launch.read_if(None).int(rows),
        }
    }

    /// The arguments `begins` and `equal`.
    pub fn with_begins<'l>(&self, launch: Launch<'l>) -> Launch<'l>
    where
        'a: 'l,
    {
        match *self {
            Parts::Slots(tables, _) => launch.read(&tables.offsets).int(0),
            Parts::Equal(_, rows) => launch.read_if(None).int(rows),
        }
    }
}
