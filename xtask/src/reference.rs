//! `cargo xtask docs`: writes [`PAGE`], the list of a recipe's keys, from the doc comments and defaults of [`SOURCES`].
//! `tidy` fails when the page is not what this would write.
//!
//! Keys are the fields of the types whose doc comment begins with `` `[section]` ``. A default is the second argument
//! of the call that reads the key.

use std::fmt::Write;

/// What is read.
pub const SOURCES: [&str; 2] = ["crates/runs/src/recipe.rs", "crates/runs/src/recipe/stages.rs"];
/// What is written.
pub const PAGE: &str = "docs/recipe.md";

const HEAD: &str = "\
# The keys of a recipe

Written by `cargo xtask docs`. A recipe is a TOML file. Keys that are left out have these defaults, which may be
formulas of other keys; the `recipe.toml` of a run has every key written out. Paths are relative to the recipe's folder.
";

const TAIL: &str = "
`tokenizer.path` and `tokenizer.vocab_size` exclude each other, and so do `pretrain.steps` and `pretrain.tokens`, from
which the steps follow.

## `[model]`

The keys of a Hugging Face `config.json`. `preset = \"NAME\"` or `config = \"FILE\"` gives all of them, and keys written
beside it replace single ones. TOML has no null; `\"none\"` stands for it. Vocabulary size and the ids of the special
tokens follow from a tokenizer that is trained in the run.
";

/// Defaults that read differently in TOML.
const SPELLED: [(&str, &str); 20] = [
    ("String::new()", "none"),
    ("\"countdown\".into()", "\"countdown\""),
    ("\"traces\".into()", "\"traces\""),
    ("PRETRAIN.into()", "\"pretrain\""),
    ("vec![PRETRAIN.into()]", "[\"pretrain\"]"),
    ("of.learning_rate", "by kind"),
    ("of.weight_decay", "by kind"),
    ("of.bias_update_speed", "by kind"),
    ("of.balance_alpha", "by kind"),
    ("of.mtp_lambda", "by kind"),
    ("of.prompts", "by kind"),
    ("samples", "by kind"),
    ("answering.samples", "samples"),
    ("\"text\".into()", "\"text\""),
    ("\"run\".into()", "\"run\""),
    ("vec![CARGO_SOURCES.to_string()]", "[\"cargo-sources\"]"),
    ("ListOrWord::List(Vec::new())", "[]"),
    ("Vec::new()", "[]"),
    ("8 * sequence", "8 * data.sequence_length"),
    ("last", "batch_tokens"),
];

/// The page, from the sources.
pub fn page(sources: &[&str]) -> String {
    let sections = sources.iter().map(|source| sections(source));
    HEAD.to_string() + &sections.collect::<String>() + TAIL
}

/// The tables of one source.
fn sections(source: &str) -> String {
    let mut page = String::new();
    let mut docs = String::new();
    let (mut in_section, mut flattened) = (false, false);
    let mut reader = source;
    for line in source.lines().map(str::trim) {
        if let Some(doc) = line.strip_prefix("///") {
            docs += doc;
            continue;
        }
        let doc = std::mem::take(&mut docs);
        let doc = doc.trim();
        if line.starts_with("pub struct ") || line.starts_with("pub enum ") {
            in_section = doc.starts_with("`[");
            if in_section {
                let name = line.split([' ', '<']).nth(2).unwrap_or_default();
                reader = source.find(&format!("\nimpl {name} {{")).map_or(source, |at| &source[at..]);
                let _ = write!(page, "\n## {doc}\n\n| key | default | meaning |\n|---|---|---|\n");
            }
        } else if let Some(key) = field(line).filter(|_| in_section && !doc.is_empty()) {
            let _ = match default_of(reader, key) {
                Some(default) => writeln!(page, "| `{key}` | {default} | {doc} |"),
                // Its keys have a table of their own.
                None if flattened => writeln!(page, "| … | | {doc} |"),
                None => writeln!(page, "| `{key}` |  | {doc} |"),
            };
            flattened = false;
        } else if !line.starts_with('#') && !doc.is_empty() {
            in_section &= line.ends_with('{') && !line.contains('('); // a variant of an enum, or the end of the section
        } else if line.starts_with("#[") {
            docs = doc.to_string(); // an attribute between the comment and the item
            flattened = line == "#[serde(flatten)]";
        }
    }
    page
}

/// The name in `pub name: Type,` or `name: Type,`.
fn field(line: &str) -> Option<&str> {
    let (name, _) = line.strip_suffix(',')?.split_once(": ")?;
    let name = name.strip_prefix("pub ").unwrap_or(name);
    name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_').then_some(name)
}

/// The default in `get_or("key", default)`, `get_where("key", default, …)` or `word("key", &[("default", …), …])`, as
/// the page shows it.
fn default_of(source: &str, key: &str) -> Option<String> {
    let quoted = format!("\"{key}\",");
    let (call, after) = source.match_indices(&quoted).find_map(|(at, _)| {
        let before = source[..at].trim_end().strip_suffix('(')?;
        let call = ["get_or", "get_where", "word"].into_iter().find(|call| before.ends_with(call))?;
        Some((call, at + quoted.len()))
    })?;
    let argument = first_argument(&source[after..]).trim();
    if call == "word" {
        let words: Vec<String> = argument.split('"').skip(1).step_by(2).map(|word| format!("`\"{word}\"`")).collect();
        return Some(words.join(", or "));
    }
    let spelled = SPELLED.iter().find(|(rust, _)| *rust == argument);
    Some(format!("`{}`", spelled.map_or(argument, |(_, toml)| toml)))
}

/// Up to the comma or bracket that ends it.
fn first_argument(text: &str) -> &str {
    let mut depth = 0;
    let end = text.find(|c| {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            _ => {}
        }
        depth < 0 || (depth == 0 && c == ',')
    });
    &text[..end.unwrap_or(text.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_defaults_and_meanings() {
        let source = "/// `[run]`\n#[derive(Debug)]\npub struct Run {\n    /// A name\n    /// for it.\n    pub name: String,\n}\n\
            /// Else.\npub struct Else {\n    /// No key.\n    pub other: u64,\n}\n\
            fn f() { s.get_where(\n    \"name\",\n    g(1, 2),\n    x)\n s.word(\"mode\", &[(\"a\", A), (\"b\", B)]) }\n";
        let page = page(&[source]);
        assert!(
            page.contains(
                "## `[run]`\n\n| key | default | meaning |\n|---|---|---|\n| `name` | `g(1, 2)` | A name for it. |\n"
            ),
            "{page}"
        );
        assert!(!page.contains("`other`"), "{page}");
        assert_eq!(default_of(source, "mode").as_deref(), Some("`\"a\"`, or `\"b\"`"));
    }
}
