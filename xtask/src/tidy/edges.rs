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
        "pipeline" => &["kernels", "model", "data", "tasks", "train", "runs"],
        "server" => &["engine", "data"],
        "cli" => &["kernels", "model", "data", "engine", "tasks", "train", "runs", "pipeline", "server"],
        _ => return None,
    })
}

/// What a crate's tests may name beside that: the server's build the tiny models that they serve.
fn allowed_in_tests(krate: &str) -> &'static [&'static str] {
    if krate == "server" { &["model"] } else { &[] }
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
        for Edge { line, used, in_tests } in used_crates(&file.text) {
            let tests_may = in_tests && allowed_in_tests(krate).contains(&used.as_str());
            if !allowed.contains(&used.as_str()) && !tests_may {
                failures.add(&file.path, line, format!("`{krate}` may not depend on `{used}`"));
            }
        }
    }
}

/// A package that a manifest names.
struct Edge {
    line: usize,
    used: String,
    in_tests: bool,
}

/// The `wels-*` packages in all tables of dependencies.
fn used_crates(manifest: &str) -> Vec<Edge> {
    let (mut in_dependencies, mut in_tests) = (false, false);
    let mut edges = Vec::new();
    for (line, text) in (1..).zip(manifest.lines()) {
        if let Some(table) = text.strip_prefix('[') {
            in_dependencies = table.trim_end().trim_end_matches(']').ends_with("dependencies");
            in_tests = table.contains("dev-dependencies");
            // [dependencies.wels-model]
            if let Some((_, name)) = table.split_once("dependencies.wels-") {
                edges.push(Edge { line, used: name.trim_end().trim_end_matches(']').to_string(), in_tests });
            }
        } else if let Some(name) = text.strip_prefix("wels-").filter(|_| in_dependencies) {
            let used = name.chars().take_while(|c| c.is_alphanumeric() || *c == '-').collect();
            edges.push(Edge { line, used, in_tests });
        }
    }
    edges
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

    #[test]
    fn some_edges_are_for_tests_alone() {
        let text = "[dependencies]\nwels-model.workspace = true\n[dev-dependencies]\nwels-model.workspace = true\n";
        let mut failures = Failures::default();
        check(&[File { path: "crates/server/Cargo.toml".into(), text: text.into() }], &mut failures);
        assert_eq!(failures.0, ["crates/server/Cargo.toml:2: `server` may not depend on `model`"]);
    }
}
