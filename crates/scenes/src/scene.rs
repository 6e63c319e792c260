//! Scenes: a caption, what it asks for, and a picture of it, as functions of (world, split, kind, seed, number).

use crate::combinations::Split;
use crate::draw::Draw;
use crate::find::{Object, find};
use crate::picture::Rgb;
use crate::shape::{INK, Shape, Size, Texture, Thing};
use crate::spec::{Kind, Relation, Spec, Wanted};
use crate::world::World;

/// Least distance between two objects that do not overlap, in pixels.
const GAP: i32 = 2;
/// Of a drawn relation, in half pixels: how far apart two middles are at least, and by how much more than the
/// other way. Both are more than a grade asks for.
const APART: i32 = 12;
const LEAD: i32 = 2;
/// Places that are tried for an object before all are drawn anew.
const TRIES: usize = 20;
/// One of so many objects is striped where nothing is said of it; one of so many pairs is tried to overlap, and is
/// drawn anew where that cannot be told apart.
const STRIPED_ONE_IN: usize = 4;
const OVERLAP_ONE_IN: usize = 3;

/// A picture with its caption.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    pub kind: Kind,
    /// [`Spec::caption`].
    pub caption: String,
    pub spec: Spec,
    pub picture: Rgb,
    /// What is drawn, in the order of the caption. The second may cover a part of the first.
    pub objects: Vec<Object>,
    pub split: Split,
    pub world: World,
}

impl World {
    /// Scene `number` of a split, kind and seed: always the same, on every machine. Its specification is uniform over
    /// what the split has of this kind.
    pub fn scene(&self, split: Split, kind: Kind, seed: u64, number: u64) -> Scene {
        let stream = self.key() << 16 | (split as u64) << 8 | kind as u64;
        let mut draw = Draw::new(seed, stream, number);
        let (spec, things) = self.draw_spec(split, kind, &mut draw);
        let background = draw.one(self.backgrounds());
        loop {
            let Some(objects) = self.place(&spec, &things, &mut draw) else { continue };
            let picture = self.paint(background, &objects);
            // Alone and apart, an object is always found; what is covered in part may look like another.
            let covers = objects.iter().enumerate().any(|(at, a)| objects[..at].iter().any(|b| near(a, b)));
            if !covers || is_found(self, &objects, &picture) {
                return Scene { kind, caption: spec.caption(), spec, picture, objects, split, world: self.clone() };
            }
        }
    }

    /// What is asked for, and the things that are drawn, whose colours a caption may leave out.
    fn draw_spec(&self, split: Split, kind: Kind, draw: &mut Draw) -> (Spec, Vec<Thing>) {
        let combinations = self.combinations(split);
        let things = match kind {
            Kind::Single | Kind::Colours => vec![draw.one(&combinations.things)],
            Kind::Counting => {
                let (count, thing) = draw.one(&combinations.counts);
                vec![thing; count]
            }
            Kind::Two | Kind::Position | Kind::Attributes => {
                let (a, b) = draw.one(&combinations.pairs);
                if draw.below(2) == 0 { vec![a, b] } else { vec![b, a] }
            }
        };
        let mut objects: Vec<Wanted> = things.iter().map(|&thing| Wanted::thing(thing)).collect();
        if kind == Kind::Single {
            objects = vec![Wanted::shape(things[0].shape)];
        }
        if kind == Kind::Attributes {
            let by_texture = self.has_textures() && draw.below(2) == 0;
            for wanted in &mut objects {
                match by_texture {
                    true => wanted.texture = Some(draw.one(&Texture::ALL)),
                    false => wanted.size = Some(draw.one(&Size::ALL)),
                }
            }
        }
        let relation = (kind == Kind::Position).then(|| draw.one(&Relation::ALL));
        (Spec { kind, objects, relation }, things)
    }

    /// Objects with sizes, textures and places, or `None` if there was no room or they do not stand as they should.
    fn place(&self, spec: &Spec, things: &[Thing], draw: &mut Draw) -> Option<Vec<Object>> {
        let mut objects: Vec<Object> = Vec::new();
        let pair = self.has_overlaps() && things.len() == 2 && things[0].colour != things[1].colour;
        let overlap = pair && draw.below(OVERLAP_ONE_IN) == 0;
        for (wanted, thing) in spec.objects.iter().zip(things) {
            let size = wanted.size.unwrap_or_else(|| draw.one(&Size::ALL));
            let texture = wanted.texture.unwrap_or_else(|| match self.has_textures() && !overlap {
                true if draw.below(STRIPED_ONE_IN) == 0 => Texture::Striped,
                _ => Texture::Plain,
            });
            let side = self.pixels(size) as i32;
            let place = Object { shape: thing.shape, colour: thing.colour, size, texture, x: 0, y: 0, side };
            let tried = (0..TRIES).map(|_| self.at_random(place, draw));
            let plain = texture == Texture::Plain && objects.iter().all(|other| other.texture == Texture::Plain);
            let fits = |object: &Object| match overlap && plain {
                true => objects.iter().all(|other| near(object, other)),
                false => !objects.iter().any(|other| near(object, other)),
            };
            let found = { tried }.find(fits)?;
            objects.push(found);
        }
        let stands = |relation: Relation| relation.holds(objects[0].middle2(), objects[1].middle2(), APART, LEAD);
        spec.relation.is_none_or(stands).then_some(objects)
    }

    fn at_random(&self, object: Object, draw: &mut Draw) -> Object {
        let places = (self.side() - object.side as usize) / self.step() + 1;
        let mut edge = || (draw.below(places) * self.step()) as i32;
        Object { x: edge(), y: edge(), ..object }
    }

    /// The objects on a background, later ones over earlier ones.
    pub fn paint(&self, background: [u8; 3], objects: &[Object]) -> Rgb {
        let mut picture = Rgb::filled(self.side(), self.side(), background);
        for object in objects {
            paint_object(&mut picture, object, &self.template(object.shape, object.size).rows);
        }
        picture
    }
}

fn paint_object(picture: &mut Rgb, object: &Object, rows: &[u32]) {
    for (row, bits) in (0u32..).zip(rows) {
        let colour = if object.texture.inked(row) { INK } else { object.colour.rgb() };
        for column in (0..object.side as usize).filter(|column| bits >> column & 1 == 1) {
            picture.set(object.x as usize + column, object.y as usize + row as usize, colour);
        }
    }
}

/// Whether two boxes, with the gap between them, meet.
fn near(a: &Object, b: &Object) -> bool {
    let apart = |a: i32, a_side: i32, b: i32, b_side: i32| a + a_side + GAP <= b || b + b_side + GAP <= a;
    !apart(a.x, a.side, b.x, b.side) && !apart(a.y, a.side, b.y, b.side)
}

fn is_found(world: &World, objects: &[Object], picture: &Rgb) -> bool {
    let mut drawn = objects.to_vec();
    drawn.sort();
    find(world, picture).is_ok_and(|found| found == drawn)
}

/// All specifications of a split and kind, each once; their captions differ.
pub fn specs(world: &World, split: Split, kind: Kind) -> Vec<Spec> {
    let combinations = world.combinations(split);
    let spec = |objects: Vec<Wanted>, relation| Spec { kind, objects, relation };
    let of_things = |list: &[Thing]| spec(list.iter().map(|&thing| Wanted::thing(thing)).collect(), None);
    let pairs = || combinations.pairs.iter().flat_map(|&(a, b)| [[a, b], [b, a]]);
    match kind {
        Kind::Single => {
            let shapes = combinations.things.iter().map(|thing| thing.shape);
            let mut shapes: Vec<Shape> = shapes.collect();
            shapes.sort();
            shapes.dedup();
            shapes.into_iter().map(|shape| spec(vec![Wanted::shape(shape)], None)).collect()
        }
        Kind::Colours => combinations.things.iter().map(|&thing| of_things(&[thing])).collect(),
        Kind::Counting => combinations.counts.iter().map(|&(count, thing)| of_things(&vec![thing; count])).collect(),
        Kind::Two => pairs().map(|pair| of_things(&pair)).collect(),
        Kind::Position => {
            let related =
                |pair: [Thing; 2]| Relation::ALL.map(|relation| Spec { relation: Some(relation), ..of_things(&pair) });
            pairs().flat_map(related).collect()
        }
        Kind::Attributes => pairs().flat_map(|pair| attributed(world, of_things(&pair))).collect(),
    }
}

/// With both sizes, and textures where there are any, in all ways.
fn attributed(world: &World, plain: Spec) -> Vec<Spec> {
    let mut specs = Vec::new();
    for (first, second) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let mut spec = plain.clone();
        (spec.objects[0].size, spec.objects[1].size) = (Some(Size::ALL[first]), Some(Size::ALL[second]));
        specs.push(spec);
        if world.has_textures() {
            let mut spec = plain.clone();
            let textures = (Texture::ALL[first], Texture::ALL[second]);
            (spec.objects[0].texture, spec.objects[1].texture) = (Some(textures.0), Some(textures.1));
            specs.push(spec);
        }
    }
    specs
}
