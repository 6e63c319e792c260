//! The language-consistency reward of R1 ("DeepSeek-R1", §2.3.2): words of the target language over all words.
//!
//! A word is a run of letters of one script; of Han, kana and Thai, which are written without spaces, every letter
//! counts as one. It belongs to a language if its script does: languages that share a script are not told apart. Not
//! counted, since they belong to no language: digits, symbols, LaTeX commands (`\frac`), tags (`<think>`) and single
//! Latin or Greek letters, which are mostly variables.

use serde::{Deserialize, Serialize};

/// A target language, by its ISO 639-1 code in files; it stands for all languages of its script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// English; also every other language in Latin letters.
    En,
    /// Chinese.
    Zh,
    /// Japanese: kana and Han.
    Ja,
    /// Korean: Hangul.
    Ko,
    /// Russian; Cyrillic letters.
    Ru,
    /// Arabic.
    Ar,
    /// Greek.
    El,
    /// Hebrew.
    He,
    /// Hindi; Devanagari.
    Hi,
    /// Thai.
    Th,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Script {
    Latin,
    Greek,
    Cyrillic,
    Hebrew,
    Arabic,
    Devanagari,
    Thai,
    Hangul,
    Kana,
    Han,
    Other,
}

impl Script {
    /// Of a letter.
    fn of(c: char) -> Script {
        match c as u32 {
            0x41..=0x24f | 0x1e00..=0x1eff | 0x2c60..=0x2c7f | 0xff21..=0xff5a => Script::Latin,
            0x370..=0x3ff | 0x1f00..=0x1fff => Script::Greek,
            0x400..=0x52f => Script::Cyrillic,
            0x590..=0x5ff => Script::Hebrew,
            0x600..=0x6ff | 0x750..=0x77f | 0xfb50..=0xfdff | 0xfe70..=0xfeff => Script::Arabic,
            0x900..=0x97f => Script::Devanagari,
            0xe00..=0xe7f => Script::Thai,
            0x1100..=0x11ff | 0x3130..=0x318f | 0xac00..=0xd7a3 => Script::Hangul,
            0x3040..=0x30ff | 0xff66..=0xff9f => Script::Kana,
            0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0x20000..=0x323af => Script::Han,
            _ => Script::Other,
        }
    }

    /// Whether every letter counts as a word.
    fn is_unspaced(self) -> bool {
        matches!(self, Script::Han | Script::Kana | Script::Thai)
    }

    fn belongs_to(self, language: Language) -> bool {
        match language {
            Language::En => self == Script::Latin,
            Language::Zh => self == Script::Han,
            Language::Ja => matches!(self, Script::Han | Script::Kana),
            Language::Ko => self == Script::Hangul,
            Language::Ru => self == Script::Cyrillic,
            Language::Ar => self == Script::Arabic,
            Language::El => self == Script::Greek,
            Language::He => self == Script::Hebrew,
            Language::Hi => self == Script::Devanagari,
            Language::Th => self == Script::Thai,
        }
    }
}

/// Words of `language` over all words, in 0..=1. Without a word 0: saying nothing is not rewarded.
pub fn share(text: &str, language: Language) -> f64 {
    let (mut of_language, mut all) = (0u64, 0u64);
    for_each_word(text, |script| {
        all += 1;
        of_language += u64::from(script.belongs_to(language));
    });
    if all == 0 { 0.0 } else { of_language as f64 / all as f64 }
}

fn for_each_word(text: &str, mut found: impl FnMut(Script)) {
    let mut chars = text.chars().peekable();
    let mut before = [' '; 2];
    while let Some(c) = chars.next() {
        let command = before[1] == '\\';
        let tag = before[1] == '<' || before == ['<', '/'];
        before = [before[1], c];
        if !c.is_alphabetic() {
            continue;
        }
        let script = Script::of(c);
        if script.is_unspaced() {
            found(script);
            continue;
        }
        let mut letters = 1;
        while let Some(&next) = chars.peek() {
            // Marks (vowel signs, accents) and apostrophes stay in the word.
            let mark = !next.is_alphabetic() && Script::of(next) == script && next as u32 >= 0x300;
            let apostrophe = matches!(next, '\'' | '’');
            if !(mark || apostrophe || next.is_alphabetic() && Script::of(next) == script) {
                break;
            }
            letters += u32::from(next.is_alphabetic());
            before = [before[1], next];
            chars.next();
        }
        let variable = letters == 1 && matches!(script, Script::Latin | Script::Greek);
        if !command && !tag && !variable {
            found(script);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_counted_by_script() {
        assert_eq!(share("First we add 3 and 4.", Language::En), 1.0);
        assert_eq!(share("first 我们 add", Language::En), 0.5);
        assert_eq!(share("first 我们 add", Language::Zh), 0.5);
        assert_eq!(share("naïve café, don't", Language::En), 1.0);
        assert_eq!(share("сначала add", Language::Ru), 0.5);
        assert_eq!(share("足し算をする", Language::Ja), 1.0);
    }

    #[test]
    fn what_is_no_word_does_not_count() {
        assert_eq!(share("我们 \\frac{x}{2} + y = 3 <b> π", Language::Zh), 1.0);
        for empty in ["", " \n", "3 + 4 = 7", "x"] {
            assert_eq!(share(empty, Language::En), 0.0, "{empty:?}");
        }
    }
}
