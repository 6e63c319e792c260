//! Answers to questions about pictures: whether they are right, and the figures that POPE and MME report.
//!
//! POPE (Li and others, 2023) reports accuracy, precision and recall of "yes", F1 and the share of "yes". MME (Fu and
//! others, 2023) asks one question with "yes" and one with "no" about each picture, and adds the share of pictures
//! with both right.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::questions::{Question, SO};

/// What a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    Description,
    Count,
    Existence,
    Colour,
    Shape,
    Size,
    Texture,
    Place,
    Relation,
}

impl Question {
    /// Told by its words.
    pub fn sort(&self) -> Sort {
        let ends = |words: [&str; 2]| words.iter().any(|word| self.text.ends_with(word));
        let begins = |words: &str| self.text.starts_with(words);
        match () {
            () if self.text == "what is there" => Sort::Description,
            () if begins("how many") => Sort::Count,
            () if begins("is there") => Sort::Existence,
            () if begins("what colour") => Sort::Colour,
            () if begins("what shape") => Sort::Shape,
            () if begins("where") => Sort::Place,
            () if ends([" small", " large"]) => Sort::Size,
            () if ends([" plain", " striped"]) => Sort::Texture,
            () => Sort::Relation,
        }
    }

    /// Whether a model's text is the answer, or ends with it behind a "so", whatever its case and the punctuation and
    /// white space around it.
    pub fn is_answered_by(&self, text: &str) -> bool {
        conclusion(text) == conclusion(&self.answer)
    }
}

/// What a text says in the end: the words behind its last "so", or all of them.
fn conclusion(text: &str) -> String {
    let words = text.split_whitespace().map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase());
    let words: Vec<String> = words.filter(|word| !word.is_empty()).collect();
    let from = words.iter().rposition(|word| word == SO).map_or(0, |at| at + 1);
    words[from..].join(" ")
}

/// Right answers and all answers by sort.
pub fn by_sort<'a>(answered: impl IntoIterator<Item = (&'a Question, &'a str)>) -> BTreeMap<Sort, (usize, usize)> {
    let mut counts: BTreeMap<Sort, (usize, usize)> = BTreeMap::new();
    for (question, text) in answered {
        let count = counts.entry(question.sort()).or_default();
        count.0 += usize::from(question.is_answered_by(text));
        count.1 += 1;
    }
    counts
}

/// Figures over questions that are answered with "yes" or "no"; anything else counts as a wrong answer, and as no
/// "yes".
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct YesNo {
    pub accuracy: f64,
    /// Of the answers "yes", how many are right; 0 without any.
    pub precision: f64,
    /// Of the questions whose answer is "yes", how many were so answered; 0 without any.
    pub recall: f64,
    pub f1: f64,
    /// Of all answers.
    pub yes_share: f64,
    /// Pictures of which every question is answered right.
    pub pictures_right: f64,
}

/// Of pictures, each with its questions and their answers; `None` without questions.
pub fn yes_no<'a>(pictures: &[Vec<(&'a Question, &'a str)>]) -> Option<YesNo> {
    let all = || pictures.iter().flatten();
    let share = |count: usize, of: usize| if of == 0 { 0.0 } else { count as f64 / of as f64 };
    let count = all().count();
    let right = all().filter(|(question, text)| question.is_answered_by(text)).count();
    let is_yes = |text: &str| conclusion(text) == "yes";
    let said = all().filter(|(_, text)| is_yes(text)).count();
    let true_yes = all().filter(|(question, text)| is_yes(text) && is_yes(&question.answer)).count();
    let wanted = all().filter(|(question, _)| is_yes(&question.answer)).count();
    let whole = pictures.iter().filter(|picture| picture.iter().all(|(question, text)| question.is_answered_by(text)));
    (count > 0).then(|| YesNo {
        accuracy: share(right, count),
        precision: share(true_yes, said),
        recall: share(true_yes, wanted),
        f1: share(2 * true_yes, said + wanted),
        yes_share: share(said, count),
        pictures_right: share(whole.count(), pictures.len()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(text: &str, answer: &str) -> Question {
        Question { text: text.to_owned(), answer: answer.to_owned(), seen: String::new() }
    }

    #[test]
    fn answers_are_compared_as_words() {
        let four = question("what shape is the red object", "digit 4");
        assert!(four.is_answered_by(" Digit  4.\n") && !four.is_answered_by("4") && !four.is_answered_by("digit 4 4"));
    }

    #[test]
    fn what_counts_of_a_reasoned_answer_is_its_end() {
        let no = question("is there a red circle", "no");
        assert!(
            no.is_answered_by("a small red square so no") && no.is_answered_by("So: no.") && no.is_answered_by("no")
        );
        assert!(!no.is_answered_by("no so yes") && !no.is_answered_by("a red also no") && !no.is_answered_by("no so"));
        let reasoned = Question { seen: "a small red square".into(), ..no.clone() };
        assert_eq!((reasoned.reasoned(), no.reasoned()), ("a small red square so no".to_owned(), "no".to_owned()));
        let pictures = [vec![(&no, "a red circle so yes"), (&no, "a blue circle so no")]];
        assert_eq!(yes_no(&pictures).unwrap().yes_share, 0.5);
    }

    #[test]
    fn figures_are_those_of_pope_and_mme() {
        let (yes, no) = (question("is there a red circle", "yes"), question("is there a blue circle", "no"));
        let said = |a: &'static str, b: &'static str| vec![(&yes, a), (&no, b)];
        let pictures = [said("yes", "no"), said("Yes.", "yes"), said("no", "no"), said("maybe", "no")];
        let figures = yes_no(&pictures).unwrap();
        assert_eq!((figures.accuracy, figures.yes_share, figures.pictures_right), (5.0 / 8.0, 3.0 / 8.0, 0.25));
        assert_eq!((figures.precision, figures.recall, figures.f1), (2.0 / 3.0, 0.5, 4.0 / 7.0));
        assert_eq!(yes_no(&[]), None);
        assert_eq!(by_sort(pictures.concat()), BTreeMap::from([(Sort::Existence, (5, 8))]));
    }
}
