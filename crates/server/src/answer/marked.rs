//! Calls whose arguments are marked one by one: Qwen3-Coder's `<function=…><parameter=…>…`, GLM's `name` with
//! `<arg_key>…</arg_key><arg_value>…</arg_value>`.

/// Name and arguments of a call, as texts; `None` if this is none.
pub(super) fn read(text: &str) -> Option<(String, Vec<(String, String)>)> {
    let text = text.trim();
    match text.strip_prefix("<function=") {
        Some(rest) => qwen(rest),
        None => glm(text),
    }
}

fn qwen(text: &str) -> Option<(String, Vec<(String, String)>)> {
    let (name, mut rest) = text.split_once('>')?;
    let mut arguments = Vec::new();
    while let Some((_, after)) = rest.split_once("<parameter=") {
        let (key, after) = after.split_once('>')?;
        let (value, after) = after.split_once("</parameter>")?;
        // One line break on each side is the form's, not the value's.
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        arguments.push((key.trim().to_owned(), value.to_owned()));
        rest = after;
    }
    Some((name.trim().to_owned(), arguments))
}

fn glm(text: &str) -> Option<(String, Vec<(String, String)>)> {
    let end = text.find(['\n', '<']).unwrap_or(text.len());
    let (name, mut rest) = text.split_at(end);
    let mut arguments = Vec::new();
    while let Some((_, after)) = rest.split_once("<arg_key>") {
        let (key, after) = after.split_once("</arg_key>")?;
        let (_, after) = after.split_once("<arg_value>")?;
        let (value, after) = after.split_once("</arg_value>")?;
        arguments.push((key.trim().to_owned(), value.to_owned()));
        rest = after;
    }
    Some((name.trim().to_owned(), arguments))
}
