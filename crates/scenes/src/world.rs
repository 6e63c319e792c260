//! The two worlds by their names, and all that drawing and grading share of one.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::combinations::{Combinations, Split, divide};
use crate::shape::{Shape, Size};

/// What distinguishes a world.
#[derive(Debug, PartialEq, Eq)]
struct Rules {
    name: &'static str,
    /// Its own random numbers.
    key: u64,
    /// Of the picture, in pixels; a row of it is a word of 32 bits.
    side: usize,
    /// Left and upper edges of objects are multiples of it.
    step: usize,
    /// Small and large, in pixels.
    sizes: [u32; 2],
    shapes: &'static [Shape],
    backgrounds: &'static [[u8; 3]],
    /// Whether there are striped objects, and plain ones that cover each other.
    rich: bool,
}

const GRID_24: Rules = Rules {
    name: "grid-24",
    key: 24,
    side: 24,
    step: 4,
    sizes: [6, 9],
    shapes: &Shape::PLAIN,
    backgrounds: &[[15, 15, 20]],
    rich: false,
};

const FREE_32: Rules = Rules {
    name: "free-32",
    key: 32,
    side: 32,
    step: 1,
    sizes: [8, 12],
    shapes: &Shape::ALL,
    backgrounds: &[[15, 15, 20], [110, 110, 115]],
    rich: true,
};

const WORLDS: [Rules; 2] = [GRID_24, FREE_32];

/// A mask that an object may have.
#[derive(Debug)]
pub(crate) struct Template {
    pub shape: Shape,
    pub size: Size,
    /// Pixels in a row of it.
    pub side: u32,
    pub rows: Vec<u32>,
    pub area: u32,
}

/// A world of scenes: what can be drawn, said and asked, and what of that is held out. Serialized as its name.
///
/// `grid-24`: 24 × 24 pixels, four shapes, six colours, two sizes, one background, objects at multiples of four pixels
/// and apart. `free-32`: 32 × 32 pixels, letters and digits too, stripes, two backgrounds, objects anywhere, of which
/// two may overlap.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct World(Arc<Inner>);

struct Inner {
    rules: &'static Rules,
    combinations: [Combinations; 2],
    templates: Vec<Template>,
}

/// A name that no world has.
#[derive(Debug, thiserror::Error)]
#[error("there is no world `{name}`, only `grid-24` and `free-32`")]
pub struct UnknownWorld {
    pub name: String,
}

impl World {
    /// The names of all worlds.
    pub const NAMES: [&str; 2] = [GRID_24.name, FREE_32.name];

    /// `grid-24` or `free-32`.
    pub fn named(name: &str) -> Result<World, UnknownWorld> {
        let rules = WORLDS.iter().find(|rules| rules.name == name);
        let rules = rules.ok_or_else(|| UnknownWorld { name: name.to_owned() })?;
        let templates = rules.shapes.iter().flat_map(|&shape| Size::ALL.map(|size| template(rules, shape, size)));
        let templates = templates.collect();
        Ok(World(Arc::new(Inner { rules, combinations: divide(rules.shapes, rules.key), templates })))
    }

    pub fn name(&self) -> &'static str {
        self.0.rules.name
    }

    /// Of its pictures, in pixels.
    pub fn side(&self) -> usize {
        self.0.rules.side
    }

    pub fn shapes(&self) -> &'static [Shape] {
        self.0.rules.shapes
    }

    pub fn backgrounds(&self) -> &'static [[u8; 3]] {
        self.0.rules.backgrounds
    }

    /// Whether objects may be striped.
    pub fn has_textures(&self) -> bool {
        self.0.rules.rich
    }

    /// Whether an object may be painted over a part of another.
    pub fn has_overlaps(&self) -> bool {
        self.0.rules.rich
    }

    /// Left and upper edges of objects are multiples of this many pixels.
    pub fn step(&self) -> usize {
        self.0.rules.step
    }

    /// In pixels, of the box around an object.
    pub fn pixels(&self, size: Size) -> u32 {
        pixels(self.0.rules, size)
    }

    /// What a split's captions are made of.
    pub fn combinations(&self, split: Split) -> &Combinations {
        &self.0.combinations[usize::from(split == Split::HeldOut)]
    }

    pub(crate) fn key(&self) -> u64 {
        self.0.rules.key
    }

    pub(crate) fn templates(&self) -> &[Template] {
        &self.0.templates
    }

    pub(crate) fn template(&self, shape: Shape, size: Size) -> &Template {
        let found = self.0.templates.iter().find(|template| template.shape == shape && template.size == size);
        found.unwrap_or_else(|| panic!("{} has no {}", self.name(), shape.name()))
    }
}

fn pixels(rules: &Rules, size: Size) -> u32 {
    rules.sizes[usize::from(size == Size::Large)]
}

fn template(rules: &Rules, shape: Shape, size: Size) -> Template {
    let side = pixels(rules, size);
    let rows = shape.mask(side);
    Template { shape, size, side, area: rows.iter().map(|row| row.count_ones()).sum(), rows }
}

impl TryFrom<String> for World {
    type Error = UnknownWorld;

    fn try_from(name: String) -> Result<World, UnknownWorld> {
        World::named(&name)
    }
}

impl From<World> for String {
    fn from(world: World) -> String {
        world.name().to_owned()
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "World({})", self.name())
    }
}

impl PartialEq for World {
    fn eq(&self, other: &World) -> bool {
        self.0.rules == other.0.rules
    }
}

impl Eq for World {}

#[cfg(test)]
mod tests {
    use super::*;

    /// The best share of pixels that two masks can have in common.
    fn overlap(a: &Template, b: &Template) -> f64 {
        let row = |template: &Template, y: i32| -> u64 {
            let row = usize::try_from(y).ok().and_then(|y| template.rows.get(y));
            u64::from(*row.unwrap_or(&0)) << 16
        };
        let mut best = 0.0f64;
        for (dx, dy) in (-4..=4).flat_map(|dy| (-4..=4).map(move |dx| (dx, dy))) {
            let shifted = |y| if dx >= 0 { row(b, y - dy) << dx } else { row(b, y - dy) >> -dx };
            let common: u32 = (0..16).map(|y| (row(a, y) & shifted(y)).count_ones()).sum();
            best = best.max(f64::from(common) / f64::from(a.area + b.area - common));
        }
        best
    }

    #[test]
    fn no_shape_looks_like_another() {
        for name in World::NAMES {
            let world = World::named(name).unwrap();
            let templates = world.templates();
            for (at, a) in templates.iter().enumerate() {
                for b in &templates[at + 1..] {
                    let overlap = overlap(a, b);
                    assert!(overlap <= 0.82, "{name}: {:?} and {:?}: {overlap}", (a.shape, a.size), (b.shape, b.size));
                }
            }
        }
    }

    #[test]
    fn a_world_is_read_by_its_name() {
        let world: World = serde_json::from_str("\"free-32\"").unwrap();
        assert_eq!(serde_json::to_string(&world).unwrap(), "\"free-32\"");
        let error = serde_json::from_str::<World>("\"grid-25\"").unwrap_err().to_string();
        assert!(error.contains("there is no world `grid-25`"), "{error}");
    }
}
