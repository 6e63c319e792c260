//! Texts of models, cut into pieces of every size.

use serde_json::{Value, json};

use super::*;
use crate::wire::{Choice, Tool};

fn tool(name: &str, parameters: Value) -> Tool {
    Tool { name: name.to_owned(), parameters, definition: Value::Null }
}

/// `f` and `g` take anything, `weather` a city and perhaps a number of days.
fn tools() -> KnownTools {
    let any = json!({"type": "object"});
    let weather = json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"], "additionalProperties": false});
    KnownTools::new(vec![tool("f", any.clone()), tool("g", any), tool("weather", weather)])
}

/// The answer to a text that comes in pieces of `size` characters.
fn read(start: Start, held_to: Option<ToolFormat>, text: &str, size: usize) -> Choice {
    let mut answer = Answer::new(start, Some(tools()), held_to);
    let mut choice = Choice::default();
    let chars: Vec<char> = text.chars().collect();
    for piece in chars.chunks(size) {
        for delta in answer.push(&piece.iter().collect::<String>()) {
            choice.push(&delta);
        }
    }
    for delta in answer.finish() {
        choice.push(&delta);
    }
    choice
}

/// Reasoning, content, and name and arguments of each call.
type Outcome = (Option<String>, String, Vec<(String, String)>);

/// What comes out for every size of the pieces, which must be the same.
fn same(start: Start, held_to: Option<ToolFormat>, text: &str) -> Outcome {
    let outcomes: Vec<_> = (1..=text.chars().count().max(1))
        .map(|size| {
            let choice = read(start, held_to, text, size);
            let calls = choice.calls.into_iter().map(|(_, name, arguments)| (name, arguments)).collect();
            (choice.reasoning, choice.content, calls)
        })
        .collect();
    assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{text:?}: {outcomes:?}");
    outcomes.into_iter().next().unwrap()
}

fn calls(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, arguments)| (name.to_string(), arguments.to_string())).collect()
}

#[test]
fn thinking_is_told_apart() {
    let some = |text: &str| Some(text.to_owned());
    for (start, text, reasoning, content) in [
        (Start::Thinking, "\nso it is\n\n</think>\n\n42", some("so it is"), "42"),
        (Start::Thinking, "a < b </ c </thin </think>d", some("a < b </ c </thin"), "d"),
        (Start::Thinking, "cut off </thi", some("cut off </thi"), ""),
        (Start::Thinking, "</think>only an answer", None, "only an answer"),
        (Start::Open, "<think>\nhm\n</think>\n\nyes", some("hm"), "yes"),
        (Start::Open, " <thing> is no thinking", None, " <thing> is no thinking"),
        (Start::Open, "<thi", None, "<thi"),
        (Start::Plain, "<think>x</think>y", None, "<think>x</think>y"),
    ] {
        assert_eq!(same(start, None, text), (reasoning, content.to_owned(), vec![]), "{text:?}");
    }
}

/// Read alike whether the model is held to the form or not.
fn both(format: ToolFormat, text: &str) -> Outcome {
    let free = same(Start::Plain, None, text);
    assert_eq!(same(Start::Plain, Some(format), text), free, "{text:?}");
    free
}

#[test]
fn deepseeks_calls() {
    let text = "Let me look.\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"x\": \"`\\n```\"}\n\
                ```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n\
                ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    let expected = calls(&[("f", "{\"x\": \"`\\n```\"}"), ("g", "{}")]);
    assert_eq!(both(ToolFormat::DeepSeek, text), (None, "Let me look.".to_owned(), expected));
    let later =
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"x\":1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    let outcome = same(Start::Open, Some(ToolFormat::DeepSeek), later);
    assert_eq!(outcome, (None, String::new(), calls(&[("f", "{\"x\":1}")])));
}

#[test]
fn hermes_calls() {
    let text = "Sure.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": [1, {\"y\": \"}\\\"</tool_call>\"}]}}\n</tool_call>\n\
                <tool_call>\n{\"arguments\": {\"z\": 1}, \"name\": \"g\"}\n</tool_call>";
    let expected = calls(&[("f", "{\"x\": [1, {\"y\": \"}\\\"</tool_call>\"}]}"), ("g", "{\"z\": 1}")]);
    assert_eq!(both(ToolFormat::Hermes, text), (None, "Sure.".to_owned(), expected));
    let broken = "<tool_call>\nno JSON\n</tool_call> and on";
    assert_eq!(same(Start::Plain, None, broken), (None, broken.to_owned(), vec![]));
}

#[test]
fn llamas_calls() {
    let outcome = both(ToolFormat::Json, "{\"name\": \"f\", \"parameters\": {\"x\": 1}}");
    assert_eq!(outcome, (None, String::new(), calls(&[("f", "{\"x\": 1}")])));
    let two = "<|python_tag|>{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\", \"parameters\": {\"x\": 1}}";
    assert_eq!(same(Start::Plain, None, two).2, calls(&[("f", "{}"), ("g", "{\"x\": 1}")]));
    for text in ["{\"name\": \"Ann\", \"age\": 4} is JSON", "Hello {\"name\": \"f\"}", "[1, 2]", "[{\"a\": 1}]", "{"] {
        assert_eq!(same(Start::Plain, None, text), (None, text.to_owned(), vec![]));
    }
}

#[test]
fn calls_in_other_forms() {
    let paris = calls(&[("weather", "{\"city\":\"Paris\",\"days\":2}")]);
    let object = "{\"name\": \"weather\", \"arguments\": {\"city\":\"Paris\",\"days\":2}}";
    for (text, content) in [
        (format!("I look.\n```json\n{object}\n```\n"), "I look."),
        (format!("```json\n[{object}]\n```"), ""),
        (format!("<tools>\n{object}\n</tools>"), ""),
        (format!("[TOOL_CALLS] [{object}]"), ""),
        (format!("[{object}]"), ""),
        ("[TOOL_CALLS]weather[ARGS]{\"city\":\"Paris\",\"days\":2}".to_owned(), ""),
        ("weather{\"city\":\"Paris\",\"days\":2}".to_owned(), ""),
        (format!("{{\"type\": \"function\", \"function\": {object}}}"), ""),
        ("{\"name\": \"weather\", \"arguments\": \"{\\\"city\\\":\\\"Paris\\\",\\\"days\\\":2}\"}".to_owned(), ""),
        (
            "Yes.\n<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n\
             </parameter>\n</function>\n</tool_call>"
                .to_owned(),
            "Yes.",
        ),
        ("<function=weather><parameter=city>Paris</parameter><parameter=days>2</parameter></function>".to_owned(), ""),
        (
            "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n\
             <arg_value>2</arg_value>\n</tool_call>"
                .to_owned(),
            "",
        ),
    ] {
        assert_eq!(same(Start::Plain, None, &text), (None, content.to_owned(), paris.clone()), "{text}");
    }
}

#[test]
fn what_a_schema_refuses_or_no_tool_is_stays_text() {
    for text in [
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": 4}}\n</tool_call>",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_call>",
        "```json\n{\"name\": \"nothing\", \"arguments\": {}}\n```",
        "{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\", \"more\": 1}}",
        "<function=weather><parameter=days>2</parameter></function>",
        "[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": {\"days\": 1}}]",
        "```json\n{\"a\": [1, 2]}\n``` is JSON",
        "```python\nprint({})\n```",
        "<tool_call>\n{\"name\": \"f\", \"argu",
    ] {
        let (_, content, calls) = same(Start::Plain, None, text);
        assert_eq!((content.trim(), calls), (text, vec![]));
    }
}

/// Levels that each ask for the next one twice, the last one for `x`.
fn doubling(levels: usize) -> Value {
    let level = |at: usize| {
        let next = json!({"$ref": format!("#/$defs/l{}", at + 1)});
        (format!("l{at}"), json!({"allOf": [next, next]}))
    };
    let mut defs: serde_json::Map<String, Value> = (0..levels).map(level).collect();
    defs.insert(format!("l{levels}"), json!({"required": ["x"]}));
    json!({"$ref": "#/$defs/l0", "$defs": defs})
}

#[test]
fn a_schema_that_leads_too_far_allows_all_objects() {
    let accepts = |schema: &Value, arguments: &str| {
        let tools = KnownTools::new(vec![tool("f", schema.clone())]);
        let accepted = tools.accept("f", arguments);
        assert_eq!(tools.clone().accept("f", arguments), accepted, "the same, from what was kept");
        accepted
    };
    let few = doubling(8);
    assert!(!accepts(&few, "{}") && accepts(&few, "{\"x\": 1}"));
    for levels in [16, 60, 20_000] {
        assert!(accepts(&doubling(levels), "{}") && !accepts(&doubling(levels), "[]"), "{levels}");
    }
    // What a reference means is not known here.
    let many = doubling(60);
    for schema in [
        json!({"$ref": "#/$defs/a/not", "$defs": {"l0": true,
            "a": {"$id": "x:a", "not": {"$ref": "#/$defs/l0"}, "$defs": many["$defs"]}}}),
        json!({"$dynamicRef": "#/$defs/l0", "$defs": many["$defs"]}),
        json!({"$ref": "#/%24defs/l0", "$defs": many["$defs"]}),
        json!({"$id": "x:a", "$ref": "x:a#/$defs/l0", "$defs": many["$defs"]}),
    ] {
        assert!(accepts(&schema, "{}"), "{schema:.60}");
    }
    // Circles are no way too far.
    let list = json!({"$ref": "#/definitions/list", "definitions": {"list": {"type": "object",
        "properties": {"x": {"type": "integer"}, "next": {"$ref": "#/definitions/list"}, "all": {"$ref": "#"}}}}});
    let deep = "{\"next\": {\"all\": {\"next\": {\"x\": 1}}}}";
    assert!(accepts(&list, deep) && !accepts(&list, &deep.replace('1', "true")));
}

/// Numbers that only look random.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn text(&mut self) -> String {
        let parts =
            ["a", "é", "\"", "\\", "\n", "{", "}", "[", "</tool_call>", "```", "🐟", " ", "name", ":", "<", "]", ","];
        (0..self.below(9)).map(|_| parts[self.below(parts.len())]).collect()
    }

    fn value(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 4 } else { 6 }) {
            0 => json!(self.text()),
            1 => json!(self.below(1000)),
            2 => json!(self.below(2) == 0),
            3 => Value::Null,
            4 => (0..self.below(3)).map(|_| self.value(depth - 1)).collect(),
            _ => Value::Object((0..self.below(3)).map(|at| (format!("k{at}"), self.value(depth - 1))).collect()),
        }
    }
}

/// A call as a form writes it.
fn written(form: usize, name: &str, arguments: &serde_json::Map<String, Value>) -> String {
    let json = Value::Object(arguments.clone()).to_string();
    let object = |key: &str| format!("{{\"name\": \"{name}\", \"{key}\": {json}}}");
    let marked = |open: &str, middle: &str, close: &str| -> String {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        arguments.iter().map(|(key, value)| format!("{open}{key}{middle}{}{close}", text(value))).collect()
    };
    match form {
        0 => format!(
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{json}\n```\
             <｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        ),
        1 => format!("<tool_call>\n{}\n</tool_call>", object("arguments")),
        2 => object("parameters"),
        3 => format!("[TOOL_CALLS][{}]", object("arguments")),
        4 => format!("```json\n{}\n```", object("arguments")),
        _ => {
            let inner = marked("<parameter=", ">\n", "\n</parameter>\n");
            format!("<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>")
        }
    }
}

/// 300 calls over six forms, in pieces of random lengths.
#[test]
fn random_calls_in_random_pieces() {
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let form = seed as usize % 6;
        let arguments: serde_json::Map<String, Value> = match form {
            // Forms that mark a text's end take texts without the mark, and know types by the schema alone.
            5 => [
                ("city".to_owned(), json!(format!("x{}", dice.text().replace('<', "")))),
                ("days".to_owned(), json!(3)),
            ]
            .into_iter()
            .collect(),
            0 => (0..dice.below(4)).map(|at| (format!("a{at}"), json!(dice.text().replace("```", "`")))).collect(),
            _ => (0..dice.below(4)).map(|at| (format!("a{at}"), dice.value(2))).collect(),
        };
        let name = if form == 5 { "weather" } else { "f" };
        let before = if form == 2 { "" } else { ["", "Let me see.\n"][dice.below(2)] };
        let text = format!("{before}{}", written(form, name, &arguments));
        let mut answer = Answer::new(Start::Plain, Some(tools()), None);
        let mut choice = Choice::default();
        let chars: Vec<char> = text.chars().collect();
        let mut rest = &chars[..];
        while !rest.is_empty() {
            let (piece, more) = rest.split_at((1 + dice.below(12)).min(rest.len()));
            answer.push(&piece.iter().collect::<String>()).iter().for_each(|delta| choice.push(delta));
            rest = more;
        }
        answer.finish().iter().for_each(|delta| choice.push(delta));
        assert_eq!(choice.content, before.trim_end(), "{seed}: {text}");
        let [(_, called, found)] = &choice.calls[..] else { panic!("{seed}: {text}: {choice:?}") };
        assert_eq!(called, name);
        assert_eq!(serde_json::from_str::<Value>(found).unwrap(), Value::Object(arguments), "{seed}: {text}");
    }
}

#[test]
fn channels_are_told_apart() {
    let some = |text: &str| Some(text.to_owned());
    let analysis = "<|channel|>analysis<|message|>It is <b>4</b>.<|end|>";
    let answer = "<|start|>assistant<|channel|>final<|message|>Four.";
    let weather = "<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>";
    let ahead = "<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>";
    let city = "{\"city\": \"Bonn\"}";
    let called = calls(&[("weather", "{\"city\":\"Bonn\"}")]);
    for (text, reasoning, content, called) in [
        (format!("{analysis}{answer}"), some("It is <b>4</b>."), "Four.", vec![]),
        (format!("{analysis}{answer}<|return|>"), some("It is <b>4</b>."), "Four.", vec![]),
        ("<|channel|>final<|message|>a <| b <|en".to_owned(), None, "a <| b <|en", vec![]),
        ("<|channel|>analysis<|message|>cut off".to_owned(), some("cut off"), "", vec![]),
        ("no channel at all".to_owned(), None, "no channel at all", vec![]),
        ("<|chan".to_owned(), None, "<|chan", vec![]),
        (format!("{analysis}{weather}{city}<|call|>"), some("It is <b>4</b>."), "", called.clone()),
        (format!("{analysis}{ahead}{city}"), some("It is <b>4</b>."), "", called.clone()),
        (
            "<|channel|>commentary<|message|>First the weather.<|end|>".to_owned() + weather + city,
            None,
            "First the weather.",
            called,
        ),
        (
            format!("{analysis}{weather}{{\"town\": 1}}"),
            some("It is <b>4</b>."),
            "<tool_call>\n{\"name\":\"weather\",\"arguments\":{\"town\":1}}\n</tool_call>",
            vec![],
        ),
        (format!("{analysis}{weather}Bonn"), some("It is <b>4</b>."), "Bonn", vec![]),
    ] {
        assert_eq!(same(Start::Channels, None, &text), (reasoning, content.to_owned(), called), "{text}");
    }
}

#[test]
fn the_channel_of_thinking_is_known_while_it_lasts() {
    let mut answer = Answer::new(Start::Channels, None, None);
    assert!(!answer.is_thinking());
    answer.push("<|channel|>analysis<|message|>Hm");
    assert!(answer.is_thinking());
    answer.push("<|end|><|start|>assistant<|channel|>final<|message|>So.");
    assert!(!answer.is_thinking());
}
