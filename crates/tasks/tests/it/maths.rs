//! Equivalence of mathematical answers: a table of pairs, hostile input.

use std::time::{Duration, Instant};

use wels_tasks::maths::{equivalent, number};

/// (whether they are the same, reference, answer).
fn table() -> Vec<(bool, &'static str, &'static str)> {
    let rows = include_str!("../tables/maths.tsv").lines().filter(|line| !line.starts_with('#'));
    let row = |line: &'static str| {
        let cells: Vec<&str> = line.split('\t').collect();
        let [relation @ ("same" | "different"), reference, answer] = cells[..] else { panic!("{line}") };
        (relation == "same", reference, answer)
    };
    rows.map(row).collect()
}

#[test]
fn every_pair_of_the_table_is_judged_right() {
    let table = table();
    assert!(table.len() >= 300, "{} pairs", table.len());
    let judged_wrong: Vec<_> = table.iter().filter(|(same, a, b)| equivalent(a, b) != *same).collect();
    assert!(judged_wrong.is_empty(), "{} of {} pairs: {judged_wrong:#?}", judged_wrong.len(), table.len());
}

#[test]
fn every_answer_equals_itself_in_other_clothes() {
    for (_, reference, _) in table() {
        let clothes: [fn(&str) -> String; 7] = [
            |text| text.to_owned(),
            |text| format!("${text}$"),
            |text| format!(" {text}."),
            |text| format!("\\boxed{{{text}}}"),
            |text| text.replace("\\frac", "\\dfrac"),
            |text| text.replace("\\left", "").replace("\\right", ""),
            |text| text.replace(", ", ",\\ ").replace('=', " = "),
        ];
        for (number, dress) in clothes.iter().enumerate() {
            let answer = dress(reference);
            assert!(equivalent(reference, &answer), "{number}: {reference} and {answer}");
        }
    }
}

/// No claim of speed: only that what would take ages is not tried.
#[test]
fn hostile_answers_end() {
    let deep = |open: &str, close: &str| format!("{}x{}", open.repeat(150), close.repeat(150));
    let hostile = [
        "9^{9^{9^{9^9}}}".to_owned(),
        "(a+b+c+d+e+f+g+h)^{64}".to_owned(),
        "(x+y)^{1000000}".to_owned(),
        "((((x+1)^60+y)^60+z)^60+w)^60".to_owned(),
        "\\sqrt{2^{99999}+1}".to_owned(),
        "170!^{170!}".to_owned(),
        "\\binom{1000}{500}^{1000}".to_owned(),
        "1/0".to_owned(),
        "0^{-1}".to_owned(),
        "10^{99999}".to_owned(),
        format!("\\sqrt{{{}}}", "9".repeat(390)),
        format!("1{}", "!".repeat(500)),
        "9".repeat(1900),
        "a,".repeat(900),
        "\\pm".repeat(300),
        "\\pm 1,".repeat(200),
        "x^".repeat(900),
        "-".repeat(1900),
        "\\frac".repeat(300),
        "\\sin".repeat(400),
        "|".repeat(1900),
        "(".repeat(1900),
        "{".repeat(1900),
        "\\begin{pmatrix}".repeat(100),
        deep("(", ")"),
        deep("\\sqrt{", "}"),
        deep("\\frac{1}{1+", "}"),
        deep("\\{", "\\}"),
        deep("|", "|"),
        "\u{0}\u{ffff}é日\u{202e}".to_owned(),
        "\\".to_owned(),
        "x".repeat(1_000_000),
    ];
    let begin = Instant::now();
    for a in &hostile {
        equivalent(a, &format!("{a} + 0"));
        equivalent("x^2 + \\sin y", a);
        equivalent(a, "\\{1, 2\\}");
    }
    assert!(begin.elapsed() < Duration::from_secs(300), "{:?}", begin.elapsed());
}

/// What has taken all memory, ended in a panic, or taken twice the time with each level.
#[test]
fn nested_answers_end_quickly() {
    let nested = |levels: usize, open: &str, inside: &str, close: &str| {
        format!("{}{inside}{}", open.repeat(levels), close.repeat(levels))
    };
    let hostile = [
        format!("x{}", "!".repeat(8)),
        format!("x{}", "!".repeat(400)),
        format!("x{}+1", "°".repeat(400)),
        nested(12, "(", "x", "!!!!!!!!)"),
        nested(6, "\\sin((", "x", "+1)^{40})"),
        nested(6, "\\sin((", "x+y", "+z)^{40})"),
        nested(8, "\\sqrt[256]{", "x", "}"),
        nested(8, "\\sqrt[256]{", "2", "}"),
        nested(8, "\\sqrt[1000]{", "x+y", "}"),
        nested(12, "(", "x", "^{99999})"),
        nested(12, "(", "x", "^{-99999})"),
        nested(12, "(", "x", "^{9223372036854775807})"),
        "((((2^{1/997})^{1/991})^{1/983})^{1/977})^{1/971}".to_owned(),
        "x^{1/997}x^{1/991}x^{1/983}x^{1/977}x^{1/971}x^{1/967}x^{1/953}".to_owned(),
        nested(18, "1\\frac{", "x", "}{1}") + &"+1".repeat(300),
        nested(13, "-1\\frac{", "x", "}{1}") + &"+1".repeat(300),
    ];
    let begin = Instant::now();
    for a in &hostile {
        assert!(equivalent(a, &format!(" {a}.")), "{a}");
        equivalent(a, &format!("{a} + 0"));
        equivalent(&format!("y = {a}"), &format!("2y = {a}"));
        assert!(!equivalent(a, "5"), "{a}");
        assert_eq!(number(a), None, "{a}");
    }
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
}
