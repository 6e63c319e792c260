//! What templates expect of Python: how values print, `json.dumps`, `strftime`.

use std::fmt::Write;

use minijinja::value::{Value as Jinja, ValueKind};
use minijinja::{Error, Output, State};
use serde_json::Value;

use super::bounds::charge;
use super::charges;

/// Prints a value as Python's `str` does: `True`, `None`, `['a']`. The pairs of
/// `dictsort` print as lists, which they are here.
pub(super) fn write(output: &mut Output, state: &mut State, value: &Jinja) -> Result<(), Error> {
    match value.as_str() {
        // Four times: 64 MiB are the most that can be put out.
        Some(text) => charge(4 * text.len() as u64)?,
        None => charges::deep(value)?,
    }
    match value.kind() {
        ValueKind::Bool | ValueKind::None | ValueKind::Number | ValueKind::Seq | ValueKind::Map => {
            let mut text = String::new();
            repr(value, &mut text);
            output.write_str(&text).map_err(Error::from)
        }
        _ => minijinja::escape_formatter(output, state, value),
    }
}

fn repr(value: &Jinja, out: &mut String) {
    match value.kind() {
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::None | ValueKind::Undefined => out.push_str("None"),
        ValueKind::String => repr_string(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq => {
            let tuple = value.is_tuple();
            out.push(if tuple { '(' } else { '[' });
            let mut count = 0;
            for item in value.try_iter().into_iter().flatten() {
                out.push_str(if count == 0 { "" } else { ", " });
                repr(&item, out);
                count += 1;
            }
            out.push_str(if tuple && count == 1 { "," } else { "" });
            out.push(if tuple { ')' } else { ']' });
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                repr(&key, out);
                out.push_str(": ");
                repr(&value.get_item(&key).unwrap_or_default(), out);
            }
            out.push('}');
        }
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&float(f64::try_from(value.clone()).unwrap_or(f64::NAN)));
        }
        _ => _ = write!(out, "{value}"),
    }
}

/// Single quotes, unless only single quotes are inside.
fn repr_string(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => _ = write!(out, "\\x{:02x}", c as u32),
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// The arguments of `json.dumps` that templates use.
#[derive(Default)]
pub(super) struct DumpOptions {
    pub(super) indent: Option<usize>,
    pub(super) sort_keys: bool,
    pub(super) ensure_ascii: bool,
    /// Between items, and between key and value.
    pub(super) separators: Option<[String; 2]>,
}

/// Python's `json.dumps`: `, ` and `: ` between things, no escaping beyond JSON's.
pub(super) fn json_dumps(value: &Value, options: &DumpOptions) -> String {
    let mut out = String::new();
    dump(value, options, 0, &mut out);
    out
}

fn dump(value: &Value, options: &DumpOptions, depth: usize, out: &mut String) {
    match value {
        Value::Array(items) if items.is_empty() => out.push_str("[]"),
        Value::Object(map) if map.is_empty() => out.push_str("{}"),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                separate(index == 0, options, depth + 1, out);
                dump(item, options, depth + 1, out);
            }
            new_line(options, depth, out);
            out.push(']');
        }
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            if options.sort_keys {
                entries.sort_by(|a, b| a.0.cmp(b.0));
            }
            out.push('{');
            for (index, (key, item)) in entries.into_iter().enumerate() {
                separate(index == 0, options, depth + 1, out);
                dump_string(key, options, out);
                out.push_str(options.separators.as_ref().map_or(": ", |pair| &pair[1]));
                dump(item, options, depth + 1, out);
            }
            new_line(options, depth, out);
            out.push('}');
        }
        Value::String(text) => dump_string(text, options, out),
        Value::Number(number) if number.is_f64() => out.push_str(&float(number.as_f64().unwrap_or(f64::NAN))),
        other => _ = write!(out, "{other}"),
    }
}

fn separate(first: bool, options: &DumpOptions, depth: usize, out: &mut String) {
    if !first {
        let default = if options.indent.is_some() { "," } else { ", " };
        out.push_str(options.separators.as_ref().map_or(default, |pair| &pair[0]));
    }
    new_line(options, depth, out);
}

fn new_line(options: &DumpOptions, depth: usize, out: &mut String) {
    if let Some(indent) = options.indent {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', indent * depth));
    }
}

fn dump_string(text: &str, options: &DumpOptions, out: &mut String) {
    let quoted = Value::String(text.to_owned()).to_string();
    if !options.ensure_ascii {
        // Python leaves DEL as it is, and so does serde_json.
        return out.push_str(&quoted);
    }
    for c in quoted.chars() {
        match c.is_ascii() {
            true => out.push(c),
            false => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| _ = write!(out, "\\u{unit:04x}")),
        }
    }
}

/// Python's `repr` of a float: the shortest digits, an exponent below 1e-4 and from 1e16 on.
fn float(x: f64) -> String {
    if x != 0.0 && (x.abs() < 1e-4 || x.abs() >= 1e16) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').expect("written with an exponent");
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |positive| ('-', positive));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{x:?}")
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// `strftime` in the C locale, for the directives of dates and times; `None` for others.
pub fn strftime(unix_s: i64, format: &str) -> Option<String> {
    let (days, second) = (unix_s.div_euclid(86_400), unix_s.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let weekday = (days + 4).rem_euclid(7) as usize;
    let hour = second / 3600;
    let hour_12 = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let written = match chars.next()? {
            'Y' => write!(out, "{year}"),
            'y' => write!(out, "{:02}", year.rem_euclid(100)),
            'm' => write!(out, "{month:02}"),
            'd' => write!(out, "{day:02}"),
            'e' => write!(out, "{day:2}"),
            'H' => write!(out, "{hour:02}"),
            'I' => write!(out, "{hour_12:02}"),
            'M' => write!(out, "{:02}", second / 60 % 60),
            'S' => write!(out, "{:02}", second % 60),
            'p' => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            'A' => write!(out, "{}", DAYS[weekday]),
            'a' => write!(out, "{}", &DAYS[weekday][..3]),
            'B' => write!(out, "{}", MONTHS[month as usize - 1]),
            'b' => write!(out, "{}", &MONTHS[month as usize - 1][..3]),
            'F' => write!(out, "{year}-{month:02}-{day:02}"),
            '%' => write!(out, "%"),
            _ => return None,
        };
        written.expect("strings take everything");
    }
    Some(out)
}

/// Year, month and day of a number of days since 1970-01-01, in the Gregorian calendar (Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms", `civil_from_days`).
pub fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn dates_as_python_writes_them() {
        // python3 -c "import datetime as d; print(d.datetime.fromtimestamp(1709210096, d.timezone.utc).strftime(...))"
        let text = strftime(1_709_210_096, "%d %b %Y, %A %B %e, %I:%M:%S %p %y %%").unwrap();
        assert_eq!(text, "29 Feb 2024, Thursday February 29, 12:34:56 PM 24 %");
        assert_eq!(strftime(-1, "%F %H").unwrap(), "1969-12-31 23");
        assert_eq!(strftime(0, "%Q"), None);
    }

    #[test]
    fn json_as_python_writes_it() {
        let value = json!({"b": [1, 2.0, 1e20, 1e-5, "é<\n"], "a": {}, "n": null});
        let plain = json_dumps(&value, &DumpOptions::default());
        assert_eq!(plain, r#"{"b": [1, 2.0, 1e+20, 1e-05, "é<\n"], "a": {}, "n": null}"#);
        let ascii = DumpOptions { ensure_ascii: true, sort_keys: true, ..DumpOptions::default() };
        assert_eq!(json_dumps(&json!({"z": "é𝄞", "a": 1}), &ascii), r#"{"a": 1, "z": "\u00e9\ud834\udd1e"}"#);
        let indented = DumpOptions { indent: Some(2), ..DumpOptions::default() };
        assert_eq!(json_dumps(&json!({"a": [1, 2]}), &indented), "{\n  \"a\": [\n    1,\n    2\n  ]\n}");
    }
}
