//! Names of a hub in a recipe, `hf://…`, which stand where a path may: which keys have them, and what takes their place.
//! What they mean is decided by the command that reads the recipe; here they are text.

use std::path::{Path, PathBuf};

use super::{Answers, Recipe, Start, Supervised, TokenizerSection, Work};

/// What a name of a hub begins with.
pub const HUB: &str = "hf://";

/// What a key is for that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A model, weights and all.
    Model,
    /// A model's tokenizer.
    Tokenizer,
    /// One file of data.
    File,
    /// Any number of files of data.
    Files,
}

/// What paths of a recipe are relative to, and the `config.json` of a model by its name.
#[derive(Clone, Copy)]
pub(super) struct Folder<'a> {
    pub path: &'a Path,
    pub config: &'a dyn Fn(&str) -> Result<PathBuf, String>,
}

/// For a reader that fetches nothing.
pub(super) fn refuse(name: &str) -> Result<PathBuf, String> {
    Err(format!("{name} is not fetched by this command"))
}

/// A path below the folder, or a name as it is.
pub(super) fn joined(folder: &Path, text: &str) -> String {
    match text.starts_with(HUB) {
        true => text.to_owned(),
        false => folder.join(text).display().to_string(),
    }
}

/// Gives what stands for a name: one text, or any number for [`Use::Files`].
type Replace<'a, E> = &'a mut dyn FnMut(Use, &str) -> Result<Vec<String>, E>;

impl Recipe {
    /// Replaces every name of a hub.
    ///
    /// # Errors
    /// The first of `replace`.
    ///
    /// # Panics
    /// If `replace` gives another number of texts than one for what is no [`Use::Files`].
    pub fn replace_names<E>(&mut self, replace: Replace<E>) -> Result<(), E> {
        if let TokenizerSection::Load { path } = &mut self.tokenizer {
            let mut text = path.display().to_string();
            one(Use::Tokenizer, &mut text, replace)?;
            *path = text.into();
        }
        let mut sources = Vec::new();
        for source in std::mem::take(&mut self.data.sources) {
            match source.starts_with(HUB) {
                true => sources.extend(replace(Use::Files, &source)?),
                false => sources.push(source),
            }
        }
        self.data.sources = sources;
        self.stages.iter_mut().try_for_each(|stage| of_work(&mut stage.work, replace))
    }

    /// All names of a hub.
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        let copy: Replace<std::convert::Infallible> = &mut |_, name| {
            names.push(name.to_owned());
            Ok(vec![name.to_owned()])
        };
        let Ok(()) = self.clone().replace_names(copy);
        names
    }
}

fn one<E>(of: Use, text: &mut String, replace: Replace<E>) -> Result<(), E> {
    if text.starts_with(HUB) {
        let texts = replace(of, text)?;
        let [only] = &texts[..] else { panic!("{text} is {} things", texts.len()) };
        text.clone_from(only);
    }
    Ok(())
}

fn of_start<E>(start: &mut Start, replace: Replace<E>) -> Result<(), E> {
    match start {
        Start::From { from } => one(Use::Model, from, replace),
        Start::New { .. } => Ok(()),
    }
}

fn of_examples<E>(section: &mut Supervised, replace: Replace<E>) -> Result<(), E> {
    one(Use::File, &mut section.data, replace)?;
    of_start(&mut section.start, replace)
}

fn of_work<E>(work: &mut Work, replace: Replace<E>) -> Result<(), E> {
    let task = match work {
        Work::Pretrain(it) | Work::Sft(it) => return of_examples(it, replace),
        Work::Rl(it) => {
            of_start(&mut it.start, replace)?;
            &mut it.rollouts.answering.task
        }
        Work::Distil(it) => {
            one(Use::Model, &mut it.teacher, replace)?;
            match &mut it.answers {
                Answers::Given(given) => return of_examples(given, replace),
                Answers::Own(own) => {
                    of_start(&mut own.start, replace)?;
                    &mut own.rollouts.answering.task
                }
            }
        }
        Work::Vq(it) => {
            one(Use::File, &mut it.data.pictures, replace)?;
            return it.from.iter_mut().try_for_each(|from| one(Use::Model, from, replace));
        }
        Work::Janus(it) => {
            one(Use::File, &mut it.data.pictures, replace)?;
            return one(Use::Model, &mut it.from, replace);
        }
        Work::DrawRl(it) => return one(Use::Model, &mut it.from, replace),
        Work::DrawScore(it) => return it.models.iter_mut().try_for_each(|model| one(Use::Model, model, replace)),
        Work::SampleAndFilter(it) => {
            one(Use::Model, &mut it.from, replace)?;
            &mut it.answering.task
        }
        Work::Questions(it) => return one(Use::Model, &mut it.from, replace),
        Work::Score(it) => {
            it.models.iter_mut().try_for_each(|model| one(Use::Model, model, replace))?;
            &mut it.answering.task
        }
    };
    if let Some(file) = &mut task.file {
        let mut text = file.display().to_string();
        one(Use::File, &mut text, replace)?;
        *file = text.into();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = r#"
        [tokenizer]
        path = "hf://a/t"
        [data]
        sources = ["text", "hf://datasets/a/d/*.txt"]
        [model]
        preset = "deepseek-v2-lite"
        [[stage]]
        name = "s"
        kind = "sft"
        data = "hf://datasets/a/d/s.jsonl"
        from = "hf://a/m"
        [[stage]]
        name = "r"
        kind = "rl"
        from = "s"
        task = "number=hf://datasets/a/d/q.jsonl"
        [[stage]]
        name = "d"
        kind = "distil"
        teacher = "hf://a/teacher"
        answers = "own"
        from = "hf://a/student"
        [[stage]]
        name = "k"
        kind = "sample_and_filter"
        from = "hf://a/k"
        [[stage]]
        name = "o"
        kind = "questions"
        from = "hf://a/o"
        [[stage]]
        name = "g"
        kind = "score"
        models = ["d", "hf://a/g"]
        [[stage]]
        name = "v"
        kind = "vq"
        from = "hf://a/vq"
        pictures = "hf://datasets/a/d/v.tar"
        [[stage]]
        name = "j"
        kind = "janus"
        from = "hf://a/janus"
        pictures = "hf://datasets/a/d/j.tar"
        questions = 0
        [[stage]]
        name = "w"
        kind = "draw_rl"
        from = "hf://a/draws"
        [[stage]]
        name = "x"
        kind = "draw_score"
        models = ["j", "hf://a/drawn"]
    "#;

    #[test]
    fn every_name_is_found_kept_and_replaced() {
        let mut recipe = Recipe::parse("r.toml", RECIPE, Path::new("/f")).unwrap();
        let expected = [
            "hf://a/t",
            "hf://datasets/a/d/*.txt",
            "hf://datasets/a/d/s.jsonl",
            "hf://a/m",
            "hf://datasets/a/d/q.jsonl",
            "hf://a/teacher",
            "hf://a/student",
            "hf://a/k",
            "hf://a/o",
            "hf://a/g",
            "hf://a/vq",
            "hf://datasets/a/d/v.tar",
            "hf://a/janus",
            "hf://datasets/a/d/j.tar",
            "hf://a/draws",
            "hf://a/drawn",
        ];
        let mut names = recipe.names();
        names.sort_by_key(|name| expected.iter().position(|it| it == name));
        assert_eq!(names, expected);
        assert_eq!(Recipe::parse("saved", &recipe.to_toml(), Path::new("/elsewhere")).unwrap(), recipe);
        let replace: Replace<()> = &mut |of, name| {
            let short = name.trim_start_matches(HUB);
            Ok(if of == Use::Files { vec!["/1".into(), "/2".into()] } else { vec![format!("/{of:?}/{short}")] })
        };
        recipe.replace_names(replace).unwrap();
        assert_eq!(recipe.data.sources, ["/f/text", "/1", "/2"]);
        assert_eq!(recipe.names(), [""; 0]);
        let text = recipe.to_toml();
        for place in ["/Tokenizer/a/t", "/File/datasets/a/d/s.jsonl", "number=/File/datasets/a/d/q.jsonl", "/Model/a/g"]
        {
            assert!(text.contains(place), "{place} in {text}");
        }
    }
}
