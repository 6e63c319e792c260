//! Numbers for people.

/// 12345678 as `12.3M`.
pub fn short(number: f64) -> String {
    let (scaled, unit) = match number {
        n if n >= 1e15 => (n / 1e15, "P"),
        n if n >= 1e12 => (n / 1e12, "T"),
        n if n >= 1e9 => (n / 1e9, "G"),
        n if n >= 1e6 => (n / 1e6, "M"),
        n if n >= 1e3 => (n / 1e3, "k"),
        n => (n, ""),
    };
    if scaled >= 100.0 || unit.is_empty() { format!("{scaled:.0}{unit}") } else { format!("{scaled:.1}{unit}") }
}

/// Seconds as `1h02m`, `3m05s` or `7s`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        _ => format!("{}h{:02}m", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!([999.0, 1234.0, 27_900_000.0, 2.5e11].map(short), ["999", "1.2k", "27.9M", "250G"]);
        assert_eq!([7.4, 185.0, 3720.0].map(duration), ["7s", "3m05s", "1h02m"]);
    }
}
