//! Charts as SVG text: no scripts, colours from the page's style sheet, a title and a description for those who cannot
//! see them.

use std::fmt::Write;

/// Text made safe for HTML and SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A curve.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub name: String,
    /// `(x, y)`, x rising; points that are not finite are left out.
    pub points: Vec<(f64, f64)>,
    /// Whether points are marked, for curves of few of them.
    pub marked: bool,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 40.0;

/// A range of values with round numbers to mark.
struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
    logarithmic: bool,
}

impl Axis {
    fn linear(values: impl Iterator<Item = f64>, wanted: f64) -> Axis {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)));
        let (low, high) = match low.partial_cmp(&high) {
            Some(std::cmp::Ordering::Less) => (low, high),
            Some(std::cmp::Ordering::Equal) => (low - 0.5 * low.abs().max(1e-9), low + 0.5 * low.abs().max(1e-9)),
            _ => (0.0, 1.0),
        };
        let raw = (high - low) / wanted;
        let power = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|step| *step >= raw).unwrap_or(raw);
        let first = (low / step).ceil() as i64;
        let last = (high / step).floor() as i64;
        Axis { low, high, ticks: (first..=last).map(|i| i as f64 * step).collect(), logarithmic: false }
    }

    fn logarithmic(values: impl Iterator<Item = f64> + Clone) -> Axis {
        let low = values.clone().fold(f64::MAX, f64::min).log10().floor() as i32;
        let high = values.fold(f64::MIN, f64::max).log10().ceil() as i32;
        let high = high.max(low + 1);
        let ticks = (low..=high).map(|power| 10f64.powi(power)).collect();
        Axis { low: 10f64.powi(low), high: 10f64.powi(high), ticks, logarithmic: true }
    }

    /// Where a value lies, from 0 to 1.
    fn at(&self, value: f64) -> f64 {
        match self.logarithmic {
            true => (value / self.low).log10() / (self.high / self.low).log10(),
            false => (value - self.low) / (self.high - self.low),
        }
    }
}

/// A number on an axis or in a table.
pub fn number(value: f64) -> String {
    let magnitude = value.abs();
    let text = match magnitude {
        0.0 => return "0".into(),
        m if m >= 1e15 => return format!("{value:.1e}"),
        m if m >= 1e12 => format!("{:.3}", value / 1e12),
        m if m >= 1e9 => format!("{:.3}", value / 1e9),
        m if m >= 1e6 => format!("{:.3}", value / 1e6),
        m if m >= 1e4 => format!("{:.2}", value / 1e3),
        m if m >= 100.0 => format!("{value:.1}"),
        m if m >= 1.0 => format!("{value:.3}"),
        m if m >= 1e-3 => format!("{value:.4}"),
        _ => return format!("{value:.1e}"),
    };
    let unit = match magnitude {
        m if m >= 1e12 => "T",
        m if m >= 1e9 => "G",
        m if m >= 1e6 => "M",
        m if m >= 1e4 => "k",
        _ => "",
    };
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

fn open(title: &str, description: &str, height: f64) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\"><title>{}</title><desc>{}</desc>\n",
        escape(title),
        escape(description)
    )
}

fn frame(svg: &mut String, x: &Axis, y: &Axis, x_label: &str, y_label: &str) {
    let (width, height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    for tick in &y.ticks {
        let at = TOP + height * (1.0 - y.at(*tick));
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>",
            LEFT + width
        );
        let _ = writeln!(
            svg,
            "<text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT - 8.0,
            at + 4.0,
            number(*tick)
        );
    }
    for tick in &x.ticks {
        let at = LEFT + width * x.at(*tick);
        let under = TOP + height + 17.0;
        let _ = writeln!(
            svg,
            "<text class=\"tick\" text-anchor=\"middle\" x=\"{at:.1}\" y=\"{under:.1}\">{}</text>",
            number(*tick)
        );
    }
    let (middle, bottom) = (LEFT + width / 2.0, HEIGHT - 5.0);
    let _ = writeln!(
        svg,
        "<text class=\"label\" text-anchor=\"middle\" x=\"{middle:.1}\" y=\"{bottom:.1}\">{}</text>",
        escape(x_label)
    );
    if !y_label.is_empty() {
        let middle = TOP + height / 2.0;
        let _ = writeln!(
            svg,
            "<text class=\"label\" text-anchor=\"middle\" transform=\"translate(12 {middle:.1}) rotate(-90)\">{}</text>",
            escape(y_label)
        );
    }
}

/// Curves over a common x. Long and noisy curves are drawn faint, with their running mean over them.
pub fn lines(title: &str, x_label: &str, y_label: &str, series: &[Series]) -> String {
    let finite = |series: &Series| -> Vec<(f64, f64)> {
        series.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
    };
    let drawn: Vec<(&Series, Vec<(f64, f64)>)> = series.iter().map(|series| (series, finite(series))).collect();
    let all = || drawn.iter().flat_map(|(_, points)| points.iter().copied());
    let x = Axis::linear(all().map(|(x, _)| x), 8.0);
    let y = Axis::linear(all().map(|(_, y)| y), 5.0);
    let place = |(px, py): (f64, f64)| {
        let width = WIDTH - LEFT - RIGHT;
        (LEFT + width * x.at(px), TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - y.at(py)))
    };
    let mut svg = open(title, &in_words(&drawn), HEIGHT);
    frame(&mut svg, &x, &y, x_label, y_label);
    for (i, (series, points)) in drawn.iter().enumerate() {
        let path = |points: &[(f64, f64)]| -> String {
            let places = points.iter().map(|point| place(*point));
            places.map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
        };
        let class = format!("s{}", i % 6);
        if is_noisy(points) && !series.marked {
            let _ = writeln!(svg, "<polyline class=\"{class} faint\" points=\"{}\"/>", path(points));
            let _ = writeln!(svg, "<polyline class=\"{class}\" points=\"{}\"/>", path(&running_mean(points)));
        } else {
            let _ = writeln!(svg, "<polyline class=\"{class}\" points=\"{}\"/>", path(points));
            for (x, y) in points.iter().filter(|_| points.len() <= 40).map(|point| place(*point)) {
                let _ = writeln!(svg, "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>");
            }
        }
    }
    svg += "</svg>\n";
    if series.len() > 1 {
        svg += "<p class=\"legend\">";
        for (i, series) in series.iter().enumerate() {
            let _ = write!(svg, "<span><i class=\"s{}\"></i>{}</span>", i % 6, escape(&series.name));
        }
        svg += "</p>\n";
    }
    svg
}

fn in_words(drawn: &[(&Series, Vec<(f64, f64)>)]) -> String {
    let curve = |(series, points): &(&Series, Vec<(f64, f64)>)| match (points.first(), points.last()) {
        (Some((from, first)), Some((to, last))) => {
            format!("{}: {} at {}, {} at {}.", series.name, number(*first), number(*from), number(*last), number(*to))
        }
        _ => format!("{}: no points.", series.name),
    };
    drawn.iter().map(curve).collect::<Vec<_>>().join(" ")
}

/// Whether a curve is long and goes up and down much more than from one end of its range to the other.
fn is_noisy(points: &[(f64, f64)]) -> bool {
    let (low, high) = points.iter().fold((f64::MAX, f64::MIN), |(low, high), (_, y)| (low.min(*y), high.max(*y)));
    let way: f64 = points.windows(2).map(|pair| (pair[1].1 - pair[0].1).abs()).sum();
    points.len() > 40 && way > 2.5 * (high - low)
}

/// The mean over a window of a fortieth of the curve.
fn running_mean(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let half = (points.len() / 80).max(1);
    (0..points.len())
        .map(|i| {
            let half = half.min(i).min(points.len() - 1 - i);
            let window = &points[i - half..=i + half];
            (points[i].0, window.iter().map(|(_, y)| y).sum::<f64>() / window.len() as f64)
        })
        .collect()
}

/// A map of cells: `rows[row][column]` is a ratio to the mean, 1 being even. Cells of one shade side by side are drawn
/// as one.
pub fn heat_map(title: &str, description: &str, row_label: &str, last_x: f64, rows: &[Vec<f64>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let cell = (320.0 / rows.len().max(1) as f64).clamp(4.0, 12.0);
    let height = TOP + cell * rows.len() as f64 + BOTTOM;
    let width = (WIDTH - LEFT - RIGHT) / columns as f64;
    let mut svg = open(title, description, height);
    for (row, values) in rows.iter().enumerate() {
        let y = TOP + cell * row as f64;
        let mut from = 0;
        while from < values.len() {
            let shade = shade(values[from]);
            let to = (from..values.len()).find(|column| self::shade(values[*column]) != shade).unwrap_or(values.len());
            let x = LEFT + width * from as f64;
            let wide = width * (to - from) as f64 + 0.3;
            let _ = writeln!(
                svg,
                "<rect class=\"h{shade}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{wide:.1}\" height=\"{:.1}\"/>",
                cell - 0.6
            );
            from = to;
        }
    }
    let bottom = TOP + cell * rows.len() as f64;
    let _ = writeln!(
        svg,
        "<text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">0</text>",
        LEFT - 8.0,
        TOP + 9.0
    );
    let _ = writeln!(
        svg,
        "<text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{bottom:.1}\">{}</text>",
        LEFT - 8.0,
        rows.len().saturating_sub(1)
    );
    let middle = TOP + cell * rows.len() as f64 / 2.0;
    let _ = writeln!(
        svg,
        "<text class=\"label\" text-anchor=\"middle\" transform=\"translate(12 {middle:.1}) rotate(-90)\">{}</text>",
        escape(row_label)
    );
    let _ = writeln!(svg, "<text class=\"tick\" x=\"{LEFT}\" y=\"{:.1}\">step 1</text>", bottom + 17.0);
    let _ = writeln!(
        svg,
        "<text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">step {}</text>",
        WIDTH - RIGHT,
        bottom + 17.0,
        number(last_x)
    );
    svg + "</svg>\n"
}

/// 0 for a quarter of the mean or less, 4 for the mean, 8 for four times or more.
fn shade(ratio: f64) -> usize {
    match ratio > 0.0 {
        true => (4.0 + 2.0 * ratio.log2()).round().clamp(0.0, 8.0) as usize,
        false => 0,
    }
}

/// Horizontal bars, each with its value in words.
pub fn bars(title: &str, bars: &[(String, f64, String)]) -> String {
    const ROW: f64 = 30.0;
    let most = bars.iter().map(|(_, value, _)| *value).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let words: Vec<_> = bars.iter().map(|(name, _, words)| format!("{name}: {words}.")).collect();
    let mut svg = open(title, &words.join(" "), ROW * bars.len() as f64 + 8.0);
    for (i, (name, value, words)) in bars.iter().enumerate() {
        let y = ROW * i as f64 + 6.0;
        let width = (WIDTH - 320.0) * value / most;
        let _ = writeln!(svg, "<text class=\"name\" x=\"0\" y=\"{:.1}\">{}</text>", y + 15.0, escape(name));
        let _ = writeln!(
            svg,
            "<rect class=\"bar\" x=\"110\" y=\"{y:.1}\" width=\"{:.1}\" height=\"20\" rx=\"3\"/>",
            width.max(1.5)
        );
        let _ = writeln!(
            svg,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            118.0 + width,
            y + 14.5,
            escape(words)
        );
    }
    svg + "</svg>\n"
}

/// A dot with a name.
#[derive(Clone, Debug, PartialEq)]
pub struct Dot {
    pub name: String,
    /// Above 0: the axis is logarithmic.
    pub x: f64,
    /// Linear.
    pub y: f64,
    /// Drawn to stand out.
    pub own: bool,
}

/// Dots over a logarithmic x. Names that would cover one another move.
pub fn scatter(title: &str, x_label: &str, y_label: &str, dots: &[Dot]) -> String {
    let mut dots: Vec<&Dot> = dots.iter().filter(|dot| dot.x > 0.0 && dot.x.is_finite() && dot.y.is_finite()).collect();
    dots.sort_by(|a, b| a.x.total_cmp(&b.x));
    let words: Vec<_> =
        dots.iter().map(|dot| format!("{}: {} at {}.", dot.name, number(dot.y), number(dot.x))).collect();
    let mut svg = open(title, &words.join(" "), HEIGHT);
    if dots.is_empty() {
        return svg + "</svg>\n";
    }
    let x = Axis::logarithmic(dots.iter().map(|dot| dot.x).collect::<Vec<_>>().into_iter());
    let spread = dots.iter().map(|dot| dot.y);
    let y = Axis::linear(spread.clone().map(|y| y - 2.0).chain(spread.map(|y| y + 2.0)), 5.0);
    frame(&mut svg, &x, &y, x_label, y_label);
    let mut taken: Vec<(f64, f64, f64)> = Vec::new();
    for dot in dots {
        let at_x = LEFT + (WIDTH - LEFT - RIGHT) * x.at(dot.x);
        let at_y = TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - y.at(dot.y));
        let class = if dot.own { "own" } else { "s0" };
        let _ = writeln!(svg, "<circle class=\"{class}\" cx=\"{at_x:.1}\" cy=\"{at_y:.1}\" r=\"4.5\"/>");
        let width = 6.6 * dot.name.chars().count() as f64;
        let left = match at_x + 9.0 + width > WIDTH - 2.0 {
            true => at_x - 9.0 - width,
            false => at_x + 9.0,
        };
        let covered =
            |y: f64| taken.iter().any(|(from, to, at)| left < *to && left + width > *from && (y - at).abs() < 13.0);
        let shifts = [0.0, -13.0, 13.0, -26.0, 26.0, -39.0, 39.0];
        let text_y = shifts.into_iter().map(|shift| at_y + 4.0 + shift).find(|y| !covered(*y)).unwrap_or(at_y + 4.0);
        taken.push((left, left + width, text_y));
        let _ = writeln!(svg, "<text class=\"name\" x=\"{left:.1}\" y=\"{text_y:.1}\">{}</text>", escape(&dot.name));
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_drawn_is_not_a_number() {
        let series = |points: &[(f64, f64)]| Series { name: "<a & b>".into(), points: points.to_vec(), marked: false };
        let cases = [
            series(&[]),
            series(&[(1.0, 2.0)]),
            series(&[(1.0, 2.0), (2.0, 2.0)]),
            series(&[(1.0, f64::NAN), (2.0, f64::INFINITY), (3.0, -1e300)]),
            series(&(0..500).map(|i| (f64::from(i), (f64::from(i) / 9.0).sin())).collect::<Vec<_>>()),
        ];
        for case in cases {
            let svg = lines("t", "x", "y", &[case.clone(), case]);
            assert!(!svg.contains("NaN") && !svg.contains("inf") && svg.contains("&lt;a &amp; b&gt;"), "{svg}");
        }
        let dot = |x: f64, y: f64| Dot { name: "d".into(), x, y, own: false };
        for dots in [vec![], vec![dot(0.0, 1.0)], vec![dot(0.5, 80.0)], vec![dot(0.5, 80.0), dot(0.5, 80.0)]] {
            let svg = scatter("t", "x", "y", &dots);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        assert!(!bars("t", &[("a".into(), 0.0, "none".into())]).contains("NaN"));
        assert!(!heat_map("t", "", "e", 0.0, &[vec![], vec![0.0, f64::NAN]]).contains("NaN"));
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.05, 1.5, 250.0, 12_340.0, 2.5e6, 14.8e12, 1e-7].map(number);
        assert_eq!(shown, ["0", "0.05", "1.5", "250", "12.34k", "2.5M", "14.8T", "1.0e-7"]);
    }

    #[test]
    fn shades_are_even_about_the_mean() {
        assert_eq!([0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 100.0].map(shade), [0, 0, 2, 4, 6, 8, 8]);
    }
}
