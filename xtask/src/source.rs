//! Enough of Rust's lexical structure for the tidy checks: code without comments and literals, and the extent of
//! functions.

/// The source with every character of comments and of string and character literals replaced by a space. Lines stay
/// lines.
pub fn code_only(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at).unwrap_or(at);
        if end == at {
            code.push(chars[at]);
            at += 1;
        } else {
            code.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    code
}

/// The end of the comment or literal that begins at `at`.
fn literal_end(chars: &[char], at: usize) -> Option<usize> {
    let next = chars.get(at + 1).copied();
    let in_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match chars[at] {
        '/' if next == Some('/') => Some(find(chars, at, |rest| rest[0] == '\n')),
        '/' if next == Some('*') => Some(block_comment_end(chars, at)),
        '"' => Some(string_end(chars, at + 1)),
        'r' | 'b' | 'c' if !in_word => raw_string_end(chars, at),
        '\'' => char_end(chars, at),
        _ => None,
    }
}

fn block_comment_end(chars: &[char], begin: usize) -> usize {
    let (mut depth, mut at) = (0, begin);
    while at < chars.len() {
        match chars[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// `at`: the first character after the opening quote.
fn string_end(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// `r"…"`, `br#"…"#` and their like; nothing for identifiers, and for `b"…"`, whose quote is met next.
fn raw_string_end(chars: &[char], begin: usize) -> Option<usize> {
    let r = begin + usize::from(matches!(chars[begin], 'b' | 'c'));
    let hashes = chars.get(r + 1..)?.iter().take_while(|c| **c == '#').count();
    let quote = r + 1 + hashes;
    if chars.get(r) != Some(&'r') || chars.get(quote) != Some(&'"') {
        return None;
    }
    let closes = |rest: &[char]| rest[0] == '"' && rest[1..].iter().take_while(|c| **c == '#').count() >= hashes;
    Some((find(chars, quote + 1, closes) + 1 + hashes).min(chars.len()))
}

/// Nothing for lifetimes and labels.
fn char_end(chars: &[char], begin: usize) -> Option<usize> {
    match chars.get(begin + 1..)? {
        ['\\', _, rest @ ..] => Some((begin + 4 + rest.iter().take_while(|c| **c != '\'').count()).min(chars.len())),
        [_, '\'', ..] => Some(begin + 3),
        _ => None,
    }
}

fn find(chars: &[char], from: usize, ends: impl Fn(&[char]) -> bool) -> usize {
    (from..chars.len()).find(|at| ends(&chars[*at..])).unwrap_or(chars.len())
}

/// A function with a body, or a macro by example.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// As written.
    pub name: String,
    /// Of the line with `fn`, from 1.
    pub line: usize,
    /// From the line with `fn` to the line with the closing brace.
    pub lines: usize,
}

/// All functions of a source that went through [`code_only`], in their order.
pub fn functions(code: &str) -> Vec<Function> {
    words(code).filter(|(_, word)| *word == "fn").filter_map(|(at, _)| function(code, at)).collect()
}

fn function(code: &str, at: usize) -> Option<Function> {
    let rest = &code[at + "fn".len()..];
    let name: String = rest.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let mut depth = 0;
    let mut brackets = 0; // the `;` of an array type ends no declaration
    for (offset, c) in rest.char_indices() {
        match c {
            '[' | '(' => brackets += 1,
            ']' | ')' => brackets -= 1,
            ';' if depth == 0 && brackets == 0 => return None, // declared, without a body
            '{' => depth += 1,
            '}' if depth == 1 => {
                let lines = 1 + rest[..offset].matches('\n').count();
                return (!name.is_empty()).then(|| Function { name, line: line_of(code, at), lines });
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Identifiers and keywords with their offsets.
pub fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.split(move |c| !is_word(c)).filter(|word| !word.is_empty()).map(|word| {
        let offset = word.as_ptr() as usize - code.as_ptr() as usize;
        (offset, word)
    })
}

/// The line of an offset, from 1.
pub fn line_of(text: &str, offset: usize) -> usize {
    1 + text[..offset].matches('\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_become_spaces() {
        let cases = [
            ("a // b\nc", "a     \nc"),
            ("a /* x /* y */ z */ b", "a                   b"),
            (r#"f("a\"{", b)"#, "f(      , b)"),
            (r##"r#"a"b"# + br"x" + b"y""##, "         +       + b   "),
            (r"'{' '\'' '\u{7d}' 'a: loop", "                  'a: loop"),
            ("let rust = b'}'; &'static str", "let rust = b   ; &'static str"),
        ];
        for (source, expected) in cases {
            assert_eq!(code_only(source), expected, "{source}");
        }
    }

    #[test]
    fn functions_end_at_their_brace() {
        let source = "trait T { fn a(); }\nfn b(x: [u8; 2]) -> u8 {\n    if true { 1 } else { fn c() {} 2 }\n}\ntype F = fn(u8);\n";
        let found: Vec<_> = functions(&code_only(source)).into_iter().map(|f| (f.name, f.line, f.lines)).collect();
        assert_eq!(found, [("b".to_string(), 2, 3), ("c".to_string(), 3, 1)]);
    }
}
