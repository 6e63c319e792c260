//! Pages in pieces of all sizes.

use super::*;

/// What a text looks like when it comes in pieces of so many characters.
fn shown(text: &str, size: usize, width: usize) -> String {
    let mut markdown = Markdown::new(width);
    let chars: Vec<char> = text.chars().collect();
    let pieces = chars.chunks(size).map(|piece| markdown.push(&piece.iter().collect::<String>()));
    let shown: String = pieces.collect();
    shown + &markdown.finish()
}

/// Without the codes.
fn plain(shown: &str) -> String {
    let mut text = String::new();
    let mut rest = shown;
    while let Some((before, after)) = rest.split_once('\x1b') {
        text.push_str(before);
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    text + rest
}

/// The same for every size of the pieces, codes apart.
fn same(text: &str, width: usize) -> String {
    let whole = plain(&shown(text, usize::MAX, width));
    for size in 1..text.chars().count().min(40) {
        assert_eq!(plain(&shown(text, size, width)), whole, "in pieces of {size}");
    }
    whole
}

const PAGE: &str = "# A title\n\nSome **bold words** and *thin* ones, `code a` and my_own_name, 2 * 3.\nA second line.\n\n\
    - one\n- two with [a link](https://a.example/x) in it\n  1. inner\n  2. second\n\n> quoted text\n> goes on\n\n\
    ```rust\nfn main() {\n\n    let a = 1;\n}\n```\n\n| a | long head |\n|---|---|\n| 1 | `x` |\n| 22 | y |\n\n---\n\nThe end.";

#[test]
fn a_page_is_shown_alike_however_it_is_cut() {
    assert_eq!(
        same(PAGE, 60),
        "A title\n\nSome bold words and thin ones, code a and my_own_name, 2 *\n3.\nA second line.\n\n\
         • one\n• two with a link (https://a.example/x) in it\n  1. inner\n  2. second\n\n│ quoted text\n│ goes on\n\n\
         ── rust\n▏ fn main() {\n▏ \n▏     let a = 1;\n▏ }\n\na  │ long head\n───┼──────────\n1  │ x\n22 │ y\n\n\
         ────────────────────────────────────────\n\nThe end.\n"
    );
}

#[test]
fn paints_are_those_of_the_text() {
    let shown = shown("**b** *i* `c` ~~s~~ [t](u)", 1, 80);
    let expected = "\x1b[0m\x1b[1mb\x1b[0m \x1b[0m\x1b[3mi\x1b[0m \x1b[0m\x1b[36mc\x1b[0m \x1b[0m\x1b[9ms\x1b[0m \
                    \x1b[0m\x1b[4mt\x1b[0m\x1b[2m (u)\x1b[0m\n";
    assert_eq!(shown.replace("\x1b[0m\x1b[0m", "\x1b[0m"), expected);
}

#[test]
fn words_are_shown_as_soon_as_they_are_sure() {
    let mut markdown = Markdown::new(80);
    for (piece, added) in [
        ("A wo", "A"),
        ("rd ", " word"),
        ("and **bo", " and"),
        ("ld", ""),
        ("er words** x ", " \x1b[0m\x1b[1mbolder words\x1b[0m x"),
        ("\n\n``", ""),
        ("`\na = 1\nb", "\n\n\x1b[0m\x1b[2m▏ \x1b[0m\x1b[36ma = 1\x1b[0m"),
        (" = 2\n", "\n\x1b[0m\x1b[2m▏ \x1b[0m\x1b[36mb = 2\x1b[0m"),
    ] {
        assert_eq!(markdown.push(piece), added, "{piece:?}");
    }
    assert_eq!(markdown.finish(), "\n");
}

#[test]
fn lines_keep_to_the_width_and_tables_too() {
    let words = "word ".repeat(60);
    let quoted = format!("{words}\n\n- {words}\n\n> {words}\n\n| {words} | b |\n|---|---|\n| c | {words} |\n");
    for width in [20, 33, 80] {
        let text = same(&quoted, width);
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= width, "{widest} > {width}:\n{text}");
        assert_eq!(text.matches("word").count(), 5 * 60);
    }
    assert_eq!(same("日本語 日本語 日本語", 20), "日本語 日本語\n日本語\n", "wide characters take two columns");
}

#[test]
fn what_becomes_a_heading_afterwards_is_shown_once_more() {
    let text = plain(&shown("Title of it\n===\n\ntext", 1, 80));
    assert!(text.ends_with("Title of it\n\ntext\n"), "{text:?}");
}

/// Nothing is lost and nothing panics, whatever it is made of.
#[test]
fn random_texts_in_random_pieces() {
    let parts = [
        "a",
        "word ",
        "**",
        "*",
        "_",
        "`",
        "```",
        "\n",
        "\n\n",
        "- ",
        "1. ",
        "> ",
        "#",
        " ",
        "|",
        "---",
        "[",
        "](",
        ")",
        "é",
        "日",
        "\t",
        "    ",
        "<b>",
        "&amp;",
        "===",
        "~~",
        "\\",
        "!",
        "| a | b |\n|---|---|\n",
    ];
    let mut state = 7u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for _ in 0..2000 {
        let text: String = (0..below(24)).map(|_| parts[below(parts.len())]).collect();
        let whole = plain(&shown(&text, usize::MAX, 40));
        let pieces = plain(&shown(&text, 1 + below(4), 40));
        let words = |text: &str| text.matches("word").count();
        assert!(words(&pieces) >= words(&whole), "{text:?}: {pieces:?}, {whole:?}");
        assert!(pieces.split_whitespace().count() >= whole.split_whitespace().count() / 2, "{text:?}");
    }
}
