//! Reads TOML section by section and remembers where everything stood, so that an error can name line and column and an
//! unknown key the nearest known one. The keys that a section *asks for* are the keys it knows: there is no second
//! list.

use std::fmt;
use std::ops::Range;

use thiserror::Error;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A position in a recipe, for people: `recipe.toml:12:3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's name as given, or `quickstart` for the built-in recipe.
    pub origin: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.origin, self.line, self.column)
    }
}

/// What can be wrong with a recipe.
#[derive(Debug, Error)]
pub enum RecipeError {
    #[error("cannot read the recipe {path}")]
    Read { path: String, source: std::io::Error },
    #[error("{place}: {message}")]
    Syntax { place: Box<Place>, message: String },
    #[error("{place}: unknown {what} '{key}'{section}")]
    Unknown { place: Box<Place>, what: &'static str, key: String, section: String, known: Vec<String> },
    #[error("{place}: {section}.{key} must be {expected}, but is {found}")]
    Type { place: Box<Place>, section: String, key: String, expected: &'static str, found: &'static str },
    #[error("{place}: {section}.{key} {message}")]
    Value { place: Box<Place>, section: String, key: String, message: String },
    #[error("{origin}: {section}.{key} is missing")]
    Missing { origin: String, section: String, key: String, hint: String },
    #[error("{place}: [model] {message}")]
    Model { place: Box<Place>, message: String },
}

impl RecipeError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            RecipeError::Unknown { key, known, .. } => Some(match nearest(key, known) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("known here: {}", known.join(", ")),
            }),
            RecipeError::Missing { hint, .. } => Some(hint.clone()),
            RecipeError::Read { .. } => Some("give the path of a recipe (.toml), or of a run to go on with".into()),
            _ => None,
        }
    }
}

/// The known word that `word` was probably meant to be.
fn nearest<'a>(word: &str, known: &'a [String]) -> Option<&'a String> {
    let score = |candidate: &String| strsim::jaro_winkler(word, candidate);
    known.iter().filter(|k| score(k) > 0.75).max_by(|a, b| score(a).total_cmp(&score(b)))
}

/// A text with its name, to turn offsets into places.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub origin: &'a str,
    pub text: &'a str,
}

impl Source<'_> {
    fn place(&self, offset: usize) -> Box<Place> {
        let before = &self.text[..offset.min(self.text.len())];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Box::new(Place {
            origin: self.origin.to_string(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        })
    }
}

/// A parsed recipe whose sections are taken out one by one.
pub(super) struct Document<'a> {
    source: Source<'a>,
    sections: DeTable<'a>,
    asked: Vec<String>,
}

impl<'a> Document<'a> {
    pub fn parse(source: Source<'a>) -> Result<Self, RecipeError> {
        let sections = DeTable::parse(source.text).map_err(|error| RecipeError::Syntax {
            place: source.place(error.span().map_or(0, |span| span.start)),
            message: error.message().to_string(),
        })?;
        Ok(Document { source, sections: sections.into_inner(), asked: Vec::new() })
    }

    /// Whether something of this name is written, and not taken yet.
    pub fn has(&self, name: &str) -> bool {
        self.sections.contains_key(name)
    }

    /// Takes out a section; one that is not written is empty.
    pub fn section(&mut self, name: &'static str) -> Result<Section<'a>, RecipeError> {
        self.asked.push(name.to_string());
        let (table, span) = match self.sections.remove(name) {
            None => (DeTable::new(), 0..0),
            Some(value) => {
                let span = value.span();
                match value.into_inner() {
                    DeValue::Table(table) => (table, span),
                    other => {
                        return Err(RecipeError::Type {
                            place: self.source.place(span.start),
                            section: "recipe".into(),
                            key: name.into(),
                            expected: "a section",
                            found: kind(&other),
                        });
                    }
                }
            }
        };
        Ok(Section { source: self.source, name, span, table, taken: Vec::new() })
    }

    /// Takes out the sections of a list, `[[name]]`; none if none is written.
    pub fn sections(&mut self, name: &'static str) -> Result<Vec<Section<'a>>, RecipeError> {
        self.asked.push(name.to_string());
        let Some(value) = self.sections.remove(name) else { return Ok(Vec::new()) };
        let wrong = |span: &Range<usize>, found: &DeValue| RecipeError::Type {
            place: self.source.place(span.start),
            section: "recipe".into(),
            key: name.into(),
            expected: "a list of sections in double brackets",
            found: kind(found),
        };
        let span = value.span();
        let DeValue::Array(items) = value.get_ref() else { return Err(wrong(&span, value.get_ref())) };
        let mut sections = Vec::new();
        for item in items.clone() {
            let span = item.span();
            match item.into_inner() {
                DeValue::Table(table) => {
                    sections.push(Section { source: self.source, name, span, table, taken: Vec::new() });
                }
                other => return Err(wrong(&span, &other)),
            }
        }
        Ok(sections)
    }

    /// Fails if a section is left that nobody asked for.
    pub fn finish(self) -> Result<(), RecipeError> {
        match self.sections.keys().next() {
            None => Ok(()),
            Some(key) => Err(RecipeError::Unknown {
                place: self.source.place(key.span().start),
                what: "section",
                key: key.get_ref().to_string(),
                section: String::new(),
                known: self.asked,
            }),
        }
    }
}

/// One `[section]`.
pub(super) struct Section<'a> {
    source: Source<'a>,
    name: &'static str,
    span: Range<usize>,
    table: DeTable<'a>,
    taken: Vec<(&'static str, Range<usize>)>,
}

impl<'a> Section<'a> {
    /// The value of a key, if it is written.
    pub fn get<T: FromToml>(&mut self, key: &'static str) -> Result<Option<T>, RecipeError> {
        let Some(value) = self.table.remove(key) else {
            self.taken.push((key, self.span.clone()));
            return Ok(None);
        };
        let span = value.span();
        self.taken.push((key, span.clone()));
        let found = kind(value.get_ref());
        T::from_toml(value.into_inner()).map(Some).ok_or_else(|| RecipeError::Type {
            place: self.source.place(span.start),
            section: self.name.into(),
            key: key.into(),
            expected: T::EXPECTED,
            found,
        })
    }

    /// The first of these keys that is written and was not asked for yet.
    pub fn written(&self, keys: &[&'static str]) -> Option<&'static str> {
        keys.iter().copied().find(|key| self.table.contains_key(*key))
    }

    /// A section within this one, if it is written.
    pub fn table(&mut self, key: &'static str) -> Result<Option<Section<'a>>, RecipeError> {
        let Some(value) = self.table.remove(key) else {
            self.taken.push((key, self.span.clone()));
            return Ok(None);
        };
        let span = value.span();
        self.taken.push((key, span.clone()));
        match value.into_inner() {
            DeValue::Table(table) => {
                Ok(Some(Section { source: self.source, name: key, span, table, taken: Vec::new() }))
            }
            other => Err(RecipeError::Type {
                place: self.source.place(span.start),
                section: self.name.into(),
                key: key.into(),
                expected: "a section",
                found: kind(&other),
            }),
        }
    }

    /// The value of a key, or its default.
    pub fn get_or<T: FromToml>(&mut self, key: &'static str, default: T) -> Result<T, RecipeError> {
        Ok(self.get(key)?.unwrap_or(default))
    }

    /// As [`get_or`](Self::get_or), and `holds` must be true of the value; `rule` says so in words.
    pub fn get_where<T: FromToml + Copy + fmt::Display>(
        &mut self,
        key: &'static str,
        default: T,
        holds: impl Fn(T) -> bool,
        rule: &str,
    ) -> Result<T, RecipeError> {
        let value = self.get_or(key, default)?;
        if holds(value) { Ok(value) } else { Err(self.wrong(key, format!("must be {rule}, but is {value}"))) }
    }

    /// One of a few words, each with its meaning; the first is the default.
    pub fn word<T: Copy>(&mut self, key: &'static str, meanings: &[(&str, T)]) -> Result<T, RecipeError> {
        let word: String = self.get_or(key, meanings[0].0.to_string())?;
        let found = meanings.iter().find(|(known, _)| *known == word);
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let known: Vec<_> = meanings.iter().map(|(known, _)| format!("\"{known}\"")).collect();
            self.wrong(key, format!("must be one of {}, but is \"{word}\"", known.join(", ")))
        })
    }

    /// The error "this key's value is wrong", at the value's place.
    pub fn wrong(&self, key: &str, message: impl Into<String>) -> RecipeError {
        let span = self.taken.iter().find(|(taken, _)| *taken == key).map_or(&self.span, |(_, span)| span);
        RecipeError::Value {
            place: self.source.place(span.start),
            section: self.name.into(),
            key: key.into(),
            message: message.into(),
        }
    }

    /// The place of the section itself, or of the key `word` in it.
    pub fn place_of(&self, word: Option<&str>) -> Box<Place> {
        let key = word.and_then(|word| self.table.keys().find(|key| key.get_ref() == word));
        self.source.place(key.map_or(self.span.start, |key| key.span().start))
    }

    /// What is left, as JSON, for a section whose keys another crate knows; the keys keep their places.
    pub fn rest_as_json(&self) -> serde_json::Map<String, serde_json::Value> {
        self.table.iter().map(|(key, value)| (key.get_ref().to_string(), to_json(value.get_ref()))).collect()
    }

    /// Fails if a key is left that is not in `also_known` either.
    pub fn finish(&self, also_known: &[String]) -> Result<(), RecipeError> {
        let unknown = |key: &&Spanned<_>| !also_known.iter().any(|known| known == AsRef::<str>::as_ref(key.get_ref()));
        let Some(key) = self.table.keys().find(unknown) else { return Ok(()) };
        let taken = self.taken.iter().map(|(key, _)| key.to_string());
        Err(RecipeError::Unknown {
            place: self.source.place(key.span().start),
            what: "key",
            key: key.get_ref().to_string(),
            section: format!(" in [{}]", self.name),
            known: taken.chain(also_known.iter().cloned()).collect(),
        })
    }
}

/// A type that a key can have.
pub(super) trait FromToml: Sized {
    const EXPECTED: &'static str;
    fn from_toml(value: DeValue<'_>) -> Option<Self>;
}

impl FromToml for u64 {
    const EXPECTED: &'static str = "a whole number from 0";
    fn from_toml(value: DeValue<'_>) -> Option<Self> {
        let DeValue::Integer(number) = value else { return None };
        // A recipe is saved as TOML, whose integers are signed.
        u64::from_str_radix(number.as_str(), number.radix()).ok().filter(|n| i64::try_from(*n).is_ok())
    }
}

impl FromToml for usize {
    const EXPECTED: &'static str = <u64 as FromToml>::EXPECTED;
    fn from_toml(value: DeValue<'_>) -> Option<Self> {
        u64::from_toml(value).and_then(|n| n.try_into().ok())
    }
}

impl FromToml for f64 {
    const EXPECTED: &'static str = "a number";
    fn from_toml(value: DeValue<'_>) -> Option<Self> {
        match value {
            DeValue::Float(number) => number.as_str().parse().ok().filter(|x: &f64| x.is_finite()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(|n| n as f64),
            _ => None,
        }
    }
}

impl FromToml for bool {
    const EXPECTED: &'static str = "true or false";
    fn from_toml(value: DeValue<'_>) -> Option<Self> {
        value.as_bool()
    }
}

impl FromToml for String {
    const EXPECTED: &'static str = "a text in quotes";
    fn from_toml(value: DeValue<'_>) -> Option<Self> {
        value.as_str().map(str::to_string)
    }
}

impl<T: FromToml> FromToml for Vec<T> {
    const EXPECTED: &'static str = "a list in brackets";
    fn from_toml(value: DeValue<'_>) -> Option<Self> {
        let DeValue::Array(items) = value else { return None };
        items.into_iter().map(|item| T::from_toml(item.into_inner())).collect()
    }
}

/// A list, or one word such as `"all"`.
pub(super) enum ListOrWord {
    List(Vec<usize>),
    Word(String),
}

impl FromToml for ListOrWord {
    const EXPECTED: &'static str = "a list of whole numbers or a word in quotes";
    fn from_toml(value: DeValue<'_>) -> Option<Self> {
        match value {
            DeValue::String(word) => Some(ListOrWord::Word(word.into_owned())),
            list => Vec::from_toml(list).map(ListOrWord::List),
        }
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn to_json(value: &DeValue<'_>) -> serde_json::Value {
    use serde_json::Value;
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).map_or(Value::Null, Value::from)
        }
        DeValue::Float(number) => number.as_str().parse::<f64>().map_or(Value::Null, Value::from),
        DeValue::Boolean(truth) => Value::Bool(*truth),
        DeValue::Datetime(date) => Value::String(date.to_string()),
        DeValue::Array(items) => items.iter().map(|item| to_json(item.get_ref())).collect(),
        DeValue::Table(table) => {
            table.iter().map(|(key, value)| (key.get_ref().to_string(), to_json(value.get_ref()))).collect()
        }
    }
}
