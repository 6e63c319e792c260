//! Ids of repositories: `ORG/NAME` of a model, `datasets/ORG/NAME` of a dataset, as in addresses.

const DATASETS: &str = "datasets/";

/// Whether an id is that of a dataset.
pub fn is_dataset(id: &str) -> bool {
    id.starts_with(DATASETS)
}

/// An id with what it is of, for messages.
pub fn in_words(id: &str) -> String {
    id.strip_prefix(DATASETS).map_or_else(|| format!("model {id}"), |id| format!("dataset {id}"))
}
