//! Whether a run has room in its device's own memory: said before it begins, with what would fit.

use anyhow::Result;
use wels_device::{Device, DeviceMemory, Dtype, Precision};
use wels_runs::plan::{self, Activations, RunPlan};
use wels_runs::recipe::{PRETRAIN, Recipe};

use crate::refusal::refuse;
use crate::words::short;

/// Refuses a plan of which a stage takes more than the device has left. Stages for which `fits` says so are not looked
/// at; a device whose memory is the host's has none to look at.
///
/// # Errors
/// A refusal that names the stage, and says what to change.
pub(crate) fn check(
    recipe: &Recipe,
    expected: &RunPlan,
    device: &dyn Device,
    fits: impl Fn(&str) -> bool,
) -> Result<()> {
    device
        .memory()
        .map_or(Ok(()), |memory| check_in(memory, (&device.in_words(), activations_of(device)), recipe, expected, fits))
}

/// How a device keeps activations in bf16.
pub(crate) fn activations_of(device: &dyn Device) -> Activations {
    match device.activations(Precision::Bf16) {
        Dtype::F32 => Activations::F32,
        Dtype::Bf16 => Activations::Bf16,
    }
}

fn check_in(
    memory: DeviceMemory,
    (device, activations): (&str, Activations),
    recipe: &Recipe,
    expected: &RunPlan,
    fits: impl Fn(&str) -> bool,
) -> Result<()> {
    let left: Vec<_> = expected.stages.iter().filter(|stage| !fits(&stage.stage)).collect();
    let Some(stage) = left.into_iter().find(|stage| stage.memory_bytes > memory.free) else { return Ok(()) };
    let bytes = |bytes: u64| format!("{}B", short(bytes as f64));
    let message = format!(
        "the stage {} takes {} of memory, and {} has {} left of {}",
        stage.stage,
        bytes(stage.memory_bytes),
        device,
        bytes(memory.free),
        bytes(memory.total),
    );
    Err(refuse(message, hint(recipe, activations, &stage.stage, memory)))
}

fn hint(recipe: &Recipe, activations: Activations, stage: &str, memory: DeviceMemory) -> String {
    if stage != PRETRAIN {
        return "give the stage a smaller micro_rows, or start from a smaller model".into();
    }
    match smaller(recipe, activations, memory.free) {
        Some((change, bytes)) => format!("{change} in the recipe takes {}B, with the same result", short(bytes as f64)),
        None => "the weights, their gradients and the optimizer alone are too much; give [model] fewer or narrower \
                 layers, or leave --device out to compute with the processor"
            .into(),
    }
}

/// What of `[pretrain]` to change so that it takes no more than so many bytes, and how many: fewer sequences at a time,
/// or layers that are computed again.
fn smaller(recipe: &Recipe, activations: Activations, most: u64) -> Option<(String, u64)> {
    let takes = |micro_batch: usize, again: bool| {
        let mut other = recipe.clone();
        other.pretrain.micro_batch = micro_batch;
        if again {
            other.pretrain.recompute_layers = (0..recipe.model.config().layers).collect();
        }
        plan::pretraining(&other, activations).memory.total
    };
    let now = recipe.pretrain.micro_batch;
    let halves = || std::iter::successors(Some(now), |n| (*n > 1).then_some(n / 2));
    let fewer = halves().skip(1).map(|n| (format!("pretrain.micro_batch = {n}"), takes(n, false)));
    let again = "pretrain.recompute_layers = \"all\"";
    let computed_again = halves().map(|n| {
        let besides = if n == now { String::new() } else { format!(" and pretrain.micro_batch = {n}") };
        (format!("{again}{besides}"), takes(n, true))
    });
    fewer.chain(computed_again).find(|(_, bytes)| *bytes <= most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast::{Rates, forecast};
    use crate::host::Silent;

    fn recipe() -> Recipe {
        let text = include_str!("../../../bench/gpu/dense-500m.toml");
        Recipe::parse("r.toml", text, std::path::Path::new("/data")).unwrap()
    }

    #[test]
    fn the_least_change_that_fits_is_named() {
        let recipe = recipe();
        let whole = plan::pretraining(&recipe, Activations::F32).memory.total;
        let change = |most: u64| {
            smaller(&recipe, Activations::F32, most).map(|(change, bytes)| {
                assert!(bytes <= most);
                change
            })
        };
        assert_eq!(change(whole - 1).as_deref(), Some("pretrain.micro_batch = 2"));
        assert_eq!(change(whole / 2).as_deref(), Some("pretrain.micro_batch = 1"));
        let again = "pretrain.recompute_layers = \"all\" and pretrain.micro_batch = 2";
        assert_eq!(change(10 << 30).as_deref(), Some(again));
        assert_eq!(change(1 << 30), None);
        let said = hint(&recipe, Activations::F32, PRETRAIN, DeviceMemory { total: 1 << 30, free: 1 << 30, peak: 0 });
        assert!(said.contains("fewer or narrower layers"), "{said}");
    }

    #[test]
    fn a_stage_that_does_not_fit_is_refused_and_one_that_has_run_is_not() {
        let recipe = recipe();
        let device = wels_cpu::device();
        let expected = forecast(&recipe, None, &device, Rates::Known, &mut Silent);
        let memory = DeviceMemory { total: 24 << 30, free: 20 << 30, peak: 0 };
        let check = |memory, fits: bool| check_in(memory, ("a card", Activations::F32), &recipe, &expected, |_| fits);
        let error = check(memory, false).unwrap_err();
        let said = error.to_string();
        assert!(said.starts_with("the stage pretrain takes 28.9GB of memory, and a card has 21.5GB left of"), "{said}");
        let hint = error.downcast_ref::<crate::refusal::Refusal>().unwrap().hint();
        assert!(hint.starts_with("pretrain.micro_batch = 2 in the recipe takes"), "{hint}");
        check(memory, true).unwrap();
        check(DeviceMemory { free: 80 << 30, ..memory }, false).unwrap();
        super::check(&recipe, &expected, &*device, |_| false).unwrap(); // the host's memory is not looked at
    }
}
