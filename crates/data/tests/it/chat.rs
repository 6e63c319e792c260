//! Rendering, limits, loss masks.

use serde_json::json;
use wels_data::chat::{ChatError, DEEPSEEK_R1, DEEPSEEK_V3, RenderOptions, Segment, completion, encode_segments};
use wels_data::{ChatTemplate, Message};

use crate::small_tokenizer;

const BOS: &str = "<｜begin▁of▁sentence｜>";
const EOS: &str = "<｜end▁of▁sentence｜>";

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, BOS, EOS).unwrap()
}

fn render(source: &str, messages: &[Message], add_generation_prompt: bool) -> String {
    let options = RenderOptions { add_generation_prompt, ..RenderOptions::default() };
    template(source).render(messages, &options).unwrap()
}

/// One expression over one message.
fn eval(source: &str) -> Result<String, ChatError> {
    template(source).render(&[Message::new("user", "hi")], &RenderOptions::default())
}

fn conversation() -> Vec<Message> {
    [("system", "Be brief."), ("user", "1+1?"), ("assistant", "<think>\neasy\n</think>\n\n2"), ("user", "And 2+2?")]
        .map(|(role, text)| Message::new(role, text))
        .to_vec()
}

#[test]
fn deepseek_v3_format() {
    let text = render(DEEPSEEK_V3, &conversation(), true);
    let answer = "<think>\neasy\n</think>\n\n2";
    assert_eq!(
        text,
        format!("{BOS}Be brief.<｜User｜>1+1?<｜Assistant｜>{answer}{EOS}<｜User｜>And 2+2?<｜Assistant｜>")
    );
}

#[test]
fn deepseek_r1_format_drops_past_thoughts_and_starts_to_think() {
    let text = render(DEEPSEEK_R1, &conversation(), true);
    assert_eq!(
        text,
        format!("{BOS}Be brief.<｜User｜>1+1?<｜Assistant｜>\n\n2{EOS}<｜User｜>And 2+2?<｜Assistant｜><think>\n")
    );
}

#[test]
fn tool_calls_and_outputs() {
    let calls = json!([{"type": "function", "function": {"name": "sum", "arguments": "{\"a\": 1}"}},
                       {"type": "function", "function": {"name": "neg", "arguments": {"b": [2]}}}]);
    let mut call = Message::new("assistant", "");
    call.content = serde_json::Value::Null;
    call.other.insert("tool_calls".to_owned(), calls);
    let messages = [
        Message::new("user", "go"),
        call,
        Message::new("tool", "3"),
        Message::new("tool", "-2"),
        Message::new("assistant", "done"),
    ];
    let expected = format!(
        "{BOS}<｜User｜>go<｜Assistant｜><｜tool▁calls▁begin｜>\
         <｜tool▁call▁begin｜>function<｜tool▁sep｜>sum\n```json\n{{\"a\": 1}}\n```<｜tool▁call▁end｜>\n\
         <｜tool▁call▁begin｜>function<｜tool▁sep｜>neg\n```json\n{{\"b\": [2]}}\n```<｜tool▁call▁end｜>\
         <｜tool▁calls▁end｜>{EOS}<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>3<｜tool▁output▁end｜>\
         <｜tool▁output▁begin｜>-2<｜tool▁output▁end｜><｜tool▁outputs▁end｜>done{EOS}"
    );
    assert_eq!(render(DEEPSEEK_V3, &messages, false), expected);
}

#[test]
fn jinja_as_transformers_runs_it() {
    let cases = [
        ("{{ messages[0]['content'].upper() }}", "HI"),
        ("{{ '<a href=\"x\">&' }}", "<a href=\"x\">&"),
        ("{{ {'b': 1, 'a': '<é>'} | tojson }}", "{\"b\": 1, \"a\": \"<é>\"}"),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{{ true }} {{ none }} {{ ['a', false] }} {{ {'k': 'it\\'s'} }}", "True None ['a', False] {'k': \"it's\"}"),
        ("{% for x in [1,2,3] %}\n  {% if x == 2 %}{% continue %}{% endif %}\n{{ x }}{% endfor %}", "13"),
        ("{% for x in range(9) %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}", "01"),
        ("{% set ns = namespace(n=0) %}{% for x in [1,2] %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}", "3"),
        ("{% generation %}a{% endgeneration %}{%- generation -%} b {%- endgeneration -%}", "ab"),
        ("{{ undefined_thing }}{{ tools is none }}{{ tools }}", "TrueNone"),
        ("{{ 'a,b'.split(',')[-1] }}{{ ' x '.strip() }}{{ 'abc'[1:] }}{{ messages[::-1] | length }}", "bxbc1"),
        ("{{ strftime_now('%Y-%m-%d') }}", "1970-01-01"),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m('y') }}", "[y]"),
        ("a\n    {% if true %}\nb\n    {% endif %}\nc\n", "a\nb\nc"),
    ];
    for (source, expected) in cases {
        assert_eq!(eval(source).unwrap(), expected, "{source}");
    }
}

#[test]
fn templates_that_refuse_loop_or_break_end_in_an_error() {
    let refused = eval("{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert!(matches!(&refused, ChatError::Refused { message } if message == "roles must alternate"), "{refused}");
    let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    assert!(matches!(eval(nested), Err(ChatError::Endless)));
    let long = "{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}";
    assert!(matches!(eval(long), Err(ChatError::Endless)));
    let deep = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    assert!(matches!(eval(deep), Err(ChatError::Failed { .. } | ChatError::Endless)));
    let failed = eval("x\n{{ messages.nothing.at_all }}").unwrap_err().to_string();
    assert!(failed.contains("line 2") || failed.contains(":2"), "{failed}");
    let syntax = ChatTemplate::new("{% if %}", BOS, EOS).err().unwrap().to_string();
    assert!(syntax.starts_with("the chat template is not valid"), "{syntax}");
}

#[test]
fn only_what_the_assistant_says_is_trained_on() {
    let mut messages = conversation();
    messages.push(Message::new("assistant", "4"));
    let segments = template(DEEPSEEK_V3).segments(&messages, &RenderOptions::default()).unwrap();
    let joined: String = segments.iter().map(|segment| segment.text.as_str()).collect();
    assert_eq!(joined, render(DEEPSEEK_V3, &messages, false));
    let trained: Vec<&str> = segments.iter().filter(|s| s.train).map(|s| s.text.as_str()).collect();
    assert_eq!(trained, [format!("<think>\neasy\n</think>\n\n2{EOS}"), format!("4{EOS}")]);

    let tokenizer = small_tokenizer();
    let (ids, train) = encode_segments(&tokenizer, &segments).unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), joined);
    let taught: Vec<u32> = ids.iter().zip(&train).filter(|(_, train)| **train).map(|(&id, _)| id).collect();
    assert_eq!(tokenizer.decode(&taught).unwrap(), trained.concat());
}

#[test]
fn templates_that_rewrite_history_are_trained_on_one_answer_at_a_time() {
    let mut messages = conversation();
    let error = template(DEEPSEEK_R1).segments(&messages, &RenderOptions::default()).unwrap_err();
    assert!(matches!(error, ChatError::RewritesHistory { message: 2 }), "{error}");
    messages.truncate(2);
    let prompt = render(DEEPSEEK_R1, &messages, true);
    let [asked, answered] = completion(&prompt, "<think>\neasy\n</think>\n\n2", EOS);
    assert!(asked.text.ends_with("<think>\n") && !asked.train);
    assert_eq!(answered, Segment { text: format!("easy\n</think>\n\n2{EOS}"), train: true });
}
