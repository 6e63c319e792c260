//! Questions about people that nobody has heard of, each with documents of its own: without a search an answer is a
//! guess.
//!
//! ```text
//! home of friend of Mira?     Mira: friend Tavo, home Velm, pet owl     Tavo: friend …, home Orra, …     → Orra
//! ```

use crate::draw::Draw;
use crate::environment::DemonstrationOptions;
use crate::prompt::Presentation;
use crate::task::{Item, Reason, Reference, Split, Task, TaskError, foreign};
use crate::tooled::{Demonstrator, Shown};
use crate::{Format, listed};

const STREAM_WORLD: u64 = 0x6661_6374;
const PEOPLE: usize = 8;
const BEGINNINGS: [&str; 12] = ["Mi", "Ta", "Or", "Vel", "Ka", "Lu", "Se", "Ro", "Ni", "Du", "Pa", "El"];
const ENDINGS: [&str; 12] = ["ra", "vo", "na", "mi", "lo", "ka", "den", "so", "ri", "tu", "bel", "sa"];
const PETS: [&str; 12] = ["owl", "cat", "dog", "crow", "hare", "fox", "eel", "goat", "newt", "toad", "swan", "mole"];
/// What a friend is asked for.
const ASKED: [&str; 2] = ["home", "pet"];

/// The questions of one split.
pub struct Facts {
    presentation: Presentation,
    split: Split,
    seed: u64,
}

/// A question, and who it goes by.
struct World {
    documents: Vec<String>,
    /// What is asked of the friend.
    asked: usize,
    who: String,
    friend: String,
    answer: String,
    /// The same of who is asked about, which is the wrong answer.
    own: String,
}

impl Facts {
    /// Questions without end; those of the two splits are about other worlds.
    pub fn new(presentation: Presentation, split: Split, seed: u64) -> Facts {
        Facts { presentation, split, seed }
    }

    fn world(&self, index: u64) -> World {
        let stream = STREAM_WORLD + u64::from(self.split == Split::HeldOut);
        let mut draw = Draw::new(self.seed, stream, index);
        let mut names: Vec<String> = Vec::new();
        while names.len() < 2 * PEOPLE {
            let name = format!("{}{}", draw.one(&BEGINNINGS), draw.one(&ENDINGS));
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let (people, homes) = names.split_at(PEOPLE);
        let who = draw.below(PEOPLE);
        let friends: Vec<usize> = (0..PEOPLE).map(|person| (person + 1 + draw.below(PEOPLE - 1)) % PEOPLE).collect();
        let pets: Vec<&str> = (0..PEOPLE).map(|_| *draw.one(&PETS)).collect();
        let document = |person: usize| {
            format!(
                "{}: friend {}, home {}, pet {}",
                people[person], people[friends[person]], homes[person], pets[person]
            )
        };
        let asked = draw.below(ASKED.len());
        let of = |person: usize| if asked == 0 { homes[person].clone() } else { pets[person].to_owned() };
        World {
            documents: (0..PEOPLE).map(document).collect(),
            asked,
            who: people[who].clone(),
            friend: people[friends[who]].clone(),
            answer: of(friends[who]),
            own: of(who),
        }
    }
}

impl Task for Facts {
    fn name(&self) -> &str {
        "facts"
    }

    fn len(&self) -> Option<u64> {
        None
    }

    fn item(&self, index: u64) -> Result<Item, TaskError> {
        let World { documents, asked, who, answer, .. } = self.world(index);
        let terse = format!("{} of friend of {who}?", ASKED[asked]);
        let full = format!("What is the {} of the friend of {who}? Answer with one word", ASKED[asked]);
        let prompt = self.presentation.prompt(&terse, &full);
        Ok(Item { id: format!("facts-{index}"), prompt, reference: Reference::Found { documents, answer } })
    }

    fn format(&self) -> Format {
        self.presentation.format
    }

    fn check(&self, item: &Item, answer: &str) -> Result<Reason, TaskError> {
        match &item.reference {
            Reference::Found { answer: expected, .. } => Ok(listed::check_text(answer, expected)),
            _ => Err(foreign(self, item)),
        }
    }
}

/// Looks the person up, and then the friend.
impl Demonstrator for Facts {
    fn show(&self, index: u64, options: &DemonstrationOptions, draw: &mut Draw) -> Result<Shown, TaskError> {
        let item = self.item(index)?;
        let World { who, friend, answer, own, asked, .. } = self.world(index);
        if draw.chance(options.direct) {
            let guess = if asked == 1 { (*draw.one(&PETS)).to_owned() } else { own_name(draw) };
            return Ok(Shown { item, calls: Vec::new(), answer: guess });
        }
        let quit = if options.quit.is_empty() { 0.0 } else { *draw.one(&options.quit) };
        if draw.chance(quit) {
            return Ok(Shown { item, calls: vec![who], answer: own });
        }
        // Who slips looks the same person up again, and takes that for the friend.
        let (second, answer) = if draw.chance(options.slips) { (who.clone(), own) } else { (friend, answer) };
        Ok(Shown { item, calls: vec![who, second], answer })
    }
}

fn own_name(draw: &mut Draw) -> String {
    format!("{}{}", draw.one(&BEGINNINGS), draw.one(&ENDINGS))
}
