//! What stands for a model on the command line: `ORG/NAME[@REVISION][:PICK]`, or a short name with `[@PICK]`; in a
//! recipe, where paths stand too, `hf://` comes before it.

use std::fmt;

use crate::id::is_dataset;
use crate::short;

/// A model of a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// `ORG/NAME`.
    pub id: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// What of the repository, where that is said.
    pub pick: Option<Pick>,
    /// What to call the model: the short name, or NAME.
    pub title: String,
}

/// What of a repository with several GGUF files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pick {
    /// A file by its path in the repository.
    File(String),
    /// By quantisation, such as `q4_k_m`, in small letters.
    Quantisation(String),
}

/// What may come before a name, and in recipes has to.
pub const SCHEME: &str = "hf://";
/// The revision unless one is named.
pub const MAIN: &str = "main";
/// The pick of a short name's repository of safetensors.
const SAFETENSORS: &str = "safetensors";
/// Names that end so are files that are not there, no repositories.
const FILE_ENDS: [&str; 5] = [".gguf", ".safetensors", ".toml", ".json", ".jsonl"];
/// The hub's own limit for a name.
const NAME_CHARS_MAX: usize = 96;

impl Name {
    /// Reads a name. `None` for what cannot be one.
    pub fn parse(text: &str) -> Option<Name> {
        let text = text.strip_prefix(SCHEME).unwrap_or(text);
        Name::parse_short(text).or_else(|| Name::parse_id(text))
    }

    fn parse_short(text: &str) -> Option<Name> {
        let (name, pick) = cut(text, '@');
        let short = short::find(name)?;
        let id = match pick {
            Some(SAFETENSORS) => short.safetensors,
            _ => short.gguf.unwrap_or(short.safetensors),
        };
        let pick = match pick.filter(|pick| *pick != SAFETENSORS) {
            Some(pick) => Some(Pick::parse(pick)?),
            None => None,
        };
        Some(Name { id: id.to_owned(), revision: MAIN.to_owned(), pick, title: name.to_owned() })
    }

    fn parse_id(text: &str) -> Option<Name> {
        let (rest, pick) = cut(text, ':');
        let (id, revision) = cut(rest, '@');
        let (owner, name) = id.split_once('/')?;
        let pick = match pick {
            Some(pick) => Some(Pick::parse(pick)?),
            None => None,
        };
        let revision = revision.unwrap_or(MAIN);
        let is_file = FILE_ENDS.iter().any(|end| name.to_ascii_lowercase().ends_with(end));
        if !is_name(owner) || !is_name(name) || is_file || !is_revision(revision) || is_dataset(id) {
            return None;
        }
        Some(Name { id: id.to_owned(), revision: revision.to_owned(), pick, title: name.to_owned() })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}@{}", self.id, self.revision)?;
        match &self.pick {
            None => Ok(()),
            Some(Pick::File(pick) | Pick::Quantisation(pick)) => write!(f, ":{pick}"),
        }
    }
}

impl Pick {
    fn parse(text: &str) -> Option<Pick> {
        if text.to_ascii_lowercase().ends_with(".gguf") {
            return is_safe_path(text).then(|| Pick::File(text.to_owned()));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        (!text.is_empty() && text.chars().all(allowed)).then(|| Pick::Quantisation(text.to_ascii_lowercase()))
    }
}

fn cut(text: &str, mark: char) -> (&str, Option<&str>) {
    text.split_once(mark).map_or((text, None), |(before, behind)| (before, Some(behind)))
}

/// The hub's rule for the parts of an id.
pub fn is_name(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let edge = |c: char| "-.".contains(c);
    (1..=NAME_CHARS_MAX).contains(&part.len())
        && part.chars().all(allowed)
        && !part.starts_with(edge)
        && !part.ends_with(edge)
        && !part.contains("--")
        && !part.contains("..")
}

/// Whether a branch, a tag or a commit may be called that.
pub fn is_revision(revision: &str) -> bool {
    is_safe_path(revision) && revision.chars().all(|c| c.is_ascii_graphic())
}

/// Whether a path of a repository stays below the folder that it is put in, on any system.
pub fn is_safe_path(path: &str) -> bool {
    let is_safe = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.split('/').all(is_safe) && !path.contains(['\\', ':']) && !path.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(id: &str, revision: &str, pick: Option<Pick>, title: &str) -> Option<Name> {
        Some(Name { id: id.into(), revision: revision.into(), pick, title: title.into() })
    }

    #[test]
    fn names_are_ids_and_short_names() {
        let quantisation = |text: &str| Some(Pick::Quantisation(text.into()));
        assert_eq!(Name::parse("a-b/c.d_e"), name("a-b/c.d_e", "main", None, "c.d_e"));
        assert_eq!(Name::parse("a/b@refs/pr/1"), name("a/b", "refs/pr/1", None, "b"));
        assert_eq!(Name::parse("a/b@v1:Q4_K_M"), name("a/b", "v1", quantisation("q4_k_m"), "b"));
        let file = Some(Pick::File("x/B-Q8_0.gguf".into()));
        assert_eq!(Name::parse("a/b:x/B-Q8_0.gguf"), name("a/b", "main", file, "b"));
        let gguf = "unsloth/DeepSeek-R1-Distill-Qwen-1.5B-GGUF";
        assert_eq!(Name::parse("r1:1.5b"), name(gguf, "main", None, "r1:1.5b"));
        assert_eq!(Name::parse("r1:1.5b@q4_k_m"), name(gguf, "main", quantisation("q4_k_m"), "r1:1.5b"));
        let safetensors = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B";
        assert_eq!(Name::parse("r1:1.5b@safetensors"), name(safetensors, "main", None, "r1:1.5b"));
        for text in ["hf://a/b@v1", "hf://a/b@main:x/B-Q8_0.gguf", "hf://a/b@main:q4_0"] {
            assert_eq!(Name::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_a_name_is_none() {
        for text in [
            "",
            "a",
            "a/",
            "/a",
            "a/b/c",
            "./a",
            "../a",
            "a/..",
            "a/b--c",
            "-a/b",
            "a/b.",
            "a b/c",
            "a\\b/c",
            "~/a",
            "models/x.gguf",
            "runs/mine.toml",
            "a/b@",
            "a/b@../c",
            "a/b@/c",
            "a/b:",
            "a/b:../x.gguf",
            "a/b:/x.gguf",
            "r1:2b",
            "datasets/b",
            "hf://datasets/b",
            "hf://datasets/a/b.csv",
            "r1@",
            "r1:1.5b@../x.gguf",
        ] {
            assert_eq!(Name::parse(text), None, "{text}");
        }
    }

    #[test]
    fn paths_stay_below_their_folder() {
        for path in ["a", "a/b.json", "..a/b..", "a b"] {
            assert!(is_safe_path(path), "{path}");
        }
        for path in
            ["", "/a", "../a", "a/../b", "a/..", "a//b", "./a", "..\\a", "a\\..\\b", "C:\\a", "C:a", "a\0", "a\n"]
        {
            assert!(!is_safe_path(path), "{path}");
        }
    }
}
