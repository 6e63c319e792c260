//! What the worlds and their grader are like: captions of each split, the share of true and of shuffled captions that
//! the grader accepts, and microseconds to draw and to grade a picture.
//!
//! ```text
//! cargo run --release -p wels-scenes --example figures
//! ```

use std::hint::black_box;
use std::time::Instant;

use wels_scenes::{Kind, Scene, Split, World, grade, specs};

const SCENES: u64 = 2000;

fn main() {
    for name in World::NAMES {
        let world = World::named(name).expect("its own name");
        println!("{name}, {} words", world.words().len());
        for split in [Split::Train, Split::HeldOut] {
            println!("  {split:?}");
            Kind::ALL.into_iter().for_each(|kind| report(&world, split, kind));
        }
    }
}

fn report(world: &World, split: Split, kind: Kind) {
    let started = Instant::now();
    let scenes: Vec<Scene> = (0..SCENES).map(|number| world.scene(split, kind, 1, number)).collect();
    let drawn = started.elapsed().as_secs_f64() * 1e6 / SCENES as f64;
    let started = Instant::now();
    let accepted = scenes.iter().filter(|scene| black_box(grade(world, &scene.spec, &scene.picture)).passes()).count();
    let graded = started.elapsed().as_secs_f64() * 1e6 / SCENES as f64;
    let next = scenes.iter().cycle().skip(1);
    let shuffled: Vec<bool> = scenes
        .iter()
        .zip(next)
        .filter(|(scene, other)| scene.spec != other.spec)
        .map(|(scene, other)| grade(world, &other.spec, &scene.picture).passes())
        .collect();
    let wrongly = shuffled.iter().filter(|passes| **passes).count();
    println!(
        "    {:<13} {:>5} captions; accepted: {:.2}% true, {:.2}% shuffled ({wrongly} of {}); {drawn:.1} µs to draw, \
         {graded:.1} to grade",
        kind.tag(),
        specs(world, split, kind).len(),
        100.0 * accepted as f64 / SCENES as f64,
        100.0 * wrongly as f64 / shuffled.len() as f64,
        shuffled.len(),
    );
}
