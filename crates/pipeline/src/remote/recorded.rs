//! What an environment has said, written down and read again.
//!
//! A line a reply: `{"asked": […], "said": {…}}`, where `asked` is how an episode began and what the model has said in
//! it, and whether it was cut. An episode is a function of these, so it does not matter when it was played.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use wels_tasks::Counterpart;

/// A counterpart with its record.
pub(super) struct Recorded {
    /// Whom to ask for what is not in the record; `None` if nobody may be asked.
    live: Option<Box<dyn Counterpart>>,
    /// Replies of an earlier process, by what was asked.
    earlier: HashMap<String, Value>,
    /// Where new ones go.
    file: Option<File>,
    episodes: HashMap<String, Transcript>,
}

/// An episode that is open.
struct Transcript {
    reset: Value,
    turns: Vec<Value>,
    /// Whether the live counterpart knows it as it is.
    is_live: bool,
}

impl Recorded {
    /// With the record in `file`, which need not be there yet. It is written to only if somebody may be asked.
    pub fn open(file: &Path, live: Option<Box<dyn Counterpart>>) -> Result<Recorded> {
        let cannot = || format!("cannot use the record {}", file.display());
        let (earlier, whole) = match std::fs::read(file) {
            Ok(bytes) => read(&bytes).with_context(cannot)?,
            Err(error) if error.kind() == ErrorKind::NotFound && live.is_some() => (HashMap::new(), 0),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("{} is not there, and the environment may not be asked", file.display())
            }
            Err(error) => return Err(error).with_context(cannot),
        };
        let open = || -> std::io::Result<File> {
            let opened = File::options().create(true).append(true).open(file)?;
            opened.set_len(whole)?; // a line that a kill has cut
            Ok(opened)
        };
        let file = live.is_some().then(open).transpose().with_context(cannot)?;
        Ok(Recorded { live, earlier, file, episodes: HashMap::new() })
    }

    /// Asks the live counterpart, which is first told what it has missed of the episode.
    fn ask_live(&mut self, question: &Value, episode: Option<&str>, name: &str) -> Result<Value, String> {
        let Some(live) = &mut self.live else {
            return Err(format!("may not be asked, and its record has no answer to this turn of {name}"));
        };
        if let Some((id, transcript)) = episode.and_then(|id| Some((id, self.episodes.get_mut(id)?)))
            && !transcript.is_live
        {
            live.ask(json!({"episode": id, "reset": transcript.reset}), name)?;
            for turn in &transcript.turns {
                live.ask(json!({"episode": id, "step": turn}), name)?;
            }
            transcript.is_live = true;
        }
        live.ask(question.clone(), name)
    }

    fn keep(&mut self, key: &Value, said: &Value) -> Result<(), String> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let line = format!("{}\n", json!({"asked": key, "said": said}));
        file.write_all(line.as_bytes()).map_err(|error| format!("cannot be written down: {error}"))
    }
}

/// The replies in a record, and how many bytes of it are whole lines. What a kill has cut may end within a character.
fn read(bytes: &[u8]) -> Result<(HashMap<String, Value>, u64)> {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let text = std::str::from_utf8(&bytes[..whole]).context("it is no text")?;
    let mut replies = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let mut line: Value = serde_json::from_str(line).with_context(|| format!("line {} is damaged", number + 1))?;
        let (asked, said) = (line["asked"].take(), line["said"].take());
        if !asked.is_array() || !said.is_object() {
            bail!("line {} is no question with its answer", number + 1);
        }
        replies.insert(asked.to_string(), said);
    }
    Ok((replies, whole as u64))
}

impl Counterpart for Recorded {
    fn ask(&mut self, question: Value, name: &str) -> Result<Value, String> {
        let episode = question["episode"].as_str().map(str::to_owned);
        let known = episode.as_ref().and_then(|id| self.episodes.get(id));
        let so_far = known.map(|it| [vec![it.reset.clone()], it.turns.clone()].concat()).unwrap_or_default();
        let next = ["hello", "reset", "step"].iter().find_map(|key| question.get(*key)).cloned();
        let key = Value::Array([so_far, vec![next.unwrap_or_else(|| json!({"close": true}))]].concat());
        let earlier = self.earlier.get(&key.to_string()).cloned();
        let from_record = earlier.is_some();
        let said = match earlier {
            Some(said) => said,
            None => {
                let said = self.ask_live(&question, episode.as_deref(), name)?;
                self.keep(&key, &said)?;
                said
            }
        };
        let Some(id) = episode else { return Ok(said) };
        if let Some(reset) = question.get("reset") {
            let transcript = Transcript { reset: reset.clone(), turns: Vec::new(), is_live: !from_record };
            self.episodes.insert(id, transcript);
        } else if let Some(step) = question.get("step") {
            if let Some(transcript) = self.episodes.get_mut(&id) {
                transcript.turns.push(step.clone());
                transcript.is_live &= !from_record;
            }
            if said["done"] == true {
                self.episodes.remove(&id);
            }
        } else {
            self.episodes.remove(&id);
        }
        Ok(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says what it was asked, and counts.
    struct Echo(u64);

    impl Counterpart for Echo {
        fn ask(&mut self, question: Value, _: &str) -> Result<Value, String> {
            self.0 += 1;
            Ok(json!({"question": question, "number": self.0}))
        }
    }

    fn play(of: &mut Recorded, id: &str, turns: &[&str]) -> Vec<Result<Value, String>> {
        let mut said = vec![of.ask(json!({"episode": id, "reset": {"item": 3, "seed": 9}}), "it")];
        said.extend(turns.iter().map(|turn| of.ask(json!({"episode": id, "step": turn}), "it")));
        said.push(of.ask(json!({"episode": id, "close": true}), "it"));
        said
    }

    #[test]
    fn what_was_said_is_said_again_without_asking() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("environment.jsonl");
        assert!(Recorded::open(&file, None).is_err(), "no record and nobody to ask");
        let first = play(&mut Recorded::open(&file, Some(Box::new(Echo(0)))).unwrap(), "1", &["a", "b"]);
        assert!(first.iter().all(Result::is_ok));
        let whole = std::fs::read_to_string(&file).unwrap();
        let cut_within_a_character = [whole.as_bytes(), b"{\"asked\": [\"\xc3"].concat();
        std::fs::write(&file, cut_within_a_character).unwrap();
        // Another process, with other numbers of episodes, and nobody to ask.
        assert_eq!(play(&mut Recorded::open(&file, None).unwrap(), "7", &["a", "b"]), first);
        let other = play(&mut Recorded::open(&file, None).unwrap(), "8", &["a", "c"]);
        assert_eq!(other[..2], first[..2]);
        assert!(other[2].as_ref().is_err_and(|error| error.contains("its record has no answer")), "{other:?}");

        // With somebody to ask, a new turn is put behind those that it has missed.
        let again = play(&mut Recorded::open(&file, Some(Box::new(Echo(0)))).unwrap(), "9", &["a", "c"]);
        assert_eq!(again[..2], first[..2]);
        assert_eq!(again[2].as_ref().unwrap()["number"], 3, "the third that it was asked: {again:?}");
        let longer = std::fs::read_to_string(&file).unwrap();
        assert!(longer.starts_with(&whole) && longer.len() > whole.len());
        assert_eq!(play(&mut Recorded::open(&file, None).unwrap(), "1", &["a", "c"]), again);
    }

    #[test]
    fn a_damaged_record_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("environment.jsonl");
        std::fs::write(&file, "{\"asked\": [1], \"said\": {}}\nnonsense\n").unwrap();
        let error = Recorded::open(&file, None).err().map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(error.contains("environment.jsonl: line 2 is damaged"), "{error}");
    }
}
