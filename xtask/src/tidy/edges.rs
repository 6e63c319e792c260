//! Which crate may use which.

use std::collections::BTreeSet;

use super::{Failures, File};

/// The page with the table for people.
const PAGE: &str = "ARCHITECTURE.md";

/// The crates that a crate may name in its `Cargo.toml`; `None` for a crate that the architecture does not know.
fn allowed(krate: &str) -> Option<&'static [&'static str]> {
    Some(match krate {
        "kernels" | "data" | "comm" | "hub" => &[],
        "device" => &["kernels"],
        // The processor's tests may choose the emulator of cards.
        "cpu" => &["device", "kernels", "comm", "cuda"],
        "cuda" => &["device", "kernels"],
        "model" => &["device"],
        "engine" => &["model", "data", "device", "kernels"],
        "tasks" => &["engine", "data"],
        "train" => &["model", "engine", "tasks", "data", "device", "comm"],
        "mpi" => &["comm"],
        "runs" => &["data", "model"],
        "pipeline" => &["model", "data", "tasks", "train", "runs", "device", "cpu", "comm", "kernels", "hub", "scenes"],
        "server" => &["engine", "data"],
        "agent" => &["tasks", "data"],
        "scenes" => &["data"],
        "cli" => &[
            "kernels", "device", "cpu", "cuda", "comm", "model", "data", "engine", "tasks", "train", "runs",
            "pipeline", "server", "hub", "agent", "scenes", "mpi",
        ],
        _ => return None,
    })
}

/// What a crate's tests may name beside that: a device to compute with, threads and instruction sets to compare, and
/// the server's the tiny models that they serve.
fn allowed_in_tests(krate: &str) -> &'static [&'static str] {
    match krate {
        "cuda" => &["cpu"],
        "engine" => &["cpu", "kernels", "comm"],
        "model" | "train" => &["cpu", "kernels"],
        "server" => &["model", "cpu"],
        _ => &[],
    }
}

/// Checks every `crates/NAME/Cargo.toml`.
pub fn check(files: &[File], failures: &mut Failures) {
    let mut crates = Vec::new();
    for file in files {
        let Some(krate) = file.path.strip_prefix("crates/").and_then(|path| path.strip_suffix("/Cargo.toml")) else {
            continue;
        };
        crates.push(krate);
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
    if let Some(page) = files.iter().find(|file| file.path == PAGE) {
        check_table(page, &crates, failures);
    }
}

/// The page's table has a row for each crate, and says there what [`allowed`] says.
fn check_table(page: &File, crates: &[&str], failures: &mut Failures) {
    let mut missing: BTreeSet<&str> = crates.iter().copied().collect();
    for (number, line) in (1..).zip(page.text.lines()) {
        let cells: Vec<&str> = line.trim_matches(['|', ' ']).split(" | ").collect();
        let [names, uses] = cells[..] else { continue };
        for name in names.split(", ") {
            let Some(allowed) = allowed(name) else { continue };
            missing.remove(name);
            let said: BTreeSet<&str> = match uses {
                "none" => BTreeSet::new(),
                "all" => crates.iter().copied().filter(|other| *other != name).collect(),
                _ => uses.split(", ").collect(),
            };
            if said != allowed.iter().copied().collect() {
                failures.add(&page.path, number, format!("`{name}` may use other crates than the table says"));
            }
        }
    }
    for name in missing {
        failures.add(&page.path, 1, format!("the table of crates has no row for `{name}`"));
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
        let text = "[package]\nname = \"wels-model\"\n\n[dependencies]\nwels-device.workspace = true\n\
                    wels-data = { path = \"../data\" }\n[dev-dependencies.wels-runs]\n";
        let mut failures = Failures::default();
        check(&[File { path: "crates/model/Cargo.toml".into(), text: text.into() }], &mut failures);
        let expected = ["6: `model` may not depend on `data`", "7: `model` may not depend on `runs`"];
        assert_eq!(failures.0, expected.map(|line| format!("crates/model/Cargo.toml:{line}")));
    }

    #[test]
    fn the_table_says_the_same() {
        let table = "| crate | may use |\n|---|---|\n| kernels, data | none |\n| model | device |\n| runs | data |\n| cli | all |\n";
        let page = File { path: PAGE.into(), text: table.into() };
        let mut failures = Failures::default();
        let crates = [
            "kernels", "data", "model", "runs", "cli", "engine", "tasks", "train", "server", "device", "cpu", "cuda",
            "comm", "pipeline", "hub", "agent", "scenes", "mpi",
        ];
        check_table(&page, &crates, &mut failures);
        let mut expected = vec!["5: `runs` may use other crates than the table says".to_owned()];
        expected.extend(
            [
                "agent", "comm", "cpu", "cuda", "device", "engine", "hub", "mpi", "pipeline", "scenes", "server",
                "tasks", "train",
            ]
            .map(|name| format!("1: the table of crates has no row for `{name}`")),
        );
        assert_eq!(failures.0, expected.iter().map(|line| format!("{PAGE}:{line}")).collect::<Vec<_>>());
    }

    #[test]
    fn some_edges_are_for_tests_alone() {
        let text = "[dependencies]\nwels-model.workspace = true\n[dev-dependencies]\nwels-model.workspace = true\n";
        let mut failures = Failures::default();
        check(&[File { path: "crates/server/Cargo.toml".into(), text: text.into() }], &mut failures);
        assert_eq!(failures.0, ["crates/server/Cargo.toml:2: `server` may not depend on `model`"]);
    }
}
