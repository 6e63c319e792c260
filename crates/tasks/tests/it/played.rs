//! Environments of anyone's own: honest ones, and those that hang, end or change their minds.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use wels_tasks::played::Played;
use wels_tasks::task::{Prompt, Split, Task};
use wels_tasks::{Environment, Observation, Step, TaskError};

/// Guess a number: the item's number plus two. Three turns at most. BODY may misbehave.
const GUESS: &str = r#"#!/usr/bin/env python3
import json, sys
episodes = {}
for number, line in enumerate(sys.stdin, 1):
    asked = json.loads(line)
    said = {"id": asked["id"]}
    if "hello" in asked:
        said |= {"items": 5 if asked["hello"]["split"] == "train" else 2, "stops": ["?"]}
    elif "reset" in asked:
        episodes[asked["episode"]] = [asked["reset"]["item"] + 2, 0]
        said["prompt"] = f"guess {asked['reset']['item']}"
    elif "step" in asked:
        it = episodes[asked["episode"]]
        it[1] += 1
        guess = asked["step"].strip(" ?")
        if guess == str(it[0]):
            said |= {"done": True, "reward": 1.0 if it[1] == 1 else 0.5, "correct": True}
        elif it[1] == 3:
            said |= {"done": True, "reward": 0.0, "reason": "three guesses"}
        elif it[1] == 2:
            said["observation"] = {"role": "user", "content": "no, again"}
        else:
            said["observation"] = " no "
    else:
        said["reward"] = 0.25
    BODY
    print(json.dumps(said), flush=True)
"#;

fn program(folder: &TempDir, body: &str) -> PathBuf {
    let path = folder.path().join("guess");
    std::fs::write(&path, GUESS.replace("BODY", body)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn started(folder: &TempDir, body: &str, timeout: Duration) -> Result<Played, TaskError> {
    Played::start(&program(folder, body), None, Split::Train, timeout)
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn an_honest_environment_is_played() {
    let folder = tempfile::tempdir().unwrap();
    let played = started(&folder, "pass", MINUTE).unwrap();
    assert_eq!((played.len(), played.stops()), (Some(5), vec!["?".to_owned()]));
    assert!(played.item(5).is_err());
    let items: Vec<_> = (0..5).map(|index| played.item(index).unwrap()).collect();
    assert_eq!(items[3].prompt, Prompt::Text("guess 3".to_owned()));
    // Several at a time.
    let mut episodes: Vec<_> = items.iter().map(|item| played.begin(item, 9).unwrap()).collect();
    let first: Vec<Step> = episodes.iter_mut().map(|episode| episode.step("4").unwrap()).collect();
    let Step::Done(reward) = &first[2] else { panic!("{first:?}") };
    assert!(reward.accuracy == 1.0 && reward.grade.correct);
    assert_eq!(first[0], Step::Observation(Observation::Text(" no ".to_owned())));
    let message = Observation::Message { role: "user".to_owned(), text: "no, again".to_owned() };
    assert_eq!(episodes[0].step("9?").unwrap(), Step::Observation(message));
    let Step::Done(reward) = episodes[0].step("2").unwrap() else { panic!("three turns end it") };
    assert_eq!((reward.accuracy, reward.grade.correct), (0.5, true));
    let cut = episodes[1].cut("").unwrap();
    assert_eq!(
        (cut.accuracy, cut.grade.correct, cut.grade.reason.to_string()),
        (0.25, false, "wrong: cut at a limit".into())
    );
    let held_out = Played::start(&program(&folder, "pass"), None, Split::HeldOut, MINUTE).unwrap();
    assert_eq!(held_out.len(), Some(2));
}

#[test]
fn one_that_misbehaves_is_named_and_not_asked_again() {
    let cases = [
        ("if number == 4: import time; time.sleep(1000)", "gave no answer within 2 s to item-0"),
        ("if number == 4: sys.exit(1)", "ended before it answered item-0"),
        ("if number == 4: said = 'nonsense'", "answered item-0 with `\"nonsense\"`"),
        ("if number == 4: said['id'] = '2'", "was asked \"4\", about item-0, and answered \"2\""),
        ("if number == 4: said['prompt'] = 'another'", "gave another prompt for item-0 than before"),
        ("if number == 5: said = {'id': '5'}", "neither ended an episode of item-0 nor said anything"),
        ("if number == 5: said |= {'done': True}", "ended an episode of item-0 without a reward"),
        ("if number == 5: said['padding'] = 'x' * (1 << 21)", "answered item-0 with more than 1048576 bytes"),
        ("if number == 6: said |= {'done': True, 'reward': 1}", ""),
    ];
    for (body, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        let begun = Instant::now();
        let played = started(&folder, body, Duration::from_secs(if body.contains("sleep") { 2 } else { 60 }));
        let played = played.unwrap();
        let play = || -> Result<(), TaskError> {
            let item = played.item(0)?;
            let mut episode = played.begin(&item, 9)?;
            while let Step::Observation(_) = episode.step("7")? {}
            Ok(())
        };
        match (play(), expected) {
            (Err(error), expected) if !expected.is_empty() => {
                assert!(error.to_string().contains(expected), "{body}: {error}");
                assert!(played.item(1).unwrap_err().to_string().contains("failed before"));
            }
            // It is played twice, and says something else the second time.
            (Err(error), _) => assert!(error.to_string().contains("said two things to the same turns"), "{error}"),
            (Ok(()), _) => panic!("{body} went by"),
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{body}");
    }
    let missing = Played::start(&PathBuf::from("/no/such/environment"), None, Split::Train, MINUTE);
    assert!(missing.map(|_| ()).unwrap_err().to_string().contains("cannot be started"));
    let folder = tempfile::tempdir().unwrap();
    let none = started(&folder, "said['items'] = 0", MINUTE).map(|_| ()).unwrap_err();
    assert!(none.to_string().contains("has no item to train"), "{none}");
}
