//! GenEval's and DPG-Bench's files and rules, and a program that looks at pictures.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use wels_scenes::dpg;
use wels_scenes::geneval::{self, Detected, Prompt};
use wels_scenes::program::Program;

/// Lines as the published file has them, one of each tag.
const GENEVAL: &str = r#"{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
{"tag": "two_object", "include": [{"class": "bench", "count": 1}, {"class": "sports ball", "count": 1}], "prompt": "a photo of a bench and a sports ball"}
{"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}], "prompt": "a photo of two clocks"}
{"tag": "colors", "include": [{"class": "fire hydrant", "count": 1, "color": "blue"}], "prompt": "a photo of a blue fire hydrant"}
{"tag": "position", "include": [{"class": "cow", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}], "prompt": "a photo of a dog right of a cow"}
{"tag": "color_attr", "include": [{"class": "wine glass", "count": 1, "color": "purple"}, {"class": "apple", "count": 1, "color": "black"}], "prompt": "a photo of a purple wine glass and a black apple"}
"#;

fn prompts(text: &str) -> Result<Vec<Prompt>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evaluation_metadata.jsonl");
    fs::write(&path, text).unwrap();
    geneval::read(&path).map_err(|error| error.to_string())
}

fn seen(class: &str, corners: [f64; 4], color: &str, score: f64) -> Detected {
    Detected { class: class.to_owned(), corners, color: Some(color.to_owned()), score }
}

#[test]
fn published_prompts_are_read() {
    let prompts = prompts(GENEVAL).unwrap();
    let tags: Vec<&str> = prompts.iter().map(|prompt| prompt.tag.as_str()).collect();
    assert_eq!(tags, ["single_object", "two_object", "counting", "colors", "position", "color_attr"]);
    assert_eq!(prompts[4].include[1].position, Some(("right of".to_owned(), 0)));
    assert_eq!(prompts[2].exclude[0].count, 3);
}

#[test]
fn damaged_prompts_are_named_by_line() {
    let good = GENEVAL.lines().next().unwrap();
    let cases = [
        ("{\"tag\": 1", "line 2: column"),
        ("[]", "line 2: it is no JSON object"),
        (r#"{"tag": "x", "include": [], "prompt": "x"}"#, "`include` is empty"),
        (r#"{"tag": "x", "include": [{"class": "a", "count": 0}], "prompt": "x"}"#, "a `count` is 0"),
        (r#"{"tag": "x", "include": [{"class": "a", "count": 1, "colour": "red"}], "prompt": "x"}"#, "`colour`"),
        (r#"{"tag": "x", "include": [{"class": "a", "count": 1}]}"#, "missing field `prompt`"),
        (
            r#"{"tag": "x", "include": [{"class": "a", "count": 1, "position": ["under", 0]}], "prompt": "x"}"#,
            "the position `under`",
        ),
        (
            r#"{"tag": "x", "include": [{"class": "a", "count": 1, "position": ["above", 0]}], "prompt": "x"}"#,
            "which is no earlier one",
        ),
    ];
    for (line, expected) in cases {
        let error = prompts(&format!("{good}\n{line}\n")).unwrap_err();
        assert!(error.contains("line 2") && error.contains(expected), "{error}");
    }
    assert!(prompts("\n").unwrap_err().contains("holds no prompts"));
}

/// `scripts/oracle/make_geneval.py` runs the published script's own functions.
#[test]
fn verdicts_are_those_of_the_published_script() {
    let cases = include_str!("../data/geneval.jsonl").lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut passed = 0;
    for (number, mut case) in cases.enumerate() {
        let prompt: Prompt = serde_json::from_value(case["prompt"].take()).unwrap();
        let detected: Vec<Detected> = serde_json::from_value(case["detected"].take()).unwrap();
        let verdict = geneval::judge(&prompt, &detected);
        assert_eq!(verdict.reasons.is_empty(), case["correct"], "case {number}: {:?}", verdict.reasons);
        passed += usize::from(verdict.reasons.is_empty());
    }
    assert_eq!(passed, 150);
}

#[test]
fn detections_are_judged_by_the_published_rules() {
    let prompts = prompts(GENEVAL).unwrap();
    let box_at = |x: f64, y: f64| [x, y, x + 40.0, y + 40.0];
    let judge = |at: usize, found: &[Detected]| geneval::judge(&prompts[at], found).reasons.join("; ");
    assert_eq!(judge(0, &[seen("bench", box_at(0.0, 0.0), "red", 0.31)]), "");
    assert_eq!(judge(0, &[seen("bench", box_at(0.0, 0.0), "red", 0.3)]), "expected bench>=1, found 0");
    let clock = |score| seen("clock", box_at(0.0, 0.0), "red", score);
    assert_eq!(judge(2, &[clock(0.95), clock(0.91), clock(0.9)]), "");
    assert_eq!(judge(2, &[clock(0.95), clock(0.91), clock(0.92)]), "expected clock<3, found 3");
    assert_eq!(judge(2, &[clock(0.95)]), "expected clock>=2, found 1");
    // Only the surest of a class are looked at.
    let hydrant = |color, score| seen("fire hydrant", box_at(0.0, 0.0), color, score);
    assert_eq!(judge(3, &[hydrant("red", 0.5), hydrant("blue", 0.6)]), "");
    assert_eq!(
        judge(3, &[hydrant("red", 0.7), hydrant("blue", 0.6)]),
        "expected blue fire hydrant>=1, found 0 blue; and 1 red"
    );
    let pair = |x, y| [seen("cow", box_at(0.0, 100.0), "red", 0.9), seen("dog", box_at(x, y), "red", 0.9)];
    assert_eq!(judge(4, &pair(100.0, 100.0)), "");
    assert_eq!(judge(4, &pair(100.0, 20.0)), "");
    assert_eq!(judge(4, &pair(10.0, 20.0)), "expected dog right of target, found above target");
    assert_eq!(judge(4, &pair(3.0, 104.0)), "expected dog right of target, found  target");
    assert_eq!(judge(4, &pair(100.0, 100.0)[1..]), "expected cow>=1, found 0; no target for dog to be right of");
}

#[test]
fn scores_are_means_of_tags() {
    let scores = geneval::scores([("a", true), ("b", false), ("a", false), ("a", true), ("a", true)]).unwrap();
    assert_eq!(scores.tags, [("a".to_owned(), 3, 4), ("b".to_owned(), 0, 1)]);
    assert_eq!(scores.overall, 0.375);
    assert_eq!(geneval::scores([]), None);
}

const DPG: &str = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language
partiprompts12,\"A red cup, on a table\",,1,0,entity,whole,entity - whole (cup),Is there a cup?
partiprompts12,\"A red cup, on a table\",,2,1,attribute,color,\"attribute - color (cup, red)\",Is the cup red?
partiprompts12,\"A red cup, on a table\",,3,\"2, 4\",relation,spatial,\"relation - spatial (cup, table, on)\",Is the cup on the table?
partiprompts12,\"A red cup, on a table\",,4,0,entity,whole,entity - whole (table),Is there a table?
7,A dog,,1,0,entity,whole,entity - whole (dog),Is there a dog?
";

fn items(text: &str) -> Result<Vec<dpg::Item>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dpg_bench.csv");
    fs::write(&path, text).unwrap();
    dpg::read(&path).map_err(|error| error.to_string())
}

#[test]
fn questions_are_read_and_scored() {
    let items = items(DPG).unwrap();
    assert_eq!((items.len(), items[0].questions.len(), items[1].id.as_str()), (2, 4, "7"));
    assert_eq!(items[0].text, "A red cup, on a table");
    assert_eq!(items[0].questions[2].parents, [2, 4]);
    assert_eq!(items[0].questions[1].category(), "attribute - color");
    assert_eq!(dpg::score(&items[0], &[true; 4]), 1.0);
    // No cup: then it is neither red nor, since it is not red, on the table.
    assert_eq!(dpg::score(&items[0], &[false, true, true, true]), 0.25);
    assert_eq!(dpg::score(&items[0], &[true, true, true, false]), 0.5);
}

#[test]
fn damaged_questions_are_named() {
    let cases = [
        (DPG.replace("dependency", "depends"), "there is no column `dependency`, only `item_id`"),
        (DPG.replace(",2,1,attr", ",two,1,attr"), "line 3: `proposition_id` is no number: `two`"),
        (DPG.replace(",2,1,attr", ",1,0,attr"), "line 3: the item `partiprompts12` has two questions 1"),
        (DPG.replace("\"2, 4\"", "\"2, 9\""), "item partiprompts12: question 3 depends on 9"),
        (DPG.replace("7,A dog,,1,0,", "7,A dog,"), "line 6"),
        (DPG.lines().next().unwrap().to_owned(), "holds no questions"),
        (format!("{DPG}partiprompts12,x,,9,0,a,b,c,d\n"), "rows in two places"),
    ];
    for (text, expected) in cases {
        let error = items(&text).unwrap_err();
        assert!(error.contains(expected), "{error} and not {expected}");
    }
}

#[test]
fn prompts_are_files_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    assert!(dpg::prompts(folder.path()).unwrap_err().to_string().contains("holds no prompts"));
    fs::write(folder.path().join("b.txt"), "a cat\n").unwrap();
    fs::write(folder.path().join("a1.txt"), "a dog").unwrap();
    fs::write(folder.path().join("notes.md"), "x").unwrap();
    let expected = [("a1", "a dog"), ("b", "a cat")].map(|(id, text)| (id.to_owned(), text.to_owned()));
    assert_eq!(dpg::prompts(folder.path()).unwrap(), expected);
    fs::write(folder.path().join("c.txt"), " ").unwrap();
    assert!(dpg::prompts(folder.path()).unwrap_err().to_string().contains("c.txt: the prompt is empty"));
}

/// A program of the shell, with a second for each answer.
fn shell(script: &str) -> Program {
    let arguments = ["-c".to_owned(), script.to_owned()];
    Program::start(Path::new("sh"), &arguments, Duration::from_secs(1)).unwrap()
}

#[test]
fn a_program_names_objects_and_answers_questions() {
    let mut program = shell(
        r#"n=0; while read -r line; do n=$((n+1)); case "$line" in
            *question*) echo "{\"id\": \"$n\", \"answer\": \" yes \"}";;
            *bad*) echo "{\"id\": \"$n\", \"error\": \"no PNG\"}";;
            *) echo "{\"id\": \"$n\", \"objects\": [{\"class\": \"cup\", \"box\": [1, 2, 3.5, 4], \"color\": \"red\"}]}";;
        esac; done"#,
    );
    let found = program.detect(Path::new("a.png")).unwrap();
    assert_eq!(found, [seen("cup", [1.0, 2.0, 3.5, 4.0], "red", 1.0)]);
    assert_eq!(program.answer(Path::new("a.png"), "Is there a cup?").unwrap(), "yes");
    let error = program.detect(Path::new("bad.png")).unwrap_err().to_string();
    assert!(error.contains("cannot read bad.png: no PNG"), "{error}");
    assert_eq!(program.detect(Path::new("b.png")).unwrap().len(), 1);
}

#[test]
fn a_program_that_does_something_else_is_named() {
    let cases = [
        ("sleep 600", "gave no answer within 1 s about a.png"),
        ("read -r line; sleep 600 & exit 3", "gave no answer within 1 s"),
        ("read -r line; exit 3", "ended before it answered about a.png"),
        ("read -r line; echo hello", "answered with `hello` about a.png"),
        (r#"read -r line; echo '{"id": "7", "objects": []}'"#, "answered \"7\""),
        (r#"read -r line; echo '{"id": "1"}'"#, "named no `objects`"),
        (r#"read -r line; echo '{"id": "1", "objects": [{"class": "a", "box": [9, 0, 1, 1]}]}'"#, "the box [9.0"),
        (r#"read -r line; echo '{"id": "1", "objects": [{"class": "a"}]}'"#, "missing field `box`"),
        ("read -r line; head -c 3000000 /dev/zero", "more than 1048576 bytes"),
    ];
    for (script, expected) in cases {
        let started = Instant::now();
        let mut program = shell(script);
        let error = program.detect(Path::new("a.png")).unwrap_err().to_string();
        assert!(error.contains("the program sh") && error.contains(expected), "{script}: {error}");
        drop(program);
        assert!(started.elapsed() < Duration::from_secs(20), "{script}");
    }
    let mut program = shell("exit 1");
    program.detect(Path::new("a.png")).unwrap_err();
    assert!(program.detect(Path::new("a.png")).unwrap_err().to_string().contains("failed before"));
    let error = Program::start(Path::new("no-such-detector"), &[], Duration::from_secs(1)).err().unwrap();
    assert!(error.to_string().contains("the program no-such-detector cannot be started"), "{error}");
}
