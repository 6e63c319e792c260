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

/// Templates of which each instruction makes more of what there was.
#[test]
fn templates_that_grow_are_stopped() {
    let doubling =
        |body: &str| format!("{{% set ns = namespace(x='ab') %}}{{% for i in range(64) %}}{body}{{% endfor %}}");
    let cases = [
        "{{ 'a'|indent(10 ** 10) }}".to_owned(),
        "{{ 'a\nb'|indent(width=10 ** 10, first=true) }}".to_owned(),
        "{{ [[1]]|tojson(indent=10 ** 10) }}".to_owned(),
        "{{ [1]|slice(10 ** 10)|list }}".to_owned(),
        "{{ [1]|batch(10 ** 10, 0)|list }}".to_owned(),
        "{{ '%010000000000d'|format(1) }}".to_owned(),
        "{{ '%*d'|format(10 ** 10, 1) }}".to_owned(),
        "{{ '{:10000000000}'.format(1) }}".to_owned(),
        doubling("{% set ns.x = ns.x ~ ns.x %}"),
        doubling("{% set ns.x = ns.x + ns.x %}"),
        doubling("{% set ns.x = ns.x * 2 %}"),
        doubling("{% set ns.x = ns.x|replace('a', 'aa') %}"),
        doubling("{% set ns.x = ns.x.replace('a', 'aaaa') %}"),
        doubling("{% set ns.x = ns.x|replace('', ns.x) %}"),
        doubling("{% set ns.x = ns.x|join(ns.x) %}"),
        doubling("{% set ns.x = ns.x.join([ns.x, ns.x, ns.x]) %}"),
        doubling("{% set ns.x = [ns.x, ns.x]|join %}"),
        doubling("{% set ns.x = '%s%s'|format(ns.x, ns.x) %}"),
        doubling("{% set ns.x = '{0}{0}'.format(ns.x) %}"),
        doubling("{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
        doubling("{% set ns.x = [ns.x, ns.x]|string %}"),
        format!("{}{{{{ ns.x }}}}", doubling("{% set ns.x = [ns.x, ns.x] %}")),
        format!("{}{{{{ ns.x|tojson }}}}", doubling("{% set ns.x = [ns.x, ns.x] %}")),
        format!("{}{{{{ ns.x == [ns.x] }}}}", doubling("{% set ns.x = {'a': ns.x, 'b': ns.x} %}")),
        format!("{}{{{{ {{ns.x: 1}} }}}}", doubling("{% set ns.x = [ns.x, ns.x] %}")),
        "{% set ns = namespace(x=[1, 2]) %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}".to_owned(),
        "{% set ns = namespace(x=[1, 2]) %}{% for i in range(64) %}{% set ns.x = ns.x|chain(ns.x) %}{% endfor %}"
            .to_owned(),
        "{% for i in range(100000) %}{% for j in range(100000) %}ab{% endfor %}{% endfor %}".to_owned(),
        format!("{{% set x %}}{{% for i in range(90000) %}}{}{{% endfor %}}{{% endset %}}", "a".repeat(100_000)),
    ];
    for source in cases {
        let begin = std::time::Instant::now();
        let result = eval(&source);
        let shown = &source[..source.len().min(120)];
        assert!(
            matches!(result, Err(ChatError::Endless | ChatError::Failed { .. })),
            "{shown}: {:?}",
            result.map(|t| t.len())
        );
        assert!(begin.elapsed().as_secs() < 60, "{shown}: {:?}", begin.elapsed());
    }
}

/// Values and expressions so deep that to free or to compile them takes more stack than a thread usually has.
#[test]
fn deep_values_and_expressions_do_not_overflow_the_stack() {
    let nested = |times: u32| {
        format!(
            "{{% set ns = namespace(x=1) %}}{{% for i in range({times}) %}}{{% set ns.x = [ns.x] %}}{{% endfor %}}ok"
        )
    };
    assert_eq!(eval(&nested(90_000)).unwrap(), "ok");
    let twice = format!("{}{}", nested(90_000), nested(90_000).replace("(x=1)", "(x=[1])"));
    assert_eq!(eval(&twice).unwrap(), "okok");
    let thrice = "{% set ns = namespace(x=1) %}{% for j in range(9) %}{% for i in range(90000) %}{% set ns.x = {1: ns.x} \
                  %}{% endfor %}{% endfor %}";
    assert!(matches!(eval(thrice), Err(ChatError::Endless)));
    let shown = nested(90_000).replace("ok", "{{ ns.x }}");
    assert!(matches!(eval(&shown), Err(ChatError::Endless)));
    for (more, most) in [("+1", "120001"), (".a", ""), ("|int", "1"), (" and 1", "1")] {
        let source = format!("{{{{ 1{} }}}}", more.repeat(240_000 / more.len()));
        match eval(&source) {
            Ok(text) => assert_eq!(text, most, "{more}"),
            Err(ChatError::Failed { .. } | ChatError::Endless) => {}
            Err(error) => panic!("{more}: {error}"),
        }
    }
    let long = format!("{{{{ 1{} }}}}", "+1".repeat(200_000));
    assert!(matches!(ChatTemplate::new(&long, BOS, EOS), Err(ChatError::Syntax { .. })));
}

/// What is charged for is what was computed before: operators, chained comparisons, recursion, macros, captures.
#[test]
fn charged_templates_compute_what_they_say() {
    for (source, expected) in [
        ("{{ [1, 2] + [3] }}{{ (1, 2) + (3,) }}", "[1, 2, 3](1, 2, 3)"),
        ("{{ 'ab' * 3 ~ 1 ~ 'c' }}", "ababab1c"),
        ("{{ [1, 2, 3, 4][1:3] }}{{ 'abcd'[::-1] }}{{ 'abc'[-1] }}{{ [1, 2][-1] }}", "[2, 3]dcbac2"),
        ("{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 2 in [1, 2] }}{{ 'b' not in 'abc' }}", "TrueFalseTrueFalse"),
        ("{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }};{% endfor %}", "1;2;3;;;"),
        (
            "{% macro m(a, b=2) %}<{{ a }}{{ b }}{{ caller() if caller }}>{% endmacro %}{{ m(1) }}{{ m(1, b=3) }}",
            "<12><13>",
        ),
        ("{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}x{% endcall %}", "[x]"),
        ("{% set args = [1, 4] %}{{ range(*args)|list }}{{ dict(a=1, **{'b': 2}) }}", "[1, 2, 3]{'a': 1, 'b': 2}"),
        (
            "{% for x in range(9) if x % 2 %}{% if x > 6 %}{% break %}{% endif %}{{ loop.index }}{% else %}none{% endfor %}",
            "123",
        ),
        (
            "{{ ['b', 'a']|sort|join('-') }}{{ {'x': [1, 2]}|tojson }}{{ 'a b'.split() }}",
            "a-b{\"x\": [1, 2]}['a', 'b']",
        ),
        ("{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|list }}", "['hi']"),
        (
            "{% filter upper %}a{% endfilter %}{% with x = 2 %}{{ x }}{% endwith %}{% set y %}q{% endset %}{{ y|length }}",
            "A21",
        ),
    ] {
        assert_eq!(eval(source).unwrap(), expected, "{source}");
    }
}
