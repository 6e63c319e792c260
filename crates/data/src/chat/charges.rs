//! What the operations of a template cost, before they are done: about the bytes of what they make and look through.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::bounds::charge;

/// Levels of a value that may be walked down.
const DEPTH_MAX: usize = 500;
/// Of a value in a list.
const ITEM: u64 = 32;

/// Charges for an operator: its operands in the order of the stack.
pub(super) fn operator(name: &str, operands: &[Value]) -> Result<(), Error> {
    match (name, operands) {
        ("add", [a, b]) => {
            // A product's other operand is a number; its size is minijinja's to bound, its bytes ours.
            let (size, times) = match (a.as_usize(), b.as_usize()) {
                (None, Some(times)) => (shallow(a), times),
                (Some(times), None) => (shallow(b), times),
                _ => (shallow(a) + shallow(b), 1),
            };
            charge(size.saturating_mul(times.max(1) as u64))
        }
        ("slice", [value, ..]) => charge(shallow(value)),
        ("join", [a, b]) => text(a).and_then(|()| text(b)),
        ("compare", [a, b]) => compare(a, b),
        ("contain", [a, b]) => contain(a, b).and_then(|()| contain(b, a)),
        // The key is hashed, if it is a map's; a string's characters are counted.
        ("item", [value, key]) => {
            charge(value.as_str().map_or(0, str::len) as u64 / 8)?;
            deep(key)
        }
        ("map", pairs) => pairs.iter().step_by(2).try_for_each(deep),
        _ => operands.iter().try_for_each(deep),
    }
}

/// Charges for a test: its value and arguments.
pub(super) fn test(name: &str, operands: &[Value]) -> Result<(), Error> {
    match (name, operands) {
        ("in", [a, b]) => contain(a, b).and_then(|()| contain(b, a)),
        (_, [a, b]) => compare(a, b),
        (_, [a, ..]) => charge(a.as_str().map_or(0, str::len) as u64),
        _ => Ok(()),
    }
}

/// Charges for a filter or a method: its value and arguments.
pub(super) fn call(name: &str, operands: &[Value]) -> Result<(), Error> {
    let Some((value, arguments)) = operands.split_first() else { return Ok(()) };
    match name {
        // These look at one entry, or at the length.
        "length" | "count" if value.kind() != ValueKind::String => charge(ITEM),
        "first" | "last" | "default" | "d" | "attr" | "get" | "abs" | "round" | "safe" => charge(ITEM),
        "items" | "keys" | "values" | "list" | "reverse" | "lower" | "upper" | "trim" | "strip" | "lstrip"
        | "rstrip" | "title" | "capitalize" | "startswith" | "endswith" | "selectattr" | "rejectattr" | "select"
        | "reject" | "map" => charge(4 * shallow(value)),
        "replace" => replace(value, arguments),
        "split" | "lines" | "splitlines" => charge(shallow(value).saturating_mul(1 + pieces(value, arguments))),
        "join" => join(value, arguments),
        "indent" => indent(value, arguments),
        "slice" | "batch" => charge(shallow(value).saturating_add(ITEM * largest(arguments))),
        "tojson" => to_json(value, arguments),
        "format" => format(value, arguments),
        // Additions: each goes through the sum so far.
        "sum" => charge(shallow(value)).and_then(|()| {
            let count = value.len().unwrap_or(1) as u64;
            charge(count.saturating_mul(size_of(value)?))
        }),
        // The rest, sorting among them, looks through everything some 16 times at most.
        _ => {
            charge(16u64.saturating_mul(size_of(value)?))?;
            arguments.iter().try_for_each(deep)
        }
    }
}

/// Bytes of a string, items of a list; what they hold is shared.
fn shallow(value: &Value) -> u64 {
    match value.as_str() {
        Some(text) => text.len() as u64,
        None => ITEM * (value.len().unwrap_or(0) as u64 + 1),
    }
}

/// Charges for all of a value, as often as it occurs in itself.
pub(super) fn deep(value: &Value) -> Result<(), Error> {
    size_of(value).map(|_| ())
}

/// The bytes of all of a value, which are charged on the way.
fn size_of(value: &Value) -> Result<u64, Error> {
    fn walk(value: &Value, depth: usize, total: &mut u64) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(Error::from(ErrorKind::OutOfFuel));
        }
        let own = ITEM + value.as_str().map_or(0, str::len) as u64;
        *total += own;
        charge(own)?;
        if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
            return Ok(());
        }
        for item in value.try_iter()? {
            walk(&item, depth + 1, total)?;
            if value.kind() == ValueKind::Map {
                walk(&value.get_item(&item)?, depth + 1, total)?;
            }
        }
        Ok(())
    }
    let mut total = 0;
    walk(value, 0, &mut total)?;
    Ok(total)
}

/// Charges for a value's text.
fn text(value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => charge(text.len() as u64),
        None => charge(8u64.saturating_mul(size_of(value)?)),
    }
}

fn compare(a: &Value, b: &Value) -> Result<(), Error> {
    match (a.as_str(), b.as_str()) {
        (Some(a), Some(b)) => charge(a.len().min(b.len()) as u64 / 8),
        (None, None) => deep(a).and_then(|()| deep(b)),
        _ => Ok(()),
    }
}

/// Charges for looking for `needle`.
fn contain(container: &Value, needle: &Value) -> Result<(), Error> {
    match container.kind() {
        ValueKind::String => charge(container.as_str().map_or(0, str::len) as u64).and_then(|()| text(needle)),
        ValueKind::Seq | ValueKind::Iterable => {
            charge(shallow(container))?;
            container.try_iter()?.try_for_each(|item| compare(&item, needle))
        }
        _ => deep(needle),
    }
}

fn replace(value: &Value, arguments: &[Value]) -> Result<(), Error> {
    let text = value.as_str().unwrap_or_default();
    charge(2 * text.len() as u64)?;
    let [from, to, ..] = arguments else { return Ok(()) };
    let (from, to) = (from.as_str().unwrap_or_default(), to.as_str().unwrap_or_default());
    let count = if from.is_empty() { text.len() + 1 } else { text.matches(from).count() };
    charge((count as u64).saturating_mul(to.len() as u64))
}

/// How many pieces a string is split into, at most, in items a byte.
fn pieces(value: &Value, arguments: &[Value]) -> u64 {
    let text = value.as_str().unwrap_or_default();
    let separator = arguments.first().and_then(Value::as_str).filter(|separator| !separator.is_empty());
    let count = separator.map_or(text.len(), |separator| text.matches(separator).count());
    (count as u64 * ITEM).div_ceil(text.len().max(1) as u64)
}

/// The filter's list comes first and its string second, the method's the other way round.
fn join(value: &Value, arguments: &[Value]) -> Result<(), Error> {
    let (list, joiner) = match value.kind() {
        ValueKind::String if arguments.first().is_some_and(|argument| argument.kind() != ValueKind::String) => {
            (&arguments[0], Some(value))
        }
        _ => (value, arguments.first()),
    };
    let joiner = joiner.and_then(Value::as_str).map_or(0, str::len) as u64;
    charge(shallow(list))?;
    if let Some(characters) = list.as_str() {
        return charge((characters.len() as u64).saturating_mul(joiner + 1));
    }
    list.try_iter()?.try_for_each(|item| charge(joiner).and_then(|()| text(&item)))
}

/// The greatest number among arguments, keywords among them.
fn largest(arguments: &[Value]) -> u64 {
    let number = |value: &Value| value.as_usize().map_or(0, |number| number as u64);
    let of = |value: &Value| match value.kind() {
        ValueKind::Map => {
            let keys = value.try_iter().into_iter().flatten();
            keys.filter_map(|key| value.get_item(&key).ok()).map(|value| number(&value)).max().unwrap_or(0)
        }
        _ => number(value),
    };
    arguments.iter().map(of).max().unwrap_or(0)
}

fn indent(value: &Value, arguments: &[Value]) -> Result<(), Error> {
    let text = value.as_str().unwrap_or_default();
    let lines = text.lines().count() as u64 + 1;
    // A width may also be text of its own.
    let width = arguments.iter().filter_map(Value::as_str).map(str::len).max().unwrap_or(0) as u64;
    charge(2 * text.len() as u64)?;
    charge(lines.saturating_mul(largest(arguments).max(width).max(4)))
}

/// Each entry may have a line of its own, indented by its depth.
fn to_json(value: &Value, arguments: &[Value]) -> Result<(), Error> {
    let size = size_of(value)?;
    charge(size.saturating_mul(4))?;
    charge((size / ITEM).saturating_mul(largest(arguments)).saturating_mul(2))
}

/// Widths and precisions stand in the text, or come with the arguments.
fn format(value: &Value, arguments: &[Value]) -> Result<(), Error> {
    let text = value.as_str().unwrap_or_default();
    charge(2 * text.len() as u64)?;
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    for digits in numbers {
        charge(digits.parse::<u64>().unwrap_or(u64::MAX))?;
    }
    if text.contains('*') || text.contains("{}") && text.contains(':') {
        charge(largest(arguments))?;
    }
    // A text can name an argument more than once.
    let places = text.matches(['%', '{']).count().max(1) as u64;
    for argument in arguments {
        charge(places.saturating_mul(size_of(argument)?))?;
    }
    Ok(())
}
