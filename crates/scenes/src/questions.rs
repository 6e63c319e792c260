//! Questions about a scene, with answers that are true because of how it was drawn, and the words of a world.
//!
//! Text is lower-case words with one space between them and no punctuation. In training no answer is a count
//! that is held out. "Is there" comes in pairs, one answered "yes" and one "no" (Li and others, "Evaluating Object
//! Hallucination in Large Vision-Language Models", 2023: POPE), the latter about something that is there but for its
//! colour or shape, or about anything.
//!
//! An answer can be given behind what of the picture it follows from, "a large red circle so yes"
//! ([`Question::reasoned`]): what the question is about, as it is, so that two words are left to be compared.

use std::collections::BTreeSet;

use crate::draw::Draw;
use crate::find::Object;
use crate::scene::Scene;
use crate::shape::{Colour, Shape, Size, Texture, Thing};
use crate::spec::{Relation, number_word};
use crate::world::World;

/// The streams of draws for questions lie beside those for scenes.
const STREAM: u64 = 1 << 32;
/// How far from the middle of the picture an object must be that is on one of its sides, in half pixels.
const ASIDE: i32 = 6;
/// How clear a relation must be, in half pixels: apart, and more than the other way.
const CLEAR: (i32, i32) = (8, 4);

/// A question about a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub text: String,
    /// A word or two, and more of what is there.
    pub answer: String,
    /// What of the picture the answer follows from, in words; nothing where it is that itself.
    pub seen: String,
}

/// Stands between what is seen and what follows from it.
pub(crate) const SO: &str = "so";

impl Question {
    fn new(text: String, answer: &str) -> Question {
        Question { text, answer: answer.to_owned(), seen: String::new() }
    }

    fn after(self, seen: String) -> Question {
        Question { seen, ..self }
    }

    /// The answer behind what it follows from.
    pub fn reasoned(&self) -> String {
        match self.seen.as_str() {
            "" => self.answer.clone(),
            seen => format!("{seen} {SO} {}", self.answer),
        }
    }

    fn yes_no(text: String, answer: bool) -> Question {
        Question::new(text, if answer { "yes" } else { "no" })
    }
}

impl Scene {
    /// One question of each sort that the picture answers, in a fixed order; `seed` chooses what each is about.
    pub fn questions(&self, seed: u64) -> Vec<Question> {
        let mut draw = Draw::new(seed, STREAM | self.world.key(), self.fingerprint());
        let mut questions = vec![self.what_is_there(), self.how_many_objects(), self.how_many(&mut draw)];
        questions.extend(self.is_there(&mut draw));
        if self.objects.iter().all(|object| self.is_unique(object)) {
            let object = draw.one(&self.objects);
            questions.extend(self.about(&object, &mut draw));
            questions.extend(self.which_way(&mut draw));
        }
        questions
    }

    /// Other scenes draw other questions.
    fn fingerprint(&self) -> u64 {
        let fold = |hash: u64, word: i32| hash.wrapping_mul(0x0100_0000_01b3) ^ word as u64;
        self.objects.iter().fold(7, |hash, object| {
            [object.x, object.y, object.side, object.shape as i32, object.colour as i32].into_iter().fold(hash, fold)
        })
    }

    fn has(&self, thing: Thing) -> bool {
        self.objects.iter().any(|object| thing_of(object) == thing)
    }

    /// Whether its colour and shape name it alone.
    fn is_unique(&self, object: &Object) -> bool {
        self.objects.iter().filter(|other| thing_of(other) == thing_of(object)).count() == 1
    }

    /// All objects in words.
    fn what_is_there(&self) -> Question {
        Question::new("what is there".to_owned(), &self.described(|_| true))
    }

    /// Some of the objects in words, from the top, those of a row from the left.
    fn described(&self, which: impl Fn(&Object) -> bool) -> String {
        let mut objects: Vec<&Object> = self.objects.iter().filter(|object| which(object)).collect();
        objects.sort_by_key(|object| (object.y, object.x));
        let words = |object: &Object| {
            let texture = if self.world.has_textures() { object.texture.name() } else { "" };
            let words = ["a", object.size.name(), texture, object.colour.name(), object.shape.name()];
            words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
        };
        objects.into_iter().map(words).collect::<Vec<_>>().join(" and ")
    }

    fn how_many_objects(&self) -> Question {
        let answer = number_word(self.objects.len());
        Question::new("how many objects are there".to_owned(), answer).after(self.described(|_| true))
    }

    /// Of what is there, or in one of four of what is not.
    fn how_many(&self, draw: &mut Draw) -> Question {
        let absent = if draw.below(4) == 0 { self.absent(draw) } else { None };
        let thing = absent.unwrap_or_else(|| thing_of(&self.objects[0]));
        let count = self.objects.iter().filter(|object| thing_of(object) == thing).count();
        let text = format!("how many {} {} are there", thing.colour.name(), thing.shape.plural());
        let seen = self.described(|object| thing_of(object) == thing);
        Question::new(text, number_word(count)).after(if count > 0 { seen } else { format!("no {}", words(thing)) })
    }

    /// One about what is there, one about what is not. What is seen are the objects of that shape.
    fn is_there(&self, draw: &mut Draw) -> Vec<Question> {
        let present = thing_of(&draw.one(&self.objects));
        let Some(absent) = self.absent(draw) else { return Vec::new() };
        let ask = |thing: Thing, answer| {
            let seen = self.described(|object| object.shape == thing.shape);
            let seen = if seen.is_empty() { format!("no {}", thing.shape.name()) } else { seen };
            Question::yes_no(format!("is there a {}", words(thing)), answer).after(seen)
        };
        vec![ask(present, true), ask(absent, false)]
    }

    /// Something that is not there: with the shape of an object, with the colour of one, or anything.
    fn absent(&self, draw: &mut Draw) -> Option<Thing> {
        let object = draw.one(&self.objects);
        let like = draw.below(3);
        let all = self.world.shapes().iter().flat_map(|&shape| Colour::ALL.map(|colour| Thing { colour, shape }));
        let all: Vec<Thing> = all.filter(|&thing| !self.has(thing)).collect();
        let alike: Vec<Thing> = all
            .into_iter()
            .filter(|thing| match like {
                0 => thing.shape == object.shape,
                1 => thing.colour == object.colour,
                _ => true,
            })
            .collect();
        (!alike.is_empty()).then(|| draw.one(&alike))
    }

    /// Its colour and shape where the other one names it, its size, its texture, its side of the picture.
    fn about(&self, object: &Object, draw: &mut Draw) -> Vec<Question> {
        let mut questions = Vec::new();
        let only = |same: &dyn Fn(&Object) -> bool| self.objects.iter().filter(|other| same(other)).count() == 1;
        let (colour, shape) = (object.colour.name(), object.shape.name());
        let name = words(thing_of(object));
        if only(&|other| other.shape == object.shape) {
            questions.push(Question::new(format!("what colour is the {shape}"), colour));
        }
        if only(&|other| other.colour == object.colour) {
            questions.push(Question::new(format!("what shape is the {colour} object"), shape));
        }
        let size = draw.one(&Size::ALL);
        questions.push(Question::yes_no(format!("is the {name} {}", size.name()), size == object.size));
        if self.world.has_textures() {
            let texture = draw.one(&Texture::ALL);
            questions.push(Question::yes_no(format!("is the {name} {}", texture.name()), texture == object.texture));
        }
        let seen = self.described(|other| other == object);
        let mut questions: Vec<Question> = questions.into_iter().map(|question| question.after(seen.clone())).collect();
        let middle = (self.world.side() as i32, self.world.side() as i32);
        let side = Relation::ALL.into_iter().find(|side| side.holds(object.middle2(), middle, ASIDE, CLEAR.1));
        questions.extend(side.map(|side| Question::new(format!("where is the {name}"), side_word(side))));
        questions
    }

    /// Of two objects, if one is clearly on one side of the other.
    fn which_way(&self, draw: &mut Draw) -> Option<Question> {
        let [a, b] = self.objects[..] else { return None };
        let (a, b) = if draw.below(2) == 0 { (a, b) } else { (b, a) };
        let holds = |relation: &Relation| relation.holds(a.middle2(), b.middle2(), CLEAR.0, CLEAR.1);
        let relation = Relation::ALL.into_iter().find(holds)?;
        let asked = if draw.below(2) == 0 { relation } else { relation.opposite() };
        let [first, second] = [a, b].map(|object| words(thing_of(&object)));
        let text = format!("is the {first} {} the {second}", asked.name());
        let seen = format!("the {first} is {} the {second}", relation.name());
        Some(Question::yes_no(text, asked == relation).after(seen))
    }
}

fn thing_of(object: &Object) -> Thing {
    Thing { colour: object.colour, shape: object.shape }
}

fn words(thing: Thing) -> String {
    format!("{} {}", thing.colour.name(), thing.shape.name())
}

fn side_word(side: Relation) -> &'static str {
    match side {
        Relation::LeftOf => "left",
        Relation::RightOf => "right",
        Relation::Above => "top",
        Relation::Below => "bottom",
    }
}

/// Of questions and captions, beside names.
const GRAMMAR: &str = "a and above below bottom colour how is left many no object objects of right shape so the there \
                       top what where yes are zero one two three four";

impl World {
    /// All words of captions, questions and answers, sorted.
    pub fn words(&self) -> Vec<&'static str> {
        let mut words: BTreeSet<&str> = GRAMMAR.split_whitespace().collect();
        words.extend(Colour::ALL.map(Colour::name));
        words.extend(Size::ALL.map(Size::name));
        if self.has_textures() {
            words.extend(Texture::ALL.map(Texture::name));
        }
        let names = |shape: &Shape| [shape.name(), shape.plural()];
        words.extend(self.shapes().iter().flat_map(names).flat_map(str::split_whitespace));
        words.into_iter().collect()
    }
}
