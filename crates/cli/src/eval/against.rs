//! `wels eval --bench … --against CORPUS`: which items of a benchmark a corpus holds.

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;
use wels_data::corpus::{Corpus, ReadOptions};
use wels_tasks::benchmarks::read;
use wels_tasks::overlap::Index;

use super::Named;
use crate::output;
use crate::progress::Progress;

/// Examples that are shown of each benchmark.
const SHOWN: usize = 5;

#[derive(Serialize)]
struct Overlap {
    documents: u64,
    benchmarks: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    items: usize,
    /// With fewer than 8 words.
    too_short: usize,
    /// Items of which a run of words is in the corpus.
    contaminated: Vec<Contaminated>,
}

#[derive(Serialize)]
struct Contaminated {
    item: String,
    /// Of the item's runs of 13 words, those in the corpus.
    share: f64,
    /// The first document that has one.
    document: String,
    words: String,
}

/// Reads the corpus once, looking for the items of all benchmarks.
pub fn against(named: &[Named], corpus: &[PathBuf], json: bool) -> Result<()> {
    let mut indices = Vec::new();
    for named in named {
        let mut index = Index::default();
        read(named.benchmark, &named.file)?.iter().for_each(|question| index.add(&question.id, &question.text));
        indices.push(index);
    }
    let corpus = Corpus::open_all(corpus, ReadOptions::default())?;
    let mut progress = Progress::new("corpus", "documents", 0, None);
    let mut documents = 0;
    for source in corpus.sources() {
        for (number, document) in Corpus::open(&source.path, ReadOptions::default())?.documents().enumerate() {
            let (name, document) = (format!("{}, document {}", source.name, number + 1), document?);
            indices.iter_mut().for_each(|index| index.search(&name, &document));
            documents += 1;
            progress.at(documents, || source.name.clone());
        }
    }
    progress.finish(&format!("{documents} documents"));
    let rows = named.iter().zip(&indices).map(|(named, index)| row(&named.name, index)).collect();
    let overlap = Overlap { documents, benchmarks: rows };
    match json {
        true => output::json(&overlap)?,
        false => overlap.print()?,
    }
    Ok(())
}

fn row(name: &str, index: &Index) -> Row {
    let contaminated = index.items().iter().filter_map(|item| {
        let (document, words) = item.example.clone()?;
        Some(Contaminated { item: item.id.clone(), share: item.found as f64 / item.runs as f64, document, words })
    });
    Row {
        name: name.to_owned(),
        items: index.items().len(),
        too_short: index.items().iter().filter(|item| item.runs == 0).count(),
        contaminated: contaminated.collect(),
    }
}

impl Overlap {
    fn print(&self) -> std::io::Result<()> {
        for Row { name, items, too_short, contaminated } in &self.benchmarks {
            let share = 100.0 * contaminated.len() as f64 / (*items).max(1) as f64;
            output::line(&format!(
                "{name:<16} {} of {items} items ({share:.1}%) share 13 words in a row with the corpus; {too_short} are too \
                 short to say",
                contaminated.len(),
            ))?;
            let mut worst: Vec<&Contaminated> = contaminated.iter().collect();
            worst.sort_by(|a, b| b.share.total_cmp(&a.share));
            for Contaminated { item, share, document, words } in worst.iter().take(SHOWN) {
                output::line(&format!("  {item}: {:.0}% of it, in {document}: {words:?}", share * 100.0))?;
            }
            if contaminated.len() > SHOWN {
                output::line(&format!("  and {} more; all of them with --json", contaminated.len() - SHOWN))?;
            }
        }
        Ok(())
    }
}
