//! Whether a picture is what its caption asks for: these objects, no others, and where they should be.

use crate::find::{Flaw, Object, find};
use crate::picture::Rgb;
use crate::spec::{Relation, Spec, Wanted};
use crate::world::World;

/// Least distance between two middles that a relation needs, in half pixels.
const APART: i32 = 8;

/// The verdict on a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Grade {
    /// What is there, as far as it could be told.
    pub found: Vec<Object>,
    /// Why it fails.
    pub fault: Option<Fault>,
}

/// Why a picture fails.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Fault {
    /// Not a picture of the world.
    #[error(transparent)]
    Flaw(#[from] Flaw),
    #[error("{wanted} objects are wanted, and there are {found}")]
    Count { wanted: usize, found: usize },
    #[error("a {} is wanted, and there is {found}", wanted.words())]
    Missing {
        wanted: Wanted,
        /// All objects, in words.
        found: String,
    },
    #[error("the {} is not {} the {}", first.words(), relation.name(), second.words())]
    Place { first: Wanted, relation: Relation, second: Wanted },
}

impl Grade {
    pub fn passes(&self) -> bool {
        self.fault.is_none()
    }

    /// In words, if it fails.
    pub fn reason(&self) -> Option<String> {
        self.fault.as_ref().map(Fault::to_string)
    }
}

/// Finds the objects of `picture` and compares them with `spec`. A function of its arguments.
pub fn grade(world: &World, spec: &Spec, picture: &Rgb) -> Grade {
    match find(world, picture) {
        Ok(found) => Grade { fault: fault(spec, &found), found },
        Err(flaw) => Grade { found: Vec::new(), fault: Some(flaw.into()) },
    }
}

fn fault(spec: &Spec, found: &[Object]) -> Option<Fault> {
    if found.len() != spec.objects.len() {
        return Some(Fault::Count { wanted: spec.objects.len(), found: found.len() });
    }
    let mut order = Vec::new();
    if assign(spec, found, &mut order) {
        return None;
    }
    let unplaced = Spec { relation: None, ..spec.clone() };
    if let (Some(relation), true) = (spec.relation, assign(&unplaced, found, &mut order)) {
        return Some(Fault::Place { first: spec.objects[0], relation, second: spec.objects[1] });
    }
    let missing = spec.objects.iter().find(|wanted| !found.iter().any(|object| matches(wanted, object)));
    let names: Vec<String> = found.iter().map(|object| format!("a {object}")).collect();
    Some(Fault::Missing { wanted: *missing.unwrap_or(&spec.objects[0]), found: names.join(", ") })
}

/// Whether there is an order of `found` (its numbers go to `order`) in which each is what is wanted there.
fn assign(spec: &Spec, found: &[Object], order: &mut Vec<usize>) -> bool {
    let Some(wanted) = spec.objects.get(order.len()) else {
        let placed = spec.relation.is_none_or(|relation| stands(relation, &found[order[0]], &found[order[1]]));
        if !placed {
            order.pop();
        }
        return placed;
    };
    for (at, object) in found.iter().enumerate() {
        if !order.contains(&at) && matches(wanted, object) {
            let depth = order.len();
            order.push(at);
            if assign(spec, found, order) {
                return true;
            }
            order.truncate(depth);
        }
    }
    false
}

/// Whether the first object is there, seen from the second: its middle four pixels that way, and as far as any other.
pub(crate) fn stands(relation: Relation, first: &Object, second: &Object) -> bool {
    relation.holds(first.middle2(), second.middle2(), APART, 0)
}

fn matches(wanted: &Wanted, object: &Object) -> bool {
    wanted.shape == object.shape
        && wanted.colour.is_none_or(|colour| colour == object.colour)
        && wanted.size.is_none_or(|size| size == object.size)
        && wanted.texture.is_none_or(|texture| texture == object.texture)
}
