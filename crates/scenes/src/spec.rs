//! What a caption asks of a picture, in GenEval's six kinds, and the words for it.

use serde::{Deserialize, Serialize};

use crate::shape::{Colour, Shape, Size, Texture, Thing};

/// GenEval's six kinds of prompts (Ghosh and others, 2023).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// "a circle"
    Single,
    /// "a red circle"
    Colours,
    /// "a red circle and a blue square"
    Two,
    /// "three red circles"
    Counting,
    /// "a red circle left of a blue square"
    Position,
    /// "a small red circle and a large blue square"
    Attributes,
}

impl Kind {
    /// From the simplest.
    pub const ALL: [Kind; 6] =
        [Kind::Single, Kind::Colours, Kind::Two, Kind::Counting, Kind::Position, Kind::Attributes];

    /// As GenEval's files tag it.
    pub fn tag(self) -> &'static str {
        match self {
            Kind::Single => "single_object",
            Kind::Colours => "colors",
            Kind::Two => "two_object",
            Kind::Counting => "counting",
            Kind::Position => "position",
            Kind::Attributes => "color_attr",
        }
    }

    /// Whether its captions are others than those of training. Those of single objects name a shape alone: only their
    /// pictures are.
    pub fn holds_out_captions(self) -> bool {
        self != Kind::Single
    }
}

/// Where the first object is, seen from the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    LeftOf,
    RightOf,
    Above,
    Below,
}

impl Relation {
    /// In the order in which they are tried.
    pub const ALL: [Relation; 4] = [Relation::LeftOf, Relation::RightOf, Relation::Above, Relation::Below];

    pub fn name(self) -> &'static str {
        match self {
            Relation::LeftOf => "left of",
            Relation::RightOf => "right of",
            Relation::Above => "above",
            Relation::Below => "below",
        }
    }

    pub fn opposite(self) -> Relation {
        match self {
            Relation::LeftOf => Relation::RightOf,
            Relation::RightOf => Relation::LeftOf,
            Relation::Above => Relation::Below,
            Relation::Below => Relation::Above,
        }
    }

    /// Whether something with its middle at `a` stands so to something with its middle at `b`: at least `least` apart
    /// that way, and at least `lead` more than the other way. Units are those of the positions.
    pub fn holds(self, a: (i32, i32), b: (i32, i32), least: i32, lead: i32) -> bool {
        let (right, down) = (a.0 - b.0, a.1 - b.1);
        let (along, across) = match self {
            Relation::LeftOf => (-right, down),
            Relation::RightOf => (right, down),
            Relation::Above => (-down, right),
            Relation::Below => (down, right),
        };
        along >= least && along >= across.abs() + lead
    }
}

/// What is asked of one object; `None` for anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Wanted {
    pub shape: Shape,
    pub colour: Option<Colour>,
    pub size: Option<Size>,
    pub texture: Option<Texture>,
}

impl Wanted {
    /// Of any colour, size and texture.
    pub fn shape(shape: Shape) -> Wanted {
        Wanted { shape, colour: None, size: None, texture: None }
    }

    /// Of any size and texture.
    pub fn thing(thing: Thing) -> Wanted {
        Wanted { colour: Some(thing.colour), ..Wanted::shape(thing.shape) }
    }

    /// "large red circle"
    pub fn words(&self) -> String {
        self.words_with(self.shape.name())
    }

    fn words_with(&self, noun: &str) -> String {
        let attributes = [
            self.size.map_or("", Size::name),
            self.texture.map_or("", Texture::name),
            self.colour.map_or("", Colour::name),
            noun,
        ];
        let said: Vec<&str> = attributes.into_iter().filter(|word| !word.is_empty()).collect();
        said.join(" ")
    }
}

/// What a caption asks of a picture: these objects and no others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Spec {
    pub kind: Kind,
    pub objects: Vec<Wanted>,
    /// Of the first object to the second.
    pub relation: Option<Relation>,
}

impl Spec {
    /// In lower-case words with one space between them and no punctuation.
    pub fn caption(&self) -> String {
        match (&self.objects[..], self.relation) {
            ([one], _) => format!("a {}", one.words()),
            ([a, b], Some(relation)) => format!("a {} {} a {}", a.words(), relation.name(), b.words()),
            ([a, b], None) if self.kind != Kind::Counting => format!("a {} and a {}", a.words(), b.words()),
            (objects, _) => {
                format!("{} {}", number_word(objects.len()), objects[0].words_with(objects[0].shape.plural()))
            }
        }
    }
}

/// "zero" to "four".
pub fn number_word(number: usize) -> &'static str {
    ["zero", "one", "two", "three", "four"][number]
}
