//! Graders against `reasoning-gym`'s scorers (`scripts/oracle/make_graders.py`): equal verdicts, and why others differ.

use wels_tasks::Reason;
use wels_tasks::arithmetic::check_number;
use wels_tasks::countdown::check_expression;
use wels_tasks::number::parse;

struct Row {
    kind: &'static str,
    reference: &'static str,
    answer: &'static str,
    full_score: bool,
}

fn rows() -> Vec<Row> {
    let lines = include_str!("../oracle/graders.tsv").lines().filter(|line| !line.starts_with('#'));
    let row = |line: &'static str| {
        let cells: Vec<&str> = line.split('\t').collect();
        let [kind, reference, answer, score @ ("0" | "1")] = cells[..] else { panic!("{line}") };
        Row { kind, reference, answer, full_score: score == "1" }
    };
    lines.map(row).collect()
}

fn graded(row: &Row) -> bool {
    let reason = match row.kind {
        "countdown" => {
            let (numbers, target) = row.reference.split_once('=').unwrap();
            let numbers: Vec<u64> = numbers.split(',').map(|number| number.parse().unwrap()).collect();
            check_expression(row.answer, &numbers, target.parse().unwrap())
        }
        _ => check_number(row.answer, &parse(row.reference).unwrap()),
    };
    reason == Reason::Right
}

/// Why our verdict differs from the scorer's, where it may. Its number begins at the border of a word, so it overlooks
/// a minus sign; and it ends at a comma.
fn explained(row: &Row, ours: bool) -> bool {
    let sign_overlooked = row.full_score && !ours && row.answer == format!("-{}", row.reference);
    let comma_misread = !row.full_score && ours && row.answer.contains(',');
    row.kind == "gsm" && (sign_overlooked || comma_misread)
}

#[test]
fn verdicts_equal_the_scorers() {
    let rows = rows();
    assert!(rows.len() >= 2000, "{} answers", rows.len());
    assert!(rows.iter().filter(|row| row.full_score).count() > 500);
    let differ: Vec<String> = rows
        .iter()
        .filter(|row| graded(row) != row.full_score && !explained(row, graded(row)))
        .map(|row| format!("{} {} <- {:?}: scorer {}", row.kind, row.reference, row.answer, row.full_score))
        .collect();
    assert!(differ.is_empty(), "{} of {}:\n{}", differ.len(), rows.len(), differ.join("\n"));
}
