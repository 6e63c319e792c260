//! Tables, in columns that fit the terminal.

use super::wrap::{Cell, Paint, columns, painted, wrapped};

/// The narrowest column.
const COLUMN_MIN: usize = 4;
const BETWEEN: &str = " │ ";

/// The lines of a table; `rows`: cells of each row, the first of them the heads.
pub fn lines(rows: &[Vec<Vec<Cell>>], width: usize) -> Vec<Vec<Cell>> {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths = widths(rows, count, width.saturating_sub(3 * count.saturating_sub(1)));
    let mut lines = Vec::new();
    for (at, row) in rows.iter().enumerate() {
        let cells: Vec<Vec<Vec<Cell>>> =
            (0..count).map(|column| wrapped(row.get(column).map_or(&[], Vec::as_slice), widths[column])).collect();
        let height = cells.iter().map(Vec::len).max().unwrap_or(0);
        lines.extend((0..height).map(|part| line(&cells, &widths, part)));
        if at == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
            lines.push(painted(&rule.join("─┼─"), Paint { dim: true, ..Paint::default() }).collect());
        }
    }
    lines
}

/// One line of a row whose cells may have several.
fn line(cells: &[Vec<Vec<Cell>>], widths: &[usize], part: usize) -> Vec<Cell> {
    let mut line = Vec::new();
    for (column, cell) in cells.iter().enumerate() {
        if column > 0 {
            line.extend(painted(BETWEEN, Paint { dim: true, ..Paint::default() }));
        }
        let text = cell.get(part).map_or(&[][..], Vec::as_slice);
        line.extend_from_slice(text);
        let missing = widths[column].saturating_sub(columns(text));
        line.extend(painted(&" ".repeat(missing), Paint::default()));
    }
    while line.pop_if(|(c, _)| *c == ' ').is_some() {}
    line
}

/// As wide as the widest cell; where that is too much together, the widest columns give way.
fn widths(rows: &[Vec<Vec<Cell>>], count: usize, room: usize) -> Vec<usize> {
    let widest = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| columns(cell)).max().unwrap_or(0).max(1)
    };
    let mut widths: Vec<usize> = (0..count).map(widest).collect();
    while widths.iter().sum::<usize>() > room {
        let Some(most) = widths.iter_mut().max() else { break };
        if *most <= COLUMN_MIN {
            break;
        }
        *most -= 1;
    }
    widths
}
