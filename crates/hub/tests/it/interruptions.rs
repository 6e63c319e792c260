//! Connections that end, servers that are slow, disks that are full, processes that come at the same time.

use std::fs;
use std::process::Command;
use std::time::Duration;

use wels_hub::HubError;

use crate::server::{Manner, sha256};
use crate::{Lab, SNAPSHOT, noise};

/// The weights of the model.
fn weights() -> Vec<u8> {
    noise(2, 300_000)
}

fn has_weights(lab: &Lab) -> bool {
    fs::read(lab.at(SNAPSHOT).join("model.safetensors")).is_ok_and(|bytes| bytes == weights())
}

fn blob() -> String {
    format!("models--org--tiny/blobs/{}", sha256(&weights()))
}

#[test]
fn twenty_connections_that_end_anywhere_give_the_same_bytes() {
    let lab = Lab::new();
    let places: Vec<usize> = noise(9, 40).chunks(2).map(|pair| 1 + pair[0] as usize * 50 + pair[1] as usize).collect();
    assert_eq!(places.len(), 20);
    // The small files come first: one of 7 bytes in three pieces, one whole.
    lab.server.behave(Manner::Cut([vec![0, 1, 7, 1000], places].concat()));
    lab.pull("org/tiny").unwrap();
    assert!(has_weights(&lab));
    // No byte was asked for twice.
    let asked = lab.server.asked();
    let from: Vec<u64> = asked
        .iter()
        .filter(|asked| !asked.hub)
        .map(|asked| asked.range.as_ref().map_or(0, |range| range[6..range.len() - 1].parse().unwrap()))
        .collect();
    assert!(from.len() == 21 && from.is_sorted_by(|a, b| a < b), "{from:?}");
}

#[test]
fn twenty_pulls_that_were_given_up_go_on() {
    let places = noise(11, 40).chunks(2).map(|pair| pair[0] as usize * 1100 + pair[1] as usize).collect::<Vec<_>>();
    for place in places {
        let lab = Lab::new();
        // The first connection ends at the place, the next ones at once, until it gives up.
        lab.server.behave(Manner::Cut([&[1000, 1000, place][..], &[0; 5]].concat()));
        let error = lab.pull("org/tiny").unwrap_err();
        assert!(matches!(error, HubError::Unreachable { .. }), "{error:?}");
        assert!(!lab.at(&blob()).exists() && !lab.at(SNAPSHOT).join("model.safetensors").exists());
        let incomplete = fs::read(lab.at(&format!("{}.incomplete", blob()))).unwrap();
        assert_eq!(incomplete, weights()[..place], "at {place}");
        assert!(lab.offline("org/tiny").is_err(), "half a model is none");
        lab.server.asked();
        lab.pull("org/tiny").unwrap();
        assert!(has_weights(&lab), "at {place}");
        let ranges: Vec<_> =
            lab.server.asked().into_iter().filter(|asked| !asked.hub).map(|asked| asked.range).collect();
        assert_eq!(ranges, [(place > 0).then(|| format!("bytes={place}-"))]);
    }
}

#[test]
fn a_whole_file_without_its_name_is_only_checked() {
    let lab = Lab::new();
    lab.pull("org/tiny").unwrap();
    fs::rename(lab.at(&blob()), lab.at(&format!("{}.incomplete", blob()))).unwrap();
    lab.server.asked();
    lab.pull("org/tiny").unwrap();
    assert!(has_weights(&lab) && lab.server.asked().iter().all(|asked| asked.hub));
    // More than there should be is no beginning.
    fs::remove_file(lab.at(&blob())).unwrap();
    fs::write(lab.at(&format!("{}.incomplete", blob())), noise(3, 300_001)).unwrap();
    lab.pull("org/tiny").unwrap();
    assert!(has_weights(&lab));
}

#[test]
fn a_server_without_ranges_begins_anew() {
    let lab = Lab::new();
    lab.pull("org/tiny").unwrap();
    fs::remove_file(lab.at(&blob())).unwrap();
    lab.server.behave(Manner::NoRanges(70_000));
    lab.pull("org/tiny").unwrap();
    assert!(has_weights(&lab));
}

#[test]
fn silence_is_an_interruption() {
    let lab = Lab::new();
    lab.pull("org/tiny").unwrap();
    fs::remove_file(lab.at(&blob())).unwrap();
    lab.server.behave(Manner::Silent(100_000));
    let begin = std::time::Instant::now();
    let (path, events) = lab.events("org/tiny", None);
    path.unwrap();
    assert!(has_weights(&lab) && begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    assert!(events.iter().any(|event| event.starts_with("Again")), "{events:?}");
}

#[test]
fn a_busy_server_is_asked_again_but_not_for_ever() {
    let lab = Lab::new();
    lab.server.behave(Manner::Busy(4));
    lab.pull("org/tiny").unwrap();
    fs::remove_file(lab.at(&blob())).unwrap();
    lab.server.behave(Manner::Busy(usize::MAX));
    lab.server.asked();
    let error = lab.pull("org/tiny").unwrap_err();
    assert!(error.to_string().ends_with(": it answers 503 Service Unavailable"), "{error}");
    assert_eq!(lab.server.asked().iter().filter(|asked| !asked.hub).count(), 5);
}

#[test]
fn a_file_that_is_shorter_than_its_head_says_is_given_up() {
    let lab = Lab::new();
    lab.server.behave(Manner::Short(5000));
    let error = lab.pull("org/tiny").unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error:?}");
    lab.server.behave(Manner::Well);
    lab.pull("org/tiny").unwrap();
    assert!(has_weights(&lab));
}

#[test]
fn wrong_bytes_get_no_name() {
    let lab = Lab::new();
    lab.server.behave(Manner::Wrong);
    let error = lab.pull("org/tiny").unwrap_err();
    assert!(matches!(error, HubError::WrongHash { .. }), "{error:?}");
    // Neither small nor large files, and nothing to go on with.
    assert_eq!(lab.files("models--org--tiny"), [""; 0]);
    lab.server.behave(Manner::Well);
    lab.pull("org/tiny").unwrap();
    fs::remove_file(lab.at(&blob())).unwrap();
    lab.server.behave(Manner::Wrong);
    let error = lab.pull("org/tiny").unwrap_err();
    assert!(matches!(error, HubError::WrongHash { .. }), "{error:?}");
    assert!(!lab.at(&blob()).exists() && !lab.at(&format!("{}.incomplete", blob())).exists());
    lab.server.behave(Manner::Well);
    lab.pull("org/tiny").unwrap();
    assert!(has_weights(&lab));
}

const CHILD: &str = "WELS_TEST_HUB";

/// Not a test of its own: what the tests below start as another process.
#[test]
fn child() {
    let Ok(said) = std::env::var(CHILD) else { return };
    let (endpoint, cache) = said.split_once(' ').unwrap();
    let lab = Lab::new();
    let settings = wels_hub::Settings { endpoint: endpoint.into(), cache: cache.into(), ..lab.settings() };
    if let Err(error) = lab.pull_with(settings, "org/tiny") {
        let source = std::error::Error::source(&error).map_or(String::new(), |source| format!(": {source}"));
        panic!("PULL {error}{source}");
    }
}

fn start(lab: &Lab, before: &str) -> Command {
    let program = std::env::current_exe().unwrap();
    let script = format!("{before} exec '{}' interruptions::child --exact --nocapture", program.display());
    let mut command = Command::new("bash");
    command.args(["-c", &script]);
    command.env(CHILD, format!("{} {}", lab.server.endpoint(), lab.cache.path().display()));
    command
}

/// A limit on the size of files stands in for a full disk: writing fails midway.
#[test]
fn a_full_disk_is_said_and_the_rest_is_kept() {
    let lab = Lab::new();
    // bash counts in kibibytes.
    let output = start(&lab, "trap '' XFSZ; ulimit -f 100;").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    let expected = format!("PULL cannot write {}.incomplete: File too large", lab.at(&blob()).display());
    assert!(!output.status.success() && said.contains(&expected), "{said}");
    assert!(!lab.at(&blob()).exists());
    let incomplete = fs::read(lab.at(&format!("{}.incomplete", blob()))).unwrap();
    assert!(!incomplete.is_empty() && weights().starts_with(&incomplete), "{} bytes are there", incomplete.len());
    lab.server.asked();
    lab.pull("org/tiny").unwrap();
    assert!(has_weights(&lab));
    let range = format!("bytes={}-", incomplete.len());
    assert!(lab.server.asked().iter().any(|asked| asked.range.as_ref() == Some(&range)));
}

#[test]
fn processes_at_the_same_time_share_one_fetch() {
    let lab = Lab::new();
    lab.server.behave(Manner::Slow(Duration::from_millis(100)));
    let children: Vec<_> = (0..4).map(|_| start(&lab, "").spawn().unwrap()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert!(has_weights(&lab));
    assert_eq!(lab.server.asked().iter().filter(|asked| !asked.hub).count(), 1, "the weights are fetched once");
    assert_eq!(lab.files(SNAPSHOT), ["README.md", "config.json", "model.safetensors"]);
}

#[test]
fn a_killed_process_leaves_what_the_next_goes_on_with() {
    let lab = Lab::new();
    lab.pull("org/tiny").unwrap();
    fs::remove_file(lab.at(&blob())).unwrap();
    lab.server.behave(Manner::Silent(100_000));
    let mut child = start(&lab, "").spawn().unwrap();
    let incomplete = lab.at(&format!("{}.incomplete", blob()));
    while !fs::metadata(&incomplete).is_ok_and(|found| found.len() > 0) && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!lab.at(&blob()).exists());
    lab.pull("org/tiny").unwrap();
    assert!(has_weights(&lab));
}
