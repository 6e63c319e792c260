//! What holds a model's calls to their tools' schemas while it writes: a grammar of the whole answer, in llguidance's
//! dialect of Lark.

use serde_json::{Value, json};

use super::calls::{CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, SEPARATOR, ToolFormat};
use crate::wire::{Tool, ToolChoice};

/// What else an answer is held to.
pub struct Held<'a> {
    pub choice: &'a ToolChoice,
    /// Whether there may be several calls.
    pub parallel: bool,
    /// The schema of an answer that calls nothing; `None`: any text.
    pub format: Option<&'a Value>,
    /// The ids of markers that are special tokens of the vocabulary.
    pub token: &'a dyn Fn(&str) -> Option<u32>,
}

/// A grammar of answers that may call `tools`; `None` where the form has none and nothing has to be held to.
pub fn grammar(format: ToolFormat, tools: &[Tool], held: &Held) -> Option<String> {
    let must = matches!(held.choice, ToolChoice::Required | ToolChoice::Named(_));
    let form = match format {
        ToolFormat::Marked if !must && held.format.is_none() => return None,
        // Arguments that are marked one by one have no grammar here, and the general form is read as well.
        ToolFormat::Marked => ToolFormat::Hermes,
        format => format,
    };
    let allowed = |tool: &&Tool| !matches!(held.choice, ToolChoice::Named(name) if *name != tool.name);
    let tools: Vec<&Tool> = tools.iter().filter(allowed).collect();
    let marker = |text: &str| match (held.token)(text) {
        Some(id) => format!("<[{id}]>"),
        None => json!(text).to_string(),
    };
    let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
    let form = FormRules::new(form, held.parallel, &marker);
    let mut rules = match (must, held.format) {
        (true, _) => format!("start: {}\n", form.required()),
        (false, Some(schema)) => {
            format!("start: {} | answer\nanswer: %json {}\n", form.required(), with_short_space(schema))
        }
        (false, None) => form.free(&names),
    };
    rules += &form.inner;
    rules += "SPACE: /[ \\n]{0,4}/\n";
    let calls: Vec<String> = (0..tools.len()).map(|at| format!("call{at}")).collect();
    rules += &format!("call: {}\n", calls.join(" | "));
    for (at, tool) in tools.iter().enumerate() {
        rules += &format!("call{at}: {}\n", call(form.format, &tool.name, &format!("arguments{at}"), &marker));
        rules += &format!("arguments{at}: %json {}\n", with_short_space(&tool.parameters));
    }
    Some(rules)
}

/// A form of calls, as rules and terminals of the grammar.
struct FormRules {
    format: ToolFormat,
    /// The marker that begins a call, as a terminal of the grammar; empty without one.
    opener: String,
    /// The rule `inner` of what stands behind the marker.
    inner: String,
    /// Whether each call has a marker of its own, and several may follow one another.
    repeats: bool,
}

impl FormRules {
    fn new(format: ToolFormat, parallel: bool, marker: &dyn Fn(&str) -> String) -> FormRules {
        let more = |item: &str| if parallel { format!("({item})*") } else { String::new() };
        let (opener, inner) = match format {
            ToolFormat::DeepSeek => {
                let [open, close, begin, end] = [CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END].map(marker);
                let more = more(&format!("SPACE {begin} call {end}"));
                (open, format!("SPACE {begin} call {end} {more} SPACE {close}"))
            }
            ToolFormat::Hermes | ToolFormat::Marked => {
                (marker("<tool_call>"), format!("SPACE call SPACE {}", marker("</tool_call>")))
            }
            ToolFormat::Mistral => (marker("[TOOL_CALLS]"), format!("SPACE \"[\" call {} \"]\"", more("\", \" call"))),
            ToolFormat::Json => (String::new(), "call".to_owned()),
        };
        let repeats = parallel && matches!(format, ToolFormat::Hermes | ToolFormat::Marked);
        FormRules { format, opener, inner: format!("inner: {inner}\n"), repeats }
    }

    /// Calls from the first character on.
    fn required(&self) -> String {
        let one = format!("SPACE {} inner", self.opener);
        if self.repeats { format!("{one} ({one})* SPACE") } else { format!("{one} SPACE") }
    }

    /// Text, and calls behind it. llguidance reads the longest terminal that there is, so a terminal of text that leads
    /// to a call has the call's marker at its end, and free text has it nowhere. A marker that is a token of the
    /// vocabulary is no text in any case. Calls in a fence, or as the beginning of the answer, which models write that
    /// were told another form, are such terminals up to the end of the name of a tool.
    fn free(&self, names: &[&str]) -> String {
        let after = if self.repeats { "start" } else { "SPACE" };
        let literal: String = serde_json::from_str(&self.opener).unwrap_or_default();
        let mut rules = String::new();
        let mut text = format!("TEXT: /(?s:.*)/ & ~/(?s:.*)```json{0}(?s:.*)/ & ~/{0}(?s:.*)/", named(names));
        let mut starts = vec!["TEXT".to_owned()];
        if !literal.is_empty() {
            text += &format!(" & ~/(?s:.*){}(?s:.*)/", escaped(&literal));
            rules += &format!("to_call[lazy]: /(?s:.*){}/\n", escaped(&literal));
            starts.push(format!("to_call inner {after}"));
        } else if !self.opener.is_empty() {
            starts.push(format!("TEXT {} inner {after}", self.opener));
        }
        for (at, name) in names.iter().enumerate() {
            let named = named(&[name]);
            rules += &format!("fenced{at}[lazy]: /(?s:.*)```json{named}/\nbare{at}[lazy]: /{named}/\n");
            starts.push(format!("fenced{at} ARGUMENTS arguments{at} CLOSE SPACE \"```\" {after}"));
            starts.push(format!("bare{at} ARGUMENTS arguments{at} CLOSE {after}"));
        }
        let rest = "ARGUMENTS: /\\s{0,16},\\s{0,16}\"(arguments|parameters)\":\\s{0,16}/\nCLOSE: /\\s{0,16}\\}/\n";
        format!("start: {}\n{text}\n{rules}{rest}", starts.join(" | "))
    }
}

/// A schema whose JSON has little white space: a model could go on with it for ever.
fn with_short_space(schema: &Value) -> Value {
    let mut schema = schema.clone();
    schema["x-guidance"] = json!({"whitespace_pattern": "[ \\n]{0,16}"});
    schema
}

/// The rule of one call.
fn call(form: ToolFormat, name: &str, arguments: &str, marker: &dyn Fn(&str) -> String) -> String {
    let literal = |text: String| json!(text).to_string();
    match form {
        ToolFormat::Hermes | ToolFormat::Marked | ToolFormat::Mistral => {
            format!("{} {arguments} \"}}\"", literal(format!("{{\"name\": \"{name}\", \"arguments\": ")))
        }
        ToolFormat::Json => {
            format!("{} {arguments} \"}}\"", literal(format!("{{\"name\": \"{name}\", \"parameters\": ")))
        }
        ToolFormat::DeepSeek => {
            let (separator, fenced) = (marker(SEPARATOR), literal(format!("{name}\n```json\n")));
            let (plain, end) = (literal(name.to_owned()), literal("\n```".to_owned()));
            format!("\"function\" {separator} {fenced} {arguments} {end} | {plain} {separator} {arguments}")
        }
    }
}

/// The beginning of a call without a marker, up to the end of its name.
fn named(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| escaped(name)).collect();
    format!("\\s*\\{{\\s*\"name\":\\s*\"({})\"", names.join("|"))
}

fn escaped(text: &str) -> String {
    let special = |c: char| "\\.+*?()|[]{}^$/".contains(c);
    text.chars().map(|c| if special(c) { format!("\\{c}") } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use llguidance::toktrie::ApproximateTokEnv;
    use llguidance::{Matcher, ParserFactory, api::TopLevelGrammar};

    use super::*;

    const FORMS: [ToolFormat; 4] = [ToolFormat::DeepSeek, ToolFormat::Hermes, ToolFormat::Json, ToolFormat::Mistral];

    fn tools() -> Vec<Tool> {
        let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
            "additionalProperties": false});
        let other = json!({"type": "object", "properties": {"on": {"type": "boolean"}}, "additionalProperties": false});
        let tool = |name: &str, parameters| Tool { name: name.to_owned(), parameters, definition: Value::Null };
        vec![tool("weather", schema), tool("switch-on", other)]
    }

    /// How many bytes of a text the grammar takes, and whether the text may end there.
    fn follows(format: ToolFormat, choice: &ToolChoice, schema: Option<&Value>, text: &str) -> (usize, bool) {
        let held = Held { choice, parallel: true, format: schema, token: &|_| None };
        let lark = grammar(format, &tools(), &held).unwrap();
        let mut factory = ParserFactory::new_simple(&ApproximateTokEnv::single_byte_env()).unwrap();
        factory.quiet();
        let parser = factory.create_parser(TopLevelGrammar::from_lark(lark.clone()));
        let mut matcher = Matcher::new(Ok(parser.unwrap_or_else(|error| panic!("{format:?}: {error}\n{lark}"))));
        let taken =
            text.bytes().take_while(|byte| matcher.try_consume_tokens(&[u32::from(*byte)]).unwrap() == 1).count();
        (taken, matcher.is_accepting().unwrap())
    }

    fn calls(format: ToolFormat) -> (String, String) {
        let call = match format {
            ToolFormat::DeepSeek => |name: &str, arguments: &str| {
                format!(
                    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>"
                )
            },
            ToolFormat::Json => {
                |name: &str, arguments: &str| format!("{{\"name\": \"{name}\", \"parameters\": {arguments}}}")
            }
            ToolFormat::Mistral => {
                |name: &str, arguments: &str| format!("{{\"name\": \"{name}\", \"arguments\": {arguments}}}")
            }
            _ => |name: &str, arguments: &str| {
                format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
            },
        };
        let around = |calls: &[String]| match format {
            ToolFormat::DeepSeek => format!("<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>", calls.join("\n")),
            ToolFormat::Mistral => format!("[TOOL_CALLS][{}]", calls.join(", ")),
            _ => calls.join("\n"),
        };
        let good = call("weather", "{\"city\": \"Paris\"}");
        (around(&[good]), around(&[call("weather", "{\"city\": 4}")]))
    }

    #[test]
    fn calls_follow_their_schemas_and_text_is_free() {
        for format in FORMS {
            let (good, wrong) = calls(format);
            for choice in [ToolChoice::Auto, ToolChoice::Required, ToolChoice::Named("weather".to_owned())] {
                assert_eq!(follows(format, &choice, None, &good), (good.len(), true), "{format:?} {choice:?}");
                let (taken, _) = follows(format, &choice, None, &wrong);
                assert!(wrong[..taken].ends_with("\"city\": "), "{format:?} {choice:?}: {}", &wrong[..taken]);
            }
            if format != ToolFormat::Json {
                let later = format!("Let me <look>.\n{good}");
                assert_eq!(follows(format, &ToolChoice::Auto, None, &later), (later.len(), true), "{format:?}");
                let (taken, _) = follows(format, &ToolChoice::Auto, None, &format!("Let me.\n{wrong}"));
                assert!(taken < wrong.len() + 8, "{format:?}");
            }
            let text = "Sure: {\"a\": 1}, <b> and ```json\n{\"name\": \"Ann\"}\n```.";
            assert_eq!(follows(format, &ToolChoice::Auto, None, text), (text.len(), true), "{format:?}");
            assert!(!follows(format, &ToolChoice::Required, None, "Sure").1);
        }
    }

    #[test]
    fn a_call_in_another_form_is_held_to_its_schema_once_it_names_a_tool() {
        for begin in ["Let me look.\n```json\n", ""] {
            let end = if begin.is_empty() { "" } else { "\n```" };
            let call = |name: &str, arguments: &str| {
                format!("{begin}{{\n  \"name\": \"{name}\",\n  \"arguments\": {arguments}\n}}{end}")
            };
            let good = call("weather", "{\n    \"city\": \"Paris\"\n  }");
            assert_eq!(follows(ToolFormat::Hermes, &ToolChoice::Auto, None, &good), (good.len(), true));
            let wrong = call("weather", "{\"town\": 1}");
            let (taken, _) = follows(ToolFormat::Hermes, &ToolChoice::Auto, None, &wrong);
            assert!(wrong[..taken].ends_with("{\""), "{}", &wrong[..taken]);
            let other = call("nothing", "{\"town\": 1}");
            assert_eq!(follows(ToolFormat::Hermes, &ToolChoice::Auto, None, &other), (other.len(), true));
        }
    }

    #[test]
    fn with_a_format_an_answer_is_a_call_or_keeps_to_it() {
        let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]});
        for format in [ToolFormat::DeepSeek, ToolFormat::Hermes, ToolFormat::Mistral] {
            let (good, _) = calls(format);
            for text in [good.as_str(), "{\"ok\": true}"] {
                assert_eq!(follows(format, &ToolChoice::Auto, Some(&schema), text), (text.len(), true), "{format:?}");
            }
            assert_eq!(follows(format, &ToolChoice::Auto, Some(&schema), "Sure").0, 0);
        }
    }
}
