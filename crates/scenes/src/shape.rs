//! What objects are made of: shapes with their masks, colours, sizes, textures.

use serde::{Deserialize, Serialize};

/// The outline of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    Circle,
    Square,
    Triangle,
    Cross,
    H,
    L,
    T,
    Zero,
    Four,
    Seven,
}

impl Shape {
    /// Shapes without letters and digits.
    pub const PLAIN: [Shape; 4] = [Shape::Circle, Shape::Square, Shape::Triangle, Shape::Cross];
    /// Those of `free-32`.
    pub const ALL: [Shape; 10] = [
        Shape::Circle,
        Shape::Square,
        Shape::Triangle,
        Shape::Cross,
        Shape::H,
        Shape::L,
        Shape::T,
        Shape::Zero,
        Shape::Four,
        Shape::Seven,
    ];

    /// In captions, for one.
    pub fn name(self) -> &'static str {
        match self {
            Shape::Circle => "circle",
            Shape::Square => "square",
            Shape::Triangle => "triangle",
            Shape::Cross => "cross",
            Shape::H => "letter h",
            Shape::L => "letter l",
            Shape::T => "letter t",
            Shape::Zero => "digit 0",
            Shape::Four => "digit 4",
            Shape::Seven => "digit 7",
        }
    }

    /// In captions, for several.
    pub fn plural(self) -> &'static str {
        match self {
            Shape::Circle => "circles",
            Shape::Square => "squares",
            Shape::Triangle => "triangles",
            Shape::Cross => "crosses",
            Shape::H => "letters h",
            Shape::L => "letters l",
            Shape::T => "letters t",
            Shape::Zero => "digits 0",
            Shape::Four => "digits 4",
            Shape::Seven => "digits 7",
        }
    }

    /// Which pixels of a box of `side` × `side` it covers: a word a row, bit x for column x. Each shape of each size is
    /// one piece, corners counted as touching.
    pub fn mask(self, side: u32) -> Vec<u32> {
        assert!((4..=32).contains(&side), "a shape of {side} pixels");
        let row =
            |y| (0..side).filter(|&x| self.covers(x as i32, y as i32, side as i32)).fold(0, |row, x| row | 1 << x);
        (0..side).map(row).collect()
    }

    fn covers(self, x: i32, y: i32, side: i32) -> bool {
        // Twice the distance from the middle, which may lie between two pixels.
        let (dx, dy) = (2 * x - (side - 1), 2 * y - (side - 1));
        let cell = |rows: [u8; 4]| rows[(y * 4 / side) as usize] >> (x * 4 / side) & 1 == 1;
        match self {
            // A little less than the circle in the box, which at 6 pixels would lack the corners alone.
            Shape::Circle => dx * dx + dy * dy <= side * side - 4,
            Shape::Square => true,
            Shape::Triangle => dx.abs() <= y + 1,
            // Diagonal: an upright one of 6 pixels is five sixths of the circle.
            Shape::Cross => (dx.abs() - dy.abs()).abs() <= 2,
            Shape::H => cell([0b1001, 0b1111, 0b1001, 0b1001]),
            Shape::L => cell([0b0001, 0b0001, 0b0001, 0b1111]),
            Shape::T => cell([0b1111, 0b0110, 0b0110, 0b0110]),
            Shape::Zero => cell([0b1111, 0b1001, 0b1001, 0b1111]),
            Shape::Four => cell([0b1001, 0b1001, 0b1111, 0b1000]),
            Shape::Seven => cell([0b1111, 0b1000, 0b0100, 0b0010]),
        }
    }
}

/// The colour of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colour {
    Red,
    Green,
    Blue,
    Yellow,
    White,
    Purple,
}

impl Colour {
    /// The same in both worlds.
    pub const ALL: [Colour; 6] =
        [Colour::Red, Colour::Green, Colour::Blue, Colour::Yellow, Colour::White, Colour::Purple];

    pub fn name(self) -> &'static str {
        match self {
            Colour::Red => "red",
            Colour::Green => "green",
            Colour::Blue => "blue",
            Colour::Yellow => "yellow",
            Colour::White => "white",
            Colour::Purple => "purple",
        }
    }

    pub fn rgb(self) -> [u8; 3] {
        match self {
            Colour::Red => [220, 40, 40],
            Colour::Green => [40, 180, 60],
            Colour::Blue => [50, 80, 230],
            Colour::Yellow => [240, 220, 50],
            Colour::White => [245, 245, 245],
            Colour::Purple => [160, 50, 190],
        }
    }
}

/// One of a world's two sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    Small,
    Large,
}

impl Size {
    /// The smaller one first.
    pub const ALL: [Size; 2] = [Size::Small, Size::Large];

    pub fn name(self) -> &'static str {
        match self {
            Size::Small => "small",
            Size::Large => "large",
        }
    }
}

/// How an object is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Texture {
    Plain,
    /// Two rows of its colour, two of [`INK`], from its top.
    Striped,
}

/// The colour between stripes, which is no object's.
pub const INK: [u8; 3] = [30, 220, 230];

impl Texture {
    /// The one that every world has first.
    pub const ALL: [Texture; 2] = [Texture::Plain, Texture::Striped];

    pub fn name(self) -> &'static str {
        match self {
            Texture::Plain => "plain",
            Texture::Striped => "striped",
        }
    }

    /// Whether row `y` of an object, from its top, is of [`INK`].
    pub fn inked(self, y: u32) -> bool {
        self == Texture::Striped && y % 4 >= 2
    }
}

/// A colour with a shape: what combinations are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Thing {
    pub colour: Colour,
    pub shape: Shape,
}
