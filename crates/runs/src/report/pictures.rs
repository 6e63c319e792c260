//! What stages of pictures show in a report: sheets of what they made along the way, and how models were graded.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::PICTURES;
use super::chart::escape;
use crate::files;

/// Sheets of a stage that a page shows, spread evenly, the last among them.
const SHEETS: usize = 4;
/// The largest file that is shown.
const SHEET_BYTES_MAX: u64 = 4 << 20;

/// Pictures of a stage.
#[derive(Debug)]
pub struct Sheets {
    pub stage: String,
    /// Names without their ending, and PNG files.
    pub files: Vec<(String, Vec<u8>)>,
}

/// How many of some were right.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Share {
    pub right: u64,
    pub of: u64,
}

/// How a model that draws and sees was graded.
#[derive(Clone, Debug, Deserialize)]
pub struct Drawn {
    pub model: String,
    /// Pictures to captions like those of training, by kind.
    pub seen: BTreeMap<String, Share>,
    /// Pictures to captions that training never had, by kind.
    pub unseen: BTreeMap<String, Share>,
    /// Questions about pictures, by what they are about.
    pub answers: BTreeMap<String, Share>,
    pub reconstructed: Share,
}

/// The sheets of the stage in `folder`, if it has any.
pub(super) fn sheets(stage: &str, folder: &Path) -> Option<Sheets> {
    let entries = std::fs::read_dir(folder.join(PICTURES)).ok()?;
    let paths = entries.flatten().map(|entry| entry.path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|ending| ending == "png")).collect();
    paths.sort();
    let last = paths.len().saturating_sub(1);
    let shown: BTreeSet<usize> = (1..=SHEETS).map(|n| n * last / SHEETS).collect();
    let read = |path: &Path| {
        let name = path.file_stem()?.to_str()?.to_owned();
        Some((name, files::read(path, SHEET_BYTES_MAX).ok()?))
    };
    let files: Vec<_> = shown.into_iter().filter_map(|at| read(paths.get(at)?)).collect();
    (!files.is_empty()).then(|| Sheets { stage: stage.to_owned(), files })
}

/// All sheets, as a part of the page.
pub(super) fn of_sheets(all: &[Sheets]) -> String {
    let mut html = String::new();
    for Sheets { stage, files } in all {
        let _ = write!(html, "<h2>Pictures of {}</h2>\n<div class=\"side\">", escape(stage));
        for (name, bytes) in files {
            let words = escape(&name.replace('-', " "));
            let _ = write!(
                html,
                "<figure><img class=\"sheet\" alt=\"Pictures of {}, {words}\" src=\"data:image/png;base64,{}\">\
                 <figcaption>{words}</figcaption></figure>",
                escape(stage),
                STANDARD.encode(bytes)
            );
        }
        html += "</div>\n";
    }
    html
}

/// The grades, a column a model.
pub(super) fn of_grades(models: &[Drawn]) -> String {
    if models.is_empty() {
        return String::new();
    }
    let mut html = "<h2>Drawn and seen</h2>\n<div class=\"wide\"><table><tr><th>right</th>".to_owned();
    for it in models {
        let _ = write!(html, "<th class=\"n\">{}</th>", escape(&it.model));
    }
    html += "</tr>\n";
    let mut row = |name: &str, share: &dyn Fn(&Drawn) -> Option<Share>| {
        let _ = write!(html, "<tr><td>{}</td>", escape(name));
        for it in models {
            let words = share(it).filter(|share| share.of > 0);
            let words = words.map_or("–".into(), |it| format!("{:.1}%", 100.0 * it.right as f64 / it.of as f64));
            let _ = write!(html, "<td class=\"n\">{words}</td>");
        }
        html += "</tr>\n";
    };
    type Part = fn(&Drawn) -> &BTreeMap<String, Share>;
    let parts: [(&str, Part); 2] =
        [("captions like those of training", |it| &it.seen), ("captions never seen", |it| &it.unseen)];
    for (name, part) in parts {
        row(name, &|it| Some(sum(part(it).values())));
        let kinds: BTreeSet<&String> = models.iter().flat_map(|it| part(it).keys()).collect();
        for kind in kinds {
            row(&format!("· {}", kind.replace('_', " ")), &|it| part(it).get(kind).copied());
        }
    }
    row("questions about pictures never seen", &|it| Some(sum(it.answers.values())));
    let sorts: BTreeSet<&String> = models.iter().flat_map(|it| it.answers.keys()).collect();
    for sort in sorts {
        row(&format!("· {sort}"), &|it| it.answers.get(sort).copied());
    }
    row("pictures as codes and back", &|it| Some(it.reconstructed));
    html + "</table></div>\n"
}

fn sum<'a>(shares: impl Iterator<Item = &'a Share>) -> Share {
    shares.fold(Share { right: 0, of: 0 }, |sum, it| Share { right: sum.right + it.right, of: sum.of + it.of })
}
