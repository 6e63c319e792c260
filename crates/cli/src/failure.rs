//! Failures, as the user sees them: one sentence, a hint, an exit code.

use std::io;
use std::process::ExitCode;

use wels_comm::Lost;
use wels_data::corpus::CorpusError;
use wels_data::shards::ShardError;
use wels_hub::HubError;
use wels_model::adapter::AdapterError;
use wels_model::gguf::GgufError;
use wels_model::weights::WeightsError;
use wels_pipeline::meeting::Silenced;
use wels_pipeline::refusal::Refusal;
use wels_pipeline::session::Stopped;
use wels_runs::plan::PlanError;
use wels_runs::recipe::RecipeError;
use wels_runs::rundir::{RunError, io_hint};
use wels_server::ledger::LedgerError;
use wels_tasks::TaskError;
use wels_train::rl::RlError;
use wels_train::trainer::StepError;

use crate::output;

/// Writes the error and its hint to stderr, and gives the exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if is_closed_pipe(error) {
        return ExitCode::SUCCESS;
    }
    if error.is::<Silenced>() {
        return ExitCode::from(1);
    }
    eprintln!("error: {}", sentence(error));
    if let Some(hint) = error.chain().find_map(hint) {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(code(error))
}

/// The exit code of a program that ends with this error.
pub fn code(error: &anyhow::Error) -> u8 {
    if is_the_machine(error) { 2 } else { 1 }
}

/// The chain as one sentence. Some messages say what their cause says; it is said once.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        match text.is_empty() {
            true => text = cause,
            false if text.ends_with(&cause) => {}
            false => text = format!("{text}: {cause}"),
        }
    }
    text
}

fn hint(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    macro_rules! hints {
        ($($kind:ty: $hint:expr),* $(,)?) => {
            $(if let Some(error) = cause.downcast_ref::<$kind>() {
                return ($hint)(error);
            })*
        };
    }
    hints! {
        Lost: |_: &Lost| Some("the same command starts all ranks again".into()),
        Refusal: |e: &Refusal| Some(e.hint().to_string()),
        Stopped: |e: &Stopped| Some(e.hint()),
        RecipeError: RecipeError::hint,
        RunError: RunError::hint,
        PlanError: PlanError::hint,
        ShardError: |e: &ShardError| Some(e.hint().to_string()),
        CorpusError: |e: &CorpusError| Some(e.hint().to_string()),
        WeightsError: |e: &WeightsError| Some(weights_hint(e).to_string()),
        AdapterError: |e: &AdapterError| Some(e.hint().to_string()),
        GgufError: |e: &GgufError| Some(gguf_hint(e).to_string()),
        HubError: HubError::hint,
        LedgerError: |e: &LedgerError| e.hint().map(str::to_string),
        StepError: |e: &StepError| Some(e.hint()),
        RlError: rl_hint,
        TaskError: task_hint,
        io::Error: |e: &io::Error| io_hint(e).map(str::to_string),
    }
    None
}

fn rl_hint(error: &RlError) -> Option<String> {
    match error {
        RlError::Task(error) => task_hint(error),
        RlError::Step(error) => Some(error.hint()),
        _ => None,
    }
}

fn task_hint(error: &TaskError) -> Option<String> {
    match error {
        TaskError::Checker { .. } => Some(
            "docs/tasks.md says what it is asked and has to answer; what it writes to stderr stands above; more time is \
             checker_seconds"
                .into(),
        ),
        TaskError::Environment { .. } => Some(
            "docs/environments.md says what it is asked and has to answer; what it writes to stderr stands above; more \
             time is checker_seconds. Once it is mended, the same command goes on"
                .into(),
        ),
        TaskError::Io { source, .. } => io_hint(source).map(str::to_string),
        _ => None,
    }
}

fn weights_hint(error: &WeightsError) -> &'static str {
    match error {
        WeightsError::Io { source, .. } => io_hint(source).unwrap_or("check the path"),
        WeightsError::NoWeights { .. } => "give a directory with config.json and safetensors files",
        WeightsError::Config { .. } => {
            "docs/guide.md#formats lists the model families that are read, and what of them is not"
        }
        WeightsError::Occupied { .. } => "choose an empty directory",
        WeightsError::Mismatch { .. } => "config.json and the weights have to come from the same model",
        WeightsError::File { .. } | WeightsError::Index { .. } | WeightsError::TooLarge { .. } => {
            "fetch the file again"
        }
    }
}

fn gguf_hint(error: &GgufError) -> &'static str {
    match error {
        GgufError::Io { source, .. } => io_hint(source).unwrap_or("check the path"),
        GgufError::File { .. } => "fetch the file again",
        GgufError::Split { .. } => "put all parts into one directory, under the names they were published with",
        GgufError::Config { .. } | GgufError::Architecture { .. } => "use a file of a model that is supported",
        GgufError::Occupied { .. } => "choose another name",
        GgufError::Mismatch { .. } => {
            "docs/guide.md#formats lists the number formats that are read; the file has to have all tensors of its model"
        }
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref().is_some_and(output::is_closed))
}

/// Whether the system failed in a way that the user did not cause: an I/O error that is about neither a path, nor
/// permissions, nor space.
fn is_the_machine(error: &anyhow::Error) -> bool {
    use io::ErrorKind::*;
    let users = [
        NotFound,
        PermissionDenied,
        AlreadyExists,
        InvalidInput,
        InvalidData,
        UnexpectedEof,
        NotADirectory,
        IsADirectory,
        DirectoryNotEmpty,
        ReadOnlyFilesystem,
        StorageFull,
        QuotaExceeded,
        FileTooLarge,
        InvalidFilename,
    ];
    let lost = error.chain().any(|cause| cause.is::<Lost>());
    lost || error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| !users.contains(&error.kind()))
}
