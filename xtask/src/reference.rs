//! `cargo xtask docs`: writes [`PAGE`], the list of a recipe's keys, from the doc comments and defaults of [`SOURCES`].
//! `tidy` fails when the page is not what this would write.
//!
//! Keys are the fields of the types whose doc comment begins with `` `[section]` ``. A default is the second argument
//! of the call that reads the key; one that differs between kinds of stages is `of.KEY` there, and stands in a value of
//! the type `Defaults` below a doc comment that says of which kind: ``In `sft` ``.

use std::fmt::Write;

/// What is read.
pub const SOURCES: [&str; 6] = [
    "crates/runs/src/recipe.rs",
    "crates/runs/src/recipe/optimizer.rs",
    "crates/runs/src/recipe/shared.rs",
    "crates/runs/src/recipe/stages.rs",
    "crates/runs/src/recipe/lora.rs",
    "crates/runs/src/recipe/pictures.rs",
];
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

The keys of a Hugging Face `config.json`. `preset = \"NAME\"` or `config = \"FILE\"` gives all of them, the latter also as
`\"hf://ORG/NAME\"`, and keys written beside it replace single ones. TOML has no null; `\"none\"` stands for it. Vocabulary size and the ids of the special
tokens follow from a tokenizer that is trained in the run.
";

/// Defaults that read differently in TOML.
const SPELLED: [(&str, &str); 17] = [
    ("\"grid-24\".into()", "\"grid-24\""),
    ("String::new()", "none"),
    ("\"countdown\".into()", "\"countdown\""),
    ("\"traces\".into()", "\"traces\""),
    ("PRETRAIN.into()", "\"pretrain\""),
    ("vec![PRETRAIN.into()]", "[\"pretrain\"]"),
    ("of.prompts", "by kind"),
    ("samples", "by kind"),
    ("answering.samples", "samples"),
    ("\"text\".into()", "\"text\""),
    ("\"run\".into()", "\"run\""),
    ("vec![CARGO_SOURCES.to_string()]", "[\"cargo-sources\"]"),
    ("ListOrWord::List(Vec::new())", "[]"),
    ("Vec::new()", "[]"),
    ("Targets::AllLinear", "\"all-linear\""),
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
            let _ = match default_of(source, reader, key) {
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
/// the page shows it; `reader` is the part of the source that reads the section.
fn default_of(source: &str, reader: &str, key: &str) -> Option<String> {
    // Read without one in the section's own block, whatever others of that name have.
    let own = &reader[..reader.find("\n}\n").unwrap_or(reader.len())];
    if own.contains(&format!(".get(\"{key}\")")) {
        return None;
    }
    let quoted = format!("\"{key}\",");
    let (call, after) = reader.match_indices(&quoted).find_map(|(at, _)| {
        let before = reader[..at].trim_end().strip_suffix('(')?;
        let call = ["get_or", "get_where", "word"].into_iter().find(|call| before.ends_with(call))?;
        Some((call, at + quoted.len()))
    })?;
    let argument = first_argument(&reader[after..]).trim();
    if call == "word" {
        let words: Vec<String> = argument.split('"').skip(1).step_by(2).map(|word| format!("`\"{word}\"`")).collect();
        return Some(words.join(", or "));
    }
    if let Some(kinds) = argument.strip_prefix("of.").map(|key| by_kind(source, key)).filter(|kinds| !kinds.is_empty())
    {
        return Some(kinds);
    }
    let spelled = SPELLED.iter().find(|(rust, _)| *rust == argument);
    Some(format!("`{}`", spelled.map_or(argument, |(_, toml)| toml)))
}

/// The values of `key` in all `Defaults` of a source, each with the kinds of stages that have it.
fn by_kind(source: &str, key: &str) -> String {
    let mut kinds: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut kind = "";
    for line in source.lines().map(str::trim) {
        kind = line.strip_prefix("/// In ").unwrap_or(if line.starts_with('}') { "" } else { kind });
        let value = line.strip_prefix(key).and_then(|rest| rest.strip_prefix(": ")?.strip_suffix(','));
        let Some(value) = value.filter(|_| !kind.is_empty()) else { continue };
        match kinds.iter_mut().find(|(known, _)| *known == value) {
            Some((_, kinds)) => kinds.push(kind),
            None => kinds.push((value, vec![kind])),
        }
    }
    let cells = kinds.into_iter().map(|(value, kinds)| format!("`{value}` in {}", kinds.join(", ")));
    cells.collect::<Vec<_>>().join("; ")
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
    fn defaults_that_differ_are_listed_by_kind() {
        let source = "const A: Defaults =\n /// In `sft`\nDefaults {\n rate: 0.1,\n lambda: 0.3,\n};\n/// In `rl`\nDefaults {\n\
            rate: (n / 5).max(1),\n lambda: 0.3,\n}\nfn f() { s.get_or(\"rate\", of.rate) s.get_or(\"lambda\", of.lambda) }";
        assert_eq!(default_of(source, source, "rate").as_deref(), Some("`0.1` in `sft`; `(n / 5).max(1)` in `rl`"));
        assert_eq!(default_of(source, source, "lambda").as_deref(), Some("`0.3` in `sft`, `rl`"));
    }

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
        assert_eq!(default_of(source, source, "mode").as_deref(), Some("`\"a\"`, or `\"b\"`"));
    }
}
