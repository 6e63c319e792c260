//! GenEval's prompts as they are published (`evaluation_metadata.jsonl`), and its rules for what a detector found.
//!
//! ```text
//! {"tag": "position", "include": [{"class": "cow", "count": 1},
//!                                 {"class": "cup", "count": 1, "position": ["left of", 0]}], "prompt": "a photo of …"}
//! ```
//! Rules, thresholds and reasons are those of `evaluate_images.py` of github.com/djghosh13/geneval (Ghosh and others,
//! "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment", 2023). The detector is a program of
//! one's own ([`crate::program`]) that also names colours, as CLIP does there.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::read::{JsonLines, ReadError};

/// A detection counts above this confidence.
const THRESHOLD: f64 = 0.3;
/// And above this one where objects are counted.
const COUNTING_THRESHOLD: f64 = 0.9;
/// Most detections of a class.
const OBJECTS_MAX: usize = 16;
/// What of a distance the boxes themselves take, as a share of their sizes.
const POSITION_THRESHOLD: f64 = 0.1;

/// A prompt and what its picture must show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// `single_object`, `two_object`, `counting`, `colors`, `position` or `color_attr` in the published file.
    pub tag: String,
    pub include: Vec<Clause>,
    /// Classes with numbers of objects that there must not be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Clause>,
    pub prompt: String,
}

/// At least so many objects of a class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clause {
    pub class: String,
    pub count: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<String>,
    /// "left of", "right of", "above" or "below" the objects of the clause with this number, an earlier one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<(String, usize)>,
}

/// What a detector found.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Detected {
    pub class: String,
    /// Left, top, right, bottom in pixels.
    #[serde(rename = "box")]
    pub corners: [f64; 4],
    /// Of the box; `None` if it was not told.
    #[serde(default)]
    pub color: Option<String>,
    /// The detector's confidence, of 1.
    #[serde(default = "certain")]
    pub score: f64,
}

fn certain() -> f64 {
    1.0
}

/// Whether a picture is right, and every reason why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub correct: bool,
    pub reasons: Vec<String>,
}

/// All prompts of a file, in order.
pub fn read(path: &Path) -> Result<Vec<Prompt>, ReadError> {
    let mut prompts = Vec::new();
    for record in JsonLines::open(path)? {
        let (line, object) = record?;
        let prompt: Result<Prompt, _> = serde_json::from_value(Value::Object(object));
        let prompt = prompt.map_err(|error| error.to_string()).and_then(checked);
        prompts.push(prompt.map_err(|reason| ReadError::line(path, line, reason))?);
    }
    match prompts.is_empty() {
        true => Err(ReadError::file(path, "it holds no prompts")),
        false => Ok(prompts),
    }
}

fn checked(prompt: Prompt) -> Result<Prompt, String> {
    if prompt.include.is_empty() {
        return Err("`include` is empty: every picture would be right".to_owned());
    }
    if prompt.include.iter().chain(&prompt.exclude).any(|clause| clause.count == 0) {
        return Err("a `count` is 0".to_owned());
    }
    if prompt.exclude.iter().any(|clause| clause.color.is_some() || clause.position.is_some()) {
        return Err("`exclude` has a `color` or a `position`, which it cannot have".to_owned());
    }
    for (number, clause) in prompt.include.iter().enumerate() {
        let Some((relation, target)) = &clause.position else { continue };
        if !["left of", "right of", "above", "below"].contains(&relation.as_str()) {
            return Err(format!("the position `{relation}` is none of `left of`, `right of`, `above`, `below`"));
        }
        if *target >= number {
            return Err(format!("clause {number} of `include` stands to clause {target}, which is no earlier one"));
        }
    }
    Ok(prompt)
}

/// Judges what a detector found. All clauses are judged, as reasons for people; a clause sees the surest of its class.
pub fn judge(prompt: &Prompt, detected: &[Detected]) -> Verdict {
    let mut reasons = Vec::new();
    let mut matched: Vec<Option<Vec<&Detected>>> = Vec::new();
    for clause in &prompt.include {
        let mut found = of_class(&prompt.tag, &clause.class, detected);
        found.truncate(clause.count);
        let failure = unmet(clause, &found, &matched);
        matched.push(failure.is_none().then_some(found));
        reasons.extend(failure);
    }
    for clause in &prompt.exclude {
        let found = of_class(&prompt.tag, &clause.class, detected).len();
        if found >= clause.count {
            reasons.push(format!("expected {}<{}, found {found}", clause.class, clause.count));
        }
    }
    Verdict { correct: reasons.is_empty(), reasons }
}

/// The detections of a class that count, the surest first.
fn of_class<'a>(tag: &str, class: &str, detected: &'a [Detected]) -> Vec<&'a Detected> {
    let threshold = if tag == "counting" { COUNTING_THRESHOLD } else { THRESHOLD };
    let mut found: Vec<&Detected> =
        detected.iter().filter(|object| object.class == class && object.score > threshold).collect();
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    found.truncate(OBJECTS_MAX);
    found
}

/// Why a clause is not met.
fn unmet(clause: &Clause, found: &[&Detected], matched: &[Option<Vec<&Detected>>]) -> Option<String> {
    let Clause { class, count, color, position } = clause;
    if found.len() < *count {
        return Some(format!("expected {class}>={count}, found {}", found.len()));
    }
    if let Some(color) = color {
        let right = found.iter().filter(|object| object.color.as_ref() == Some(color)).count();
        if right < *count {
            let mut others: BTreeMap<&str, usize> = BTreeMap::new();
            for object in found {
                *others.entry(object.color.as_deref().unwrap_or("of no colour")).or_default() += 1;
            }
            let others: Vec<String> = others.iter().map(|(color, count)| format!("{count} {color}")).collect();
            let others = others.join(", ");
            return Some(format!("expected {color} {class}>={count}, found {right} {color}; and {others}"));
        }
    }
    let (relation, target) = position.as_ref()?;
    let Some(targets) = &matched[*target] else {
        return Some(format!("no target for {class} to be {relation}"));
    };
    let all = found.iter().flat_map(|object| targets.iter().map(|target| relations(object, target)));
    let wrong = { all }.find(|relations| !relations.contains(&relation.as_str()))?;
    Some(format!("expected {class} {relation} target, found {} target", wrong.join(" and ")))
}

/// Where `a` is, seen from `b`: directions of more than half of the distance between their middles, less a tenth of
/// their sizes.
fn relations(a: &Detected, b: &Detected) -> Vec<&'static str> {
    let middle = |of: &Detected, axis: usize| (of.corners[axis] + of.corners[axis + 2]) / 2.0;
    let size = |of: &Detected, axis: usize| (of.corners[axis + 2] - of.corners[axis]).abs();
    let offset = [0, 1].map(|axis| middle(a, axis) - middle(b, axis));
    let less = [0, 1].map(|axis| {
        let beyond = offset[axis].abs() - POSITION_THRESHOLD * (size(a, axis) + size(b, axis));
        beyond.max(0.0) * offset[axis].signum()
    });
    if less.iter().all(|part| part.abs() < 1e-3) {
        return Vec::new();
    }
    let distance = offset[0].hypot(offset[1]);
    let [dx, dy] = less.map(|part| part / distance);
    let named = [("left of", dx < -0.5), ("right of", dx > 0.5), ("above", dy < -0.5), ("below", dy > 0.5)];
    named.into_iter().filter(|(_, holds)| *holds).map(|(name, _)| name).collect()
}

/// Shares of right pictures by tag, and GenEval's score: their mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// Tag, right pictures, all pictures, in the order in which tags first came.
    pub tags: Vec<(String, usize, usize)>,
    pub overall: f64,
}

/// Of tags with verdicts; `None` if there are none.
pub fn scores<'a>(verdicts: impl IntoIterator<Item = (&'a str, bool)>) -> Option<Scores> {
    let mut tags: Vec<(String, usize, usize)> = Vec::new();
    for (tag, correct) in verdicts {
        let at = tags.iter().position(|(name, ..)| name == tag).unwrap_or_else(|| {
            tags.push((tag.to_owned(), 0, 0));
            tags.len() - 1
        });
        tags[at].1 += usize::from(correct);
        tags[at].2 += 1;
    }
    let overall = tags.iter().map(|(_, right, all)| *right as f64 / *all as f64).sum::<f64>() / tags.len() as f64;
    (!tags.is_empty()).then_some(Scores { tags, overall })
}
