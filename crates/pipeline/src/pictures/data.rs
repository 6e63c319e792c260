//! Pictures to learn from: scenes of a world, drawn when they are needed, or one's own.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use wels_kernels::random::Key;
use wels_model::janus::config::JanusConfig;
use wels_model::janus::picture::{self, Rgb};
use wels_model::janus::preprocess::Preprocessing;
use wels_runs::recipe::{self, Recipe, Work, is_world};
use wels_scenes::captioned::{self, Captioned};
use wels_scenes::{Kind, Question, Scene, Split, World, grade};
use wels_train::example::shuffled;

use crate::named;
use crate::refusal::refuse;

/// Kinds of a world's scenes to learn from, in turn: those of two objects and more are harder, and twice as many.
const KINDS: [Kind; 10] = [
    Kind::Single,
    Kind::Colours,
    Kind::Two,
    Kind::Two,
    Kind::Counting,
    Kind::Counting,
    Kind::Position,
    Kind::Position,
    Kind::Attributes,
    Kind::Attributes,
];

/// Scenes of one purpose are no other's: what is added to the run's seed.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    Learning = 0,
    Reward = 1,
    Score = 2,
}

/// A world by its name.
pub(crate) fn world(name: &str) -> Result<World> {
    World::named(name)
        .map_err(|error| refuse(error.to_string(), "stage.pictures names one of them, or a path with a `/`"))
}

/// The seed of a world's scenes for a purpose.
pub(crate) fn seed(run: u64, purpose: Purpose) -> u64 {
    Key { seed: run, stream: 0x7063_7472 }.u64_at(purpose as u64)
}

/// Scene `number` of those to learn from.
pub(crate) fn scene(world: &World, seed: u64, number: u64) -> Scene {
    let (round, kind) = (number / KINDS.len() as u64, KINDS[(number % KINDS.len() as u64) as usize]);
    world.scene(Split::Train, kind, seed, round)
}

/// Fails before anything is done if a stage names a world that is not there, or pictures that are not.
pub(crate) fn check(recipe: &Recipe) -> Result<()> {
    for stage in &recipe.stages {
        match stage.work.pictures() {
            None => {}
            Some(pictures) if is_world(pictures) => drop(world(pictures)?),
            Some(pictures) => drop(captioned::open(&named::file(pictures)?)?),
        }
    }
    Ok(())
}

/// Captions and questions of the worlds that a recipe's stages are of, for a tokenizer that is to know their words.
pub(crate) fn texts(recipe: &Recipe, count: u64) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for stage in &recipe.stages {
        if let Work::Janus(of) = &stage.work
            && !is_world(&of.data.pictures)
        {
            texts.extend(own(&of.data)?.into_iter().map(|it| it.caption));
        }
    }
    let worlds = recipe.stages.iter().filter_map(|stage| stage.work.pictures()).filter(|pictures| is_world(pictures));
    for name in worlds.collect::<BTreeSet<&str>>() {
        let world = world(name)?;
        for number in 0..count {
            let scene = scene(&world, seed(recipe.run.seed, Purpose::Learning), number);
            let asked = scene.questions(number).into_iter();
            texts.extend(asked.map(|question| format!("{}\n\n: {}", question.text, question.reasoned())));
            texts.push(format!(": {}", scene.caption));
        }
    }
    Ok(texts)
}

/// One's own pictures, as many as the stage takes.
fn own(data: &recipe::Pictures) -> Result<Vec<Captioned>> {
    let path = named::file(&data.pictures)?;
    let read = captioned::open(&path)?.take(usize::try_from(data.pool).unwrap_or(usize::MAX));
    let samples = read.collect::<Result<Vec<_>, _>>()?;
    match samples.is_empty() {
        true => Err(refuse(format!("{} has no pictures", path.display()), "name pictures with captions")),
        false => Ok(samples),
    }
}

/// Pictures by number.
pub(crate) enum PictureSet {
    Scenes { world: World, seed: u64, count: usize },
    Own(Vec<Captioned>),
}

impl PictureSet {
    /// Those that a stage learns from.
    pub fn open(data: &recipe::Pictures, run_seed: u64) -> Result<PictureSet> {
        Ok(match is_world(&data.pictures) {
            true => PictureSet::Scenes {
                world: world(&data.pictures)?,
                seed: seed(run_seed, Purpose::Learning),
                count: data.pool as usize,
            },
            false => PictureSet::Own(own(data)?),
        })
    }

    pub fn len(&self) -> usize {
        match self {
            PictureSet::Scenes { count, .. } => *count,
            PictureSet::Own(samples) => samples.len(),
        }
    }

    fn scene(&self, number: usize) -> Option<Scene> {
        match self {
            PictureSet::Scenes { world, seed, .. } => Some(scene(world, *seed, number as u64)),
            PictureSet::Own(_) => None,
        }
    }

    pub fn picture(&self, number: usize) -> Result<Rgb> {
        match self {
            PictureSet::Scenes { .. } => Ok(rgb(self.scene(number).expect("of a world").picture)),
            PictureSet::Own(samples) => {
                let Captioned { image, name, .. } = &samples[number];
                picture::decode(image).with_context(|| format!("cannot read the picture {name}"))
            }
        }
    }

    pub fn caption(&self, number: usize) -> String {
        match self {
            PictureSet::Scenes { .. } => self.scene(number).expect("of a world").caption,
            PictureSet::Own(samples) => samples[number].caption.clone(),
        }
    }

    /// Some of the questions about a scene with its picture; `choice` chooses which, and their order.
    pub fn questions(&self, number: usize, count: usize, choice: Key) -> Option<(Rgb, Vec<Question>)> {
        let scene = self.scene(number)?;
        let questions = scene.questions(choice.u64_at(0));
        let order = shuffled(questions.len(), Key { stream: choice.u64_at(1), ..choice });
        Some((rgb(scene.picture), order.into_iter().take(count).map(|n| questions[n].clone()).collect()))
    }
}

/// Fails unless a model draws pictures of the size that the world has.
pub(crate) fn check_side(config: &JanusConfig, world: &World) -> Result<()> {
    let (drawn, side) = (config.vq.image_size(), world.side());
    if drawn == side {
        return Ok(());
    }
    let message = format!("the model draws pictures of {drawn} pixels a side, and {} has {side}", world.name());
    Err(refuse(message, "name the world that the model has learnt with stage.pictures"))
}

/// Whether a picture is what a scene's caption asks for.
pub(crate) fn passes(scene: &Scene, picture: Rgb) -> bool {
    let Rgb { width, height, bytes } = picture;
    grade(&scene.world, &scene.spec, &wels_scenes::Rgb { width, height, bytes }).passes()
}

/// As the model's crate has it.
pub(crate) fn rgb(picture: wels_scenes::Rgb) -> Rgb {
    Rgb { width: picture.width, height: picture.height, bytes: picture.bytes }
}

/// Pixels `[3, side, side]` from −1 to 1 of a picture of any size, which a square is filled up around.
pub(crate) fn pixels(picture: &Rgb, side: usize) -> Vec<f32> {
    Preprocessing::to_unit(side).pixels(picture)
}

/// The same as `[side², 3]`.
pub(crate) fn rows_of_pixels(picture: &Rgb, side: usize) -> Vec<f32> {
    let (planes, area) = (pixels(picture, side), side * side);
    (0..3 * area).map(|at| planes[at % 3 * area + at / 3]).collect()
}

/// Which of `count` pictures come in which order: all of them, shuffled anew each time.
pub(crate) struct Order {
    count: usize,
    key: Key,
    round: u64,
    order: Vec<usize>,
}

impl Order {
    pub fn new(count: usize, key: Key) -> Order {
        Order { count, key, round: 0, order: shuffled(count, key) }
    }

    /// Number `n` of all that come.
    pub fn at(&mut self, n: u64) -> usize {
        let round = n / self.count as u64;
        if round != self.round {
            self.round = round;
            self.order = shuffled(self.count, Key { stream: self.key.stream.wrapping_add(round << 32), ..self.key });
        }
        self.order[(n % self.count as u64) as usize]
    }
}
