//! Finds the objects of a picture again, or says what of it is none.
//!
//! Each pixel is the nearest of the world's colours. The pieces of one colour (corners touch) are compared with every
//! shape in every size and place: the share of pixels in common, of those that either has and nothing else covers. All
//! that is no background must belong to an object, up to a few specks. In pictures that the world draws, every share is
//! 1; what is left to a decoder that is not exact are the constants below.

use std::fmt;

use crate::picture::Rgb;
use crate::shape::{Colour, INK, Shape, Size, Texture};
use crate::world::{Template, World};

/// Largest piece that is a speck and no object, in pixels.
const SPECK_PIXELS: u32 = 5;
/// Most pixels in specks.
const SPECKS_PIXELS: u32 = 8;
/// Share of pixels in common from which on a piece is an object.
const MATCH: f32 = 0.8;
/// By how much the best shape must be better than any other.
const LEAD: f32 = 0.05;
/// Share of an object that must be seen where others may cover it.
const SEEN: f32 = 0.6;
/// Share of an object's pixels that must be as its texture has them.
const TEXTURED: f32 = 0.85;
/// A pixel's colour is clear within this distance of one of the world's (squared, of 0 to 255 in three channels).
const CLEAR: i32 = 60 * 60;
/// Of a hundred pixels, how many may be unclear.
const UNCLEAR_PERCENT: usize = 10;

/// An object of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Object {
    pub shape: Shape,
    pub colour: Colour,
    pub size: Size,
    pub texture: Texture,
    /// Left edge of its box, in pixels from the left.
    pub x: i32,
    /// Upper edge of its box, in pixels from the top.
    pub y: i32,
    /// Of its box, in pixels.
    pub side: i32,
}

impl Object {
    /// Twice the middle of its box, in pixels.
    pub fn middle2(&self) -> (i32, i32) {
        (2 * self.x + self.side, 2 * self.y + self.side)
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texture = if self.texture == Texture::Striped { " striped" } else { "" };
        write!(f, "{}{texture} {} {}", self.size.name(), self.colour.name(), self.shape.name())
    }
}

/// Why a picture's objects cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Flaw {
    #[error("the picture has {width} × {height} pixels and not {side} × {side}")]
    Dimensions { width: usize, height: usize, side: usize },
    #[error("{pixels} pixels are near to no colour of the world")]
    Unclear { pixels: usize },
    #[error("there is no background")]
    NoBackground,
    #[error("{pixels} pixels are of another background")]
    Background { pixels: u32 },
    #[error("{pixels} pixels are specks")]
    Specks { pixels: u32 },
    #[error("something {} at {x}, {y} has no known shape", colour.name())]
    Shapeless { colour: Colour, x: i32, y: i32 },
    #[error("something {} at {x}, {y} could have two shapes", colour.name())]
    Ambiguous { colour: Colour, x: i32, y: i32 },
    #[error("the {} {} at {x}, {y} is neither plain nor striped", colour.name(), shape.name())]
    Texture { colour: Colour, shape: Shape, x: i32, y: i32 },
    #[error("there are stripes at {x}, {y} that belong to nothing")]
    Ink { x: i32, y: i32 },
}

/// Pixels of a picture: a word a row, bit x for column x.
type Mask = [u32; 32];

/// Where the pixels of each kind are.
struct Layers {
    colours: [Mask; 6],
    ink: Mask,
    foreground: Mask,
}

/// All objects, sorted.
pub fn find(world: &World, picture: &Rgb) -> Result<Vec<Object>, Flaw> {
    let side = world.side();
    let (width, height) = (picture.width, picture.height);
    if (width, height) != (side, side) || picture.bytes.len() != 3 * side * side {
        return Err(Flaw::Dimensions { width, height, side });
    }
    let layers = Layers::of(world, picture)?;
    let (mut objects, mut specks, mut inked) = (Vec::new(), 0, [0; 32]);
    for (colour, layer) in Colour::ALL.into_iter().zip(&layers.colours) {
        for piece in pieces(&or(layer, &layers.ink), layer) {
            let own = count(&and(&piece, layer));
            if own <= SPECK_PIXELS {
                specks += own;
                continue;
            }
            let (object, template) = layers.recognize(world, colour, &piece)?;
            inked = or(&inked, &and(&layers.ink, &placed(template, object.x, object.y)));
            objects.push(object);
        }
    }
    let rest = and_not(&layers.ink, &inked);
    for piece in pieces(&rest, &rest) {
        match count(&piece) {
            pixels if pixels > SPECK_PIXELS => return Err(corner(&piece, |x, y| Flaw::Ink { x, y })),
            pixels => specks += pixels,
        }
    }
    if specks > SPECKS_PIXELS {
        return Err(Flaw::Specks { pixels: specks });
    }
    objects.sort();
    Ok(objects)
}

impl Layers {
    /// The nearest colour of each pixel: objects' colours, ink where there are textures, then backgrounds.
    fn of(world: &World, picture: &Rgb) -> Result<Layers, Flaw> {
        let inks: &[[u8; 3]] = if world.has_textures() { &[INK] } else { &[] };
        let objects = Colour::ALL.map(Colour::rgb);
        let backgrounds = objects.len() + inks.len();
        let palette: Vec<[i32; 3]> =
            objects.iter().chain(inks).chain(world.backgrounds()).map(|c| c.map(i32::from)).collect();
        let (mut masks, mut unclear) = ([[0u32; 32]; 10], 0);
        for (at, pixel) in picture.bytes.chunks_exact(3).enumerate() {
            let (nearest, distance) = nearest(&palette, pixel);
            masks[nearest][at / picture.width] |= 1 << (at % picture.width);
            unclear += usize::from(distance > CLEAR);
        }
        if unclear * 100 > UNCLEAR_PERCENT * picture.width * picture.height {
            return Err(Flaw::Unclear { pixels: unclear });
        }
        let mut sizes: Vec<u32> = masks[backgrounds..palette.len()].iter().map(count).collect();
        sizes.sort_unstable();
        match sizes.pop() {
            None | Some(0) => return Err(Flaw::NoBackground),
            Some(_) if sizes.iter().sum::<u32>() > SPECKS_PIXELS => {
                return Err(Flaw::Background { pixels: sizes.iter().sum() });
            }
            Some(_) => {}
        }
        let colours: [Mask; 6] = std::array::from_fn(|colour| masks[colour]);
        let ink = if inks.is_empty() { [0; 32] } else { masks[objects.len()] };
        let foreground = colours.iter().fold(ink, |all, mask| or(&all, mask));
        Ok(Layers { colours, ink, foreground })
    }

    /// The object that `piece`, of this colour and ink, is, and its mask.
    fn recognize<'w>(&self, world: &'w World, colour: Colour, piece: &Mask) -> Result<(Object, &'w Template), Flaw> {
        let others = if world.has_overlaps() { and_not(&self.foreground, piece) } else { [0; 32] };
        let mut fits = Fits::default();
        for template in world.templates() {
            fits.add(template, piece, &others, world.side() as i32);
        }
        let Some(best) = fits.best.filter(|best| best.share >= MATCH) else {
            return Err(corner(piece, |x, y| Flaw::Shapeless { colour, x, y }));
        };
        if fits.second + LEAD > best.share {
            return Err(corner(piece, |x, y| Flaw::Ambiguous { colour, x, y }));
        }
        let (x, y, template) = (best.x, best.y, best.template);
        let (shape, size) = (template.shape, template.size);
        let texture = self.texture(&best, piece).ok_or(Flaw::Texture { colour, shape, x, y })?;
        Ok((Object { shape, colour, size, texture, x, y, side: template.side as i32 }, template))
    }

    /// How the pixels that piece and mask have in common are filled.
    fn texture(&self, fit: &Fit<'_>, piece: &Mask) -> Option<Texture> {
        let common = and(piece, &placed(fit.template, fit.x, fit.y));
        let needed = TEXTURED * count(&common) as f32;
        Texture::ALL.into_iter().find(|texture| {
            let right = (0..32usize).map(|row| {
                let inked = texture.inked((row as i32 - fit.y).max(0) as u32);
                let wanted = if inked { self.ink[row] } else { !self.ink[row] };
                (common[row] & wanted).count_ones()
            });
            right.sum::<u32>() as f32 >= needed
        })
    }
}

/// Index in the palette, and squared distance.
fn nearest(palette: &[[i32; 3]], pixel: &[u8]) -> (usize, i32) {
    let distance = |colour: &[i32; 3]| {
        let apart = |channel: usize| i32::from(pixel[channel]) - colour[channel];
        apart(0) * apart(0) + apart(1) * apart(1) + apart(2) * apart(2)
    };
    let mut best = (0, i32::MAX);
    for (index, colour) in palette.iter().enumerate() {
        let distance = distance(colour);
        if distance < best.1 {
            best = (index, distance);
        }
    }
    best
}

/// A mask at a place.
#[derive(Clone, Copy)]
struct Fit<'w> {
    template: &'w Template,
    x: i32,
    y: i32,
    share: f32,
}

/// The best of all, and the best share of another shape or size.
#[derive(Default)]
struct Fits<'w> {
    best: Option<Fit<'w>>,
    second: f32,
}

impl<'w> Fits<'w> {
    /// Compares `piece` with a mask wherever its box, but for a pixel, holds that of the piece.
    fn add(&mut self, template: &'w Template, piece: &Mask, others: &Mask, picture_side: i32) {
        let side = template.side as i32;
        let (left, right, top, bottom) = bounds(piece);
        let places = |first: i32, last: i32| (last - side).max(0)..=(first + 1).min(picture_side - side);
        let mut best: Option<Fit<'w>> = None;
        for y in places(top, bottom) {
            for x in places(left, right) {
                let share = share(template, x, y, piece, others, (top, bottom));
                if best.is_none_or(|best| share > best.share) {
                    best = Some(Fit { template, x, y, share });
                }
            }
        }
        let Some(fit) = best else { return };
        match self.best {
            Some(best) if best.share >= fit.share => self.second = self.second.max(fit.share),
            before => {
                self.second = self.second.max(before.map_or(0.0, |fit| fit.share));
                self.best = Some(fit);
            }
        }
    }
}

/// Pixels in common, of those that `piece` or the mask has and `others` do not cover; 0 where too much is covered.
fn share(template: &Template, x: i32, y: i32, piece: &Mask, others: &Mask, (top, bottom): (i32, i32)) -> f32 {
    let (mut common, mut hidden, mut beside) = (0, 0, 0);
    for row in top.min(y)..=bottom.max(y + template.side as i32 - 1) {
        let row = row as usize;
        let mask =
            usize::try_from(row as i32 - y).ok().and_then(|at| template.rows.get(at)).map_or(0, |bits| bits << x);
        common += (mask & piece[row]).count_ones();
        hidden += (mask & others[row]).count_ones();
        beside += (!mask & piece[row]).count_ones();
    }
    let seen = template.area - hidden;
    if (seen as f32) < SEEN * template.area as f32 { 0.0 } else { common as f32 / (seen + beside) as f32 }
}

/// A mask's pixels in the picture.
fn placed(template: &Template, x: i32, y: i32) -> Mask {
    let mut mask = [0; 32];
    for (row, bits) in (y as usize..).zip(&template.rows) {
        mask[row] = bits << x;
    }
    mask
}

/// The parts of `mask` that hang together, corners counted, which have a pixel of `seeds`.
fn pieces(mask: &Mask, seeds: &Mask) -> Vec<Mask> {
    let (mut left, mut found) = (*seeds, Vec::new());
    while let Some(row) = left.iter().position(|&bits| bits != 0) {
        let mut piece = [0; 32];
        piece[row] = left[row] & left[row].wrapping_neg();
        while grow(&mut piece, mask) {}
        left = and_not(&left, &piece);
        found.push(piece);
    }
    found
}

/// Adds the neighbours within `mask`, once down and once up; whether there were any.
fn grow(piece: &mut Mask, mask: &Mask) -> bool {
    let before = *piece;
    let spread = |bits: u32| bits | bits << 1 | bits >> 1;
    let mut visit = |row: usize, neighbour: u32| {
        let mut bits = piece[row] | spread(neighbour | piece[row]) & mask[row];
        while bits != bits | spread(bits) & mask[row] {
            bits |= spread(bits) & mask[row];
        }
        piece[row] = bits;
        bits
    };
    let mut neighbour = 0;
    for row in 0..32 {
        neighbour = visit(row, neighbour);
    }
    neighbour = 0;
    for row in (0..32).rev() {
        neighbour = visit(row, neighbour);
    }
    *piece != before
}

/// First and last column, first and last row.
fn bounds(mask: &Mask) -> (i32, i32, i32, i32) {
    let columns = mask.iter().fold(0, |all, row| all | row);
    let top = mask.iter().position(|&row| row != 0).unwrap_or(0);
    let bottom = mask.iter().rposition(|&row| row != 0).unwrap_or(0);
    (columns.trailing_zeros() as i32, 31 - columns.leading_zeros() as i32, top as i32, bottom as i32)
}

fn corner(mask: &Mask, flaw: impl FnOnce(i32, i32) -> Flaw) -> Flaw {
    let (left, _, top, _) = bounds(mask);
    flaw(left, top)
}

fn and(a: &Mask, b: &Mask) -> Mask {
    std::array::from_fn(|row| a[row] & b[row])
}

fn or(a: &Mask, b: &Mask) -> Mask {
    std::array::from_fn(|row| a[row] | b[row])
}

fn and_not(a: &Mask, b: &Mask) -> Mask {
    std::array::from_fn(|row| a[row] & !b[row])
}

fn count(mask: &Mask) -> u32 {
    mask.iter().map(|row| row.count_ones()).sum()
}
