//! Which crate may use which.

use super::{Failures, File};

/// The crates that a crate may name in its `Cargo.toml`; `None` for a crate that the architecture does not know.
fn allowed(krate: &str) -> Option<&'static [&'static str]> {
    Some(match krate {
        "kernels" => &[],
        "model" => &["kernels"],
        "data" => &[],
        "engine" => &["model", "data", "kernels"],
        "tasks" => &["engine", "data"],
        "train" => &["model", "engine", "tasks", "data", "kernels"],
        "runs" => &["data", "model"],
        "server" => &["engine", "data"],
        "cli" => &["kernels", "model", "data", "engine", "tasks", "train", "runs", "server"],
        _ => return None,
    })
}

/// Checks every `crates/NAME/Cargo.toml`.
pub fn check(files: &[File], failures: &mut Failures) {
    for file in files {
        let Some(krate) = file.path.strip_prefix("crates/").and_then(|path| path.strip_suffix("/Cargo.toml")) else {
            continue;
        };
        let Some(allowed) = allowed(krate) else {
            failures.add(&file.path, 1, format!("crate `{krate}` has no place in the architecture yet"));
            continue;
        };
        for (line, used) in used_crates(&file.text) {
            if !allowed.contains(&used.as_str()) {
                failures.add(&file.path, line, format!("`{krate}` may not depend on `{used}`"));
            }
        }
    }
}

/// The `wels-*` packages in all tables of dependencies, with their lines.
fn used_crates(manifest: &str) -> Vec<(usize, String)> {
    let mut in_dependencies = false;
    let mut used = Vec::new();
    for (number, line) in (1..).zip(manifest.lines()) {
        if let Some(table) = line.strip_prefix('[') {
            in_dependencies = table.trim_end().trim_end_matches(']').ends_with("dependencies");
            // [dependencies.wels-model]
            if let Some((_, name)) = table.split_once("dependencies.wels-") {
                used.push((number, name.trim_end().trim_end_matches(']').to_string()));
            }
        } else if let Some(name) = line.strip_prefix("wels-").filter(|_| in_dependencies) {
            used.push((number, name.chars().take_while(|c| c.is_alphanumeric() || *c == '-').collect()));
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forbidden_edge_is_named() {
        let text = "[package]\nname = \"wels-model\"\n\n[dependencies]\nwels-kernels.workspace = true\n\
                    wels-data = { path = \"../data\" }\n[dev-dependencies.wels-runs]\n";
        let mut failures = Failures::default();
        check(&[File { path: "crates/model/Cargo.toml".into(), text: text.into() }], &mut failures);
        let expected = ["6: `model` may not depend on `data`", "7: `model` may not depend on `runs`"];
        assert_eq!(failures.0, expected.map(|line| format!("crates/model/Cargo.toml:{line}")));
    }
}
