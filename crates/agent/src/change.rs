//! What an edit changes, as lines for people.

use std::time::Duration;

use similar::TextDiff;

/// How long a change is looked for; what is found then is right, if longer than it need be.
const SEARCH: Duration = Duration::from_millis(500);

/// The lines that go and come, with two around each; `before`: as the file is now.
pub(crate) fn shown(before: &str, after: &str) -> String {
    let diff = TextDiff::configure().timeout(SEARCH).diff_lines(before, after);
    let text = diff.unified_diff().context_radius(2).to_string();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("\\ No newline")).collect();
    if lines.is_empty() { "no change".to_owned() } else { lines.join("\n") }
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn a_change_is_shown_with_what_is_around_it() {
        let before: String = (1..=9).map(|n| format!("line {n}\n")).collect();
        let after = before.replace("line 5", "five");
        let expected = "@@ -3,5 +3,5 @@\n line 3\n line 4\n-line 5\n+five\n line 6\n line 7";
        assert_eq!(shown(&before, &after), expected);
        assert_eq!(shown(&before, &before), "no change");
    }
}
