//! Properties of what is drawn, said and asked.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use wels_scenes::answers::Sort;
use wels_scenes::find::find;
use wels_scenes::shape::Thing;
use wels_scenes::{Kind, Object, Scene, Split, World, grade, specs};

const SPLITS: [Split; 2] = [Split::Train, Split::HeldOut];

fn worlds() -> Vec<World> {
    World::NAMES.map(|name| World::named(name).unwrap()).to_vec()
}

fn scenes(world: &World, split: Split, count: u64) -> impl Iterator<Item = Scene> {
    Kind::ALL.into_iter().flat_map(move |kind| (0..count).map(move |number| world.scene(split, kind, 1, number)))
}

#[test]
fn every_true_picture_passes_and_its_objects_are_found() {
    for world in worlds() {
        for scene in SPLITS.into_iter().flat_map(|split| scenes(&world, split, 500)) {
            let verdict = grade(&world, &scene.spec, &scene.picture);
            assert!(verdict.passes(), "{}: {}: {:?}", world.name(), scene.caption, verdict.reason());
            let mut drawn = scene.objects.clone();
            drawn.sort();
            assert_eq!(verdict.found, drawn, "{}: {}", world.name(), scene.caption);
        }
    }
}

#[test]
fn few_other_captions_of_the_same_kind_fit() {
    for world in worlds() {
        for kind in Kind::ALL {
            let scenes: Vec<Scene> = (0..1000).map(|number| world.scene(Split::Train, kind, 5, number)).collect();
            let others = scenes.iter().skip(1).chain(&scenes[..1]);
            let pairs = scenes.iter().zip(others).filter(|(scene, other)| scene.spec != other.spec);
            let (mut count, mut accepted) = (0, 0);
            for (scene, other) in pairs {
                count += 1;
                if grade(&world, &other.spec, &scene.picture).passes() {
                    accepted += 1;
                    let shapes =
                        |scene: &Scene| scene.objects.iter().map(|object| object.shape).collect::<BTreeSet<_>>();
                    assert_eq!(shapes(scene), shapes(other), "{} for {}", scene.caption, other.caption);
                }
            }
            // Two objects in the other order, and what one picture shows of sizes, textures or places beside another.
            assert!(accepted * 100 <= count, "{}, {kind:?}: {accepted} of {count}", world.name());
        }
    }
}

#[test]
fn pictures_are_the_same_bytes_everywhere() {
    let hash = |world: &World| {
        let bytes = scenes(world, Split::Train, 20)
            .flat_map(|scene| [scene.picture.bytes, scene.caption.into_bytes()].concat());
        bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    };
    let hashes: Vec<String> = worlds().iter().map(|world| format!("{:016x}", hash(world))).collect();
    assert_eq!(hashes, ["403e0460b3722e2a", "21665ec48355041d"]);
}

/// All texts of a scene: its caption, and each question with its answer.
fn texts(scene: &Scene) -> Vec<String> {
    let questions = (0..3).flat_map(|seed| scene.questions(seed));
    let mut texts: Vec<String> =
        questions.map(|question| format!("{} {}", question.text, question.reasoned())).collect();
    texts.push(scene.caption.clone());
    texts
}

/// Whether the words of `phrase` stand together in `text`.
fn says(text: &str, phrase: &str) -> bool {
    format!(" {text} ").contains(&format!(" {phrase} "))
}

fn one(thing: &Thing) -> String {
    format!("{} {}", thing.colour.name(), thing.shape.name())
}

fn many(thing: &Thing) -> String {
    format!("{} {}", thing.colour.name(), thing.shape.plural())
}

/// Whether a text names the thing, in whatever number, or as question and answer ("what colour is the circle red").
fn names(text: &str, thing: &Thing) -> bool {
    let (colour, shape) = (thing.colour.name(), thing.shape.name());
    let asked = [format!("what colour is the {shape} {colour}"), format!("what shape is the {colour} object {shape}")];
    says(text, &one(thing)) || says(text, &many(thing)) || asked.iter().any(|asked| says(text, asked))
}

#[test]
fn training_never_shows_says_or_asks_what_is_held_out() {
    for world in worlds() {
        let held = world.combinations(Split::HeldOut);
        for scene in scenes(&world, Split::Train, 100) {
            let shown: Vec<Thing> =
                scene.objects.iter().map(|object| Thing { colour: object.colour, shape: object.shape }).collect();
            assert!(shown.len() > 1 || !held.things.contains(&shown[0]), "{}", scene.caption);
            assert!(
                !held.counts.iter().any(|(count, thing)| shown.iter().filter(|one| *one == thing).count() == *count)
            );
            assert!(!held.pairs.iter().any(|(a, b)| shown.contains(a) && shown.contains(b)), "{}", scene.caption);
            assert!(!held.things.iter().any(|thing| scene.caption == format!("a {}", one(thing))), "{}", scene.caption);
            // A question about what is not there may name the other of a pair.
            let sayings = (0..3).flat_map(|seed| scene.questions(seed)).flat_map(|it| [it.reasoned(), it.text]);
            for text in sayings.chain([scene.caption.clone()]) {
                assert!(!held.pairs.iter().any(|(a, b)| names(&text, a) && names(&text, b)), "{text}");
            }
            for text in texts(&scene) {
                for (count, thing) in &held.counts {
                    let number = ["two", "three", "four"][count - 2];
                    assert!(!says(&text, &format!("{number} {}", many(thing))), "{text}");
                    assert!(!says(&text, &format!("how many {} are there {number}", many(thing))), "{text}");
                }
            }
        }
    }
}

#[test]
fn captions_of_the_splits_differ_and_are_those_that_are_listed() {
    for world in worlds() {
        for kind in Kind::ALL {
            let captions = SPLITS.map(|split| {
                let specs = specs(&world, split, kind);
                let listed: BTreeSet<String> = specs.iter().map(|spec| spec.caption()).collect();
                assert_eq!(listed.len(), specs.len(), "{kind:?}");
                for number in 0..300 {
                    let caption = world.scene(split, kind, 2, number).caption;
                    assert!(listed.contains(&caption), "{caption}");
                }
                listed
            });
            assert_eq!(captions[0].is_disjoint(&captions[1]), kind.holds_out_captions(), "{kind:?}");
        }
    }
}

#[test]
fn words_are_those_that_are_used() {
    for world in worlds() {
        let mut used = BTreeSet::new();
        for scene in SPLITS.into_iter().flat_map(|split| scenes(&world, split, 600)) {
            for text in texts(&scene) {
                used.extend(text.split(' ').map(str::to_owned));
            }
        }
        assert_eq!(used.into_iter().collect::<Vec<_>>(), world.words(), "{}", world.name());
    }
}

#[test]
fn half_of_what_is_asked_to_be_there_is_there() {
    for world in worlds() {
        for scene in scenes(&world, Split::HeldOut, 100) {
            let questions = scene.questions(4);
            let asked = questions.iter().filter(|question| question.text.starts_with("is there a "));
            let answers: Vec<&str> = asked.map(|question| question.answer.as_str()).collect();
            assert_eq!(answers, ["yes", "no"]);
        }
        let mut answers: BTreeMap<(String, String), u32> = BTreeMap::new();
        for question in scenes(&world, Split::Train, 500).flat_map(|scene| scene.questions(9)) {
            let sort = question.text.split(' ').next().unwrap_or_default().to_owned();
            *answers.entry((sort, question.answer)).or_default() += 1;
        }
        let (yes, no) = (answers[&("is".to_owned(), "yes".to_owned())], answers[&("is".to_owned(), "no".to_owned())]);
        assert!(yes.abs_diff(no) * 50 < yes + no, "{yes} yes and {no} no");
    }
}

/// Of pairs in the world that has overlaps, an eighth or more overlaps, and is found.
#[test]
fn some_objects_overlap() {
    let world = World::named("free-32").unwrap();
    let touches = |scene: &Scene| {
        let [a, b] = scene.objects[..] else { return false };
        (a.x - b.x).abs() * 2 < a.side + b.side && (a.y - b.y).abs() * 2 < a.side + b.side
    };
    let overlapping = (0..1000).map(|number| world.scene(Split::Train, Kind::Two, 3, number)).filter(touches).count();
    assert!(overlapping >= 125, "{overlapping} of 1000");
    let grid = World::named("grid-24").unwrap();
    assert!(!(0..1000).any(|number| touches(&grid.scene(Split::Train, Kind::Two, 3, number))));
}

#[test]
fn every_sort_of_question_is_asked() {
    for world in worlds() {
        let mut sorts: BTreeMap<Sort, usize> = BTreeMap::new();
        for question in scenes(&world, Split::HeldOut, 50).flat_map(|scene| scene.questions(1)) {
            *sorts.entry(question.sort()).or_default() += 1;
        }
        assert_eq!(sorts.len(), if world.has_textures() { 9 } else { 8 }, "{sorts:?}");
        assert!(sorts.values().all(|count| *count >= 30), "{sorts:?}");
    }
}

/// The answer that the picture alone gives, by the grader's eyes; `None` for other sorts of questions.
fn seen_answer(world: &World, scene: &Scene, question: &str) -> Option<String> {
    let found = find(world, &scene.picture).unwrap();
    let all =
        world.shapes().iter().flat_map(|&shape| wels_scenes::shape::Colour::ALL.map(|colour| Thing { colour, shape }));
    let count = |thing: &Thing| {
        found.iter().filter(|object| object.colour == thing.colour && object.shape == thing.shape).count()
    };
    let number = |count: usize| ["zero", "one", "two", "three", "four"][count].to_owned();
    if question == "what is there" {
        let mut found = found;
        found.sort_by_key(|object| (object.y, object.x));
        let words = |object: &Object| {
            let texture = if world.has_textures() { format!("{} ", object.texture.name()) } else { String::new() };
            format!("a {} {texture}{} {}", object.size.name(), object.colour.name(), object.shape.name())
        };
        return Some(found.iter().map(words).collect::<Vec<_>>().join(" and "));
    }
    if question == "how many objects are there" {
        return Some(number(found.len()));
    }
    if question.starts_with("how many") {
        return all.into_iter().find(|thing| says(question, &many(thing))).map(|thing| number(count(&thing)));
    }
    if question.starts_with("is there a") {
        let thing = all.into_iter().find(|thing| says(question, &one(thing)))?;
        return Some(if count(&thing) > 0 { "yes" } else { "no" }.to_owned());
    }
    if let Some(shape) = question.strip_prefix("what colour is the ") {
        let object = found.iter().find(|object| object.shape.name() == shape)?;
        return Some(object.colour.name().to_owned());
    }
    let colour = question.strip_prefix("what shape is the ")?.strip_suffix(" object")?;
    found.iter().find(|object| object.colour.name() == colour).map(|object| object.shape.name().to_owned())
}

#[test]
fn answers_are_what_the_grader_sees() {
    for world in worlds() {
        let mut checked = 0;
        for scene in SPLITS.into_iter().flat_map(|split| scenes(&world, split, 150)) {
            for question in scene.questions(6) {
                assert!(question.is_answered_by(&question.reasoned()), "{question:?}");
                let Some(seen) = seen_answer(&world, &scene, &question.text) else { continue };
                assert_eq!(seen, question.answer, "{}: {}", scene.caption, question.text);
                let all = seen_answer(&world, &scene, "what is there").unwrap();
                let seen = question.seen.split(" and ").filter(|seen| !seen.is_empty() && !seen.starts_with("no "));
                assert!(seen.clone().all(|seen| says(&all, seen)), "{question:?}: {all}");
                assert_eq!(seen.count() > 0, question.text != "what is there" && !question.seen.starts_with("no "));
                checked += 1;
            }
        }
        assert!(checked > 5000, "{checked}");
    }
}

proptest! {
    #[test]
    fn a_scene_is_a_function_of_its_number(seed: u64, number: u64, kind in 0usize..6, free: bool) {
        let world = World::named(World::NAMES[usize::from(free)]).unwrap();
        let scene = world.scene(Split::HeldOut, Kind::ALL[kind], seed, number);
        prop_assert_eq!(&scene, &world.scene(Split::HeldOut, Kind::ALL[kind], seed, number));
        prop_assert!(grade(&world, &scene.spec, &scene.picture).passes());
    }
}
