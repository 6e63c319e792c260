//! A folder of text files, in memory and anew in each episode, and questions that have to be looked up in one.
//!
//! ```text
//! <tool>list</tool>            <result>crow.txt owl.txt</result>
//! <tool>read owl.txt</tool>    <result>17</result>
//! <tool>write sum.txt 42</tool>, <tool>delete owl.txt</tool>
//! ```

use std::collections::BTreeMap;

use crate::draw::Draw;
use crate::environment::DemonstrationOptions;
use crate::prompt::Presentation;
use crate::task::{Item, Reason, Reference, Split, Task, TaskError, foreign};
use crate::tooled::{Demonstrator, Open, Shown, Tool};
use crate::{Format, listed};

const STREAM_FOLDER: u64 = 0x6669_6c65;
const NAMES: [&str; 10] = ["owl", "cat", "dog", "crow", "hare", "fox", "eel", "goat", "toad", "swan"];
/// Most files, and most bytes of all.
const FILES_MAX: usize = 64;
const BYTES_MAX: usize = 64 << 10;

/// Lists, reads, writes and deletes.
pub struct Folder;

impl Tool for Folder {
    fn about(&self) -> [&str; 2] {
        ["You have a folder of text files: list, read NAME, write NAME TEXT, delete NAME.", "read notes.txt"]
    }

    fn open<'a>(&'a self, item: &'a Item, _: u64) -> Result<Box<dyn Open + 'a>, TaskError> {
        let files = match &item.reference {
            Reference::Found { documents, .. } => documents.iter().filter_map(|document| document.split_once('\n')),
            _ => return Err(TaskError::ForeignItem { task: "files".to_owned(), item: item.id.clone() }),
        };
        Ok(Box::new(Files { files: files.map(|(name, text)| (name.to_owned(), text.to_owned())).collect() }))
    }
}

/// The folder of an episode.
struct Files {
    files: BTreeMap<String, String>,
}

impl Open for Files {
    fn call(&mut self, text: &str) -> Result<String, TaskError> {
        let (verb, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let (name, content) = rest.trim_start().split_once(char::is_whitespace).unwrap_or((rest.trim(), ""));
        let missing = |name: &str| format!("error: there is no file {name}");
        Ok(match verb {
            "list" => self.files.keys().cloned().collect::<Vec<_>>().join(" "),
            "read" => self.files.get(name).cloned().unwrap_or_else(|| missing(name)),
            "delete" => self.files.remove(name).map_or_else(|| missing(name), |_| "deleted".to_owned()),
            "write" if name.is_empty() => "error: write NAME TEXT".to_owned(),
            "write" => self.write(name, content),
            _ => "error: list, read NAME, write NAME TEXT or delete NAME".to_owned(),
        })
    }
}

impl Files {
    fn write(&mut self, name: &str, content: &str) -> String {
        let bytes: usize = self.files.values().map(String::len).sum();
        if self.files.len() >= FILES_MAX || bytes + content.len() > BYTES_MAX {
            return "error: the folder is full".to_owned();
        }
        self.files.insert(name.to_owned(), content.to_owned());
        "written".to_owned()
    }
}

/// Which of a few files has the largest number?
pub struct Largest {
    presentation: Presentation,
    split: Split,
    seed: u64,
}

impl Largest {
    /// Questions without end; those of the two splits are about other folders.
    pub fn new(presentation: Presentation, split: Split, seed: u64) -> Largest {
        Largest { presentation, split, seed }
    }

    /// Names and numbers, which are all different.
    fn folder(&self, index: u64) -> Vec<(String, u64)> {
        let mut draw = Draw::new(self.seed, STREAM_FOLDER + u64::from(self.split == Split::HeldOut), index);
        let mut names = NAMES;
        draw.shuffle(&mut names);
        let mut numbers: Vec<u64> = (10..100).collect();
        draw.shuffle(&mut numbers);
        let count = draw.between(2, 4) as usize;
        let mut files: Vec<(String, u64)> =
            names.iter().zip(numbers).take(count).map(|(name, number)| (format!("{name}.txt"), number)).collect();
        files.sort();
        files
    }
}

fn largest(files: &[(String, u64)]) -> &str {
    files.iter().max_by_key(|(_, number)| *number).map_or("", |(name, _)| name)
}

impl Task for Largest {
    fn name(&self) -> &str {
        "largest"
    }

    fn len(&self) -> Option<u64> {
        None
    }

    fn item(&self, index: u64) -> Result<Item, TaskError> {
        let files = self.folder(index);
        let full = "Each file in the folder holds a number. Which file holds the largest? Answer with its name";
        let documents = files.iter().map(|(name, number)| format!("{name}\n{number}")).collect();
        let reference = Reference::Found { documents, answer: largest(&files).to_owned() };
        Ok(Item { id: format!("largest-{index}"), prompt: self.presentation.prompt("largest?", full), reference })
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

/// Lists the folder, reads all files, and compares.
impl Demonstrator for Largest {
    fn show(&self, index: u64, options: &DemonstrationOptions, draw: &mut Draw) -> Result<Shown, TaskError> {
        let (item, files) = (self.item(index)?, self.folder(index));
        if draw.chance(options.direct) {
            return Ok(Shown { item, calls: Vec::new(), answer: format!("{}.txt", draw.one(&NAMES)) });
        }
        let quit = if options.quit.is_empty() { 0.0 } else { *draw.one(&options.quit) };
        let mut calls = vec!["list".to_owned()];
        for (read, (name, _)) in files.iter().enumerate() {
            if draw.chance(quit) {
                let answer = if read == 0 { files[0].0.clone() } else { largest(&files[..read]).to_owned() };
                return Ok(Shown { item, calls, answer });
            }
            calls.push(format!("read {name}"));
        }
        // Who slips takes any of them.
        let answer = if draw.chance(options.slips) { draw.one(&files).0.clone() } else { largest(&files).to_owned() };
        Ok(Shown { item, calls, answer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Style;

    #[test]
    fn a_folder_is_a_folder_and_ends_with_its_episode() {
        let task = Largest::new(Style::Terse.into(), Split::Train, 0);
        let item = task.item(3).unwrap();
        let names: Vec<String> = task.folder(3).into_iter().map(|(name, _)| name).collect();
        let mut open = Folder.open(&item, 0).unwrap();
        let mut call = |text: &str| open.call(text).unwrap();
        assert_eq!(call("list"), names.join(" "));
        assert_eq!(call("write sum.txt 1 and 2"), "written");
        assert_eq!(call("read sum.txt"), "1 and 2");
        assert_eq!(call("delete sum.txt"), "deleted");
        assert_eq!(call("read sum.txt"), "error: there is no file sum.txt");
        assert_eq!(call("read ../../etc/passwd"), "error: there is no file ../../etc/passwd");
        assert!(call("steal").starts_with("error: list, read"));
        assert_eq!(call(&format!("write big {}", "x".repeat(BYTES_MAX + 1))), "error: the folder is full");
        call(&format!("delete {}", names[0]));
        assert_eq!(Folder.open(&item, 0).unwrap().call("list").unwrap(), names.join(" "));
    }
}
