//! Graders against `reasoning-gym`'s scorers (`scripts/oracle/make_graders.py`): equal verdicts, and why the others differ.

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

/// Why our verdict may differ from the scorer's.
fn explained(row: &Row, ours: bool) -> bool {
    match row.kind {
        // The scorer's number begins at a word boundary, so it overlooks a minus sign; it stops at a comma; and of `42.5`
        // or `42.00` it may take what we read whole.
        "gsm" => row.answer.starts_with('-') || row.reference.starts_with('-') || (ours && row.answer.contains(',')),
        _ => false,
    }
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
