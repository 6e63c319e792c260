//! The published figures of costs, rates and sizes, each to its last digit.

use wels_model::config::{Dtype, ModelConfig};
use wels_model::count::{self, Context};
use wels_model::presets;
use wels_runs::plan::claims::{self, Finding, Verdict};
use wels_runs::plan::devices::{Device, Devices, ProductFormat};
use wels_runs::plan::prices::Prices;
use wels_runs::plan::{serving, training};

fn preset(name: &str) -> ModelConfig {
    presets::preset(name).unwrap()
}

fn device(name: &str) -> Device {
    Devices::built_in().get(name).unwrap().clone()
}

fn examine(name: &str) -> Finding {
    claims::examine(name, &Devices::built_in()).unwrap()
}

/// `number` with so many digits after the point.
fn to(digits: usize, number: f64) -> String {
    format!("{number:.digits$}")
}

fn computed(finding: &Finding, what: &str) -> f64 {
    finding.check(what).unwrap_or_else(|| panic!("{what} among {:#?}", finding.checks)).computed
}

#[test]
fn the_claim_of_deepseek_v3_adds_up() {
    let finding = examine("deepseek-v3");
    assert!(finding.adds_up, "{finding:#?}");
    let holds = [
        ("hours of pre-training", 2_664e3),
        ("cost of pre-training", 5.328e6),
        ("cost of context extension", 0.238e6),
        ("cost of post-training", 0.01e6),
        ("hours in all", 2_788e3),
        ("cost in all", 5.576e6),
    ];
    for (what, value) in holds {
        let check = finding.check(what).unwrap();
        assert_eq!((check.claimed, check.computed, check.verdict), (Some(value), value, Verdict::Holds), "{what}");
    }
    let figures = [
        ("parameters", 0, "671026419200"),
        ("parameters activated by a token", 0, "36625618432"),
        ("days of pre-training", 1, "54.2"),
        ("tokens a second and device", 1, "1543.2"),
        ("operations a token, training", 3, "250.457"),
        ("operations a second and device", 1, "386.5"),
        ("utilisation of the bf16 peak, causal", 2, "39.06"),
        ("the same with multi-token prediction", 2, "40.65"),
        ("the same, all keys counted", 2, "43.85"),
        ("utilisation of the FP8 peak", 1, "19.5"),
        ("utilisation over all hours", 1, "37.3"),
        ("measured step: tokens a second and device", 1, "1541.7"),
        ("cost if it were 278,800 h", 0, "557600"),
    ];
    for (what, digits, value) in figures {
        assert_eq!(to(digits, computed(&finding, what)), value, "{what}");
    }
    assert_eq!(format!("{:.2e}", computed(&finding, "operations in all")), "3.71e24");
    assert_eq!(format!("{:.2e}", computed(&finding, "operations in all, with multi-token prediction")), "3.86e24");
    assert_eq!(format!("{:.2e}", computed(&finding, "operations by the rule 6·N·D")), "3.25e24");
    assert_eq!(format!("{:.2e}", 6.0 * 36.7e9 * 14.8e12), "3.26e24", "the rule with N as it is printed");
    assert_eq!(to(1, finding.check("measured step: tokens a second and device").unwrap().claimed.unwrap()), "1541.7");
    let misquoted = finding.check("cost if it were 278,800 h").unwrap();
    assert!(misquoted.how.starts_with("impossible: 373% of the peak"), "{}", misquoted.how);
}

#[test]
fn llama_stands_beside_it() {
    let finding = examine("deepseek-v3");
    let [llama] = &finding.beside[..] else { panic!("{:#?}", finding.beside) };
    assert!(llama.adds_up, "{llama:#?}");
    assert_eq!(computed(llama, "hours in all"), 30.84e6);
    assert_eq!(to(1, computed(llama, "hours in all") / computed(&finding, "hours in all")), "11.1");
    // Published: 38 to 43% while training; hours in all have more in them.
    let used = computed(llama, "utilisation of the bf16 peak, causal");
    assert!((30.0..43.0).contains(&used), "{used}");
    assert_eq!(to(0, computed(llama, "parameters") / 1e9), "406");
}

#[test]
fn other_claims() {
    let v2 = examine("deepseek-v2");
    let figures = [
        ("operations a token, training", 3, "155.311"),
        ("tokens a second and device", 1, "1607.5"),
        ("operations a second and device", 1, "249.7"),
        ("utilisation of the bf16 peak, causal", 1, "25.2"),
    ];
    for (what, digits, value) in figures {
        assert_eq!(to(digits, computed(&v2, what)), value, "{what}");
    }
    let r1 = examine("deepseek-r1");
    assert!(r1.adds_up, "{r1:#?}");
    assert_eq!(computed(&r1, "hours of R1-Zero"), 101_376.0);
    assert_eq!(computed(&r1, "hours of R1"), 40_960.0);
    assert_eq!((computed(&r1, "hours in all"), computed(&r1, "cost in all")), (147e3, 294e3));
    assert_eq!(
        ["R1-Zero", "SFT data", "R1"].map(|part| computed(&r1, &format!("cost of {part}"))),
        [202e3, 10e3, 82e3]
    );
    assert_eq!(computed(&r1, "outputs of R1-Zero"), 5_324_800.0);
}

#[test]
fn the_margin_of_the_service() {
    let finding = examine("deepseek-serving");
    assert!(finding.adds_up, "{finding:#?}");
    let figures = [
        ("cost of a day", 0, "87072"),
        ("theoretical revenue of a day", 0, "562100"),
        ("margin over cost", 0, "545"),
        ("the same from the rounded tokens", 1, "545.6"),
        ("input found in the cache", 2, "56.25"),
        ("output tokens a second and device", 0, "1850"),
        ("decoding, operations a second and device", 0, "292"),
        ("sequences side by side on a device", 0, "88"),
        ("their caches", 1, "30.9"),
        ("prefill, operations a second and device", 0, "336"),
    ];
    for (what, digits, value) in figures {
        assert_eq!(to(digits, computed(&finding, what)), value, "{what}");
    }
}

#[test]
fn a_claim_that_does_not_add_up_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("claim.toml");
    let original = include_str!("../../data/claims/deepseek-v3.toml");
    for (from, to, what) in [
        ("total_hours = 2788e3", "total_hours = 278_800", "hours in all"),
        ("usd = 0.238e6", "usd = 0.239e6", "cost of context extension"),
        ("hours_per_trillion_tokens = 180e3", "hours_per_trillion_tokens = 18e3", "hours of pre-training"),
        ("tokens = 14.8e12", "tokens = 148e12", "utilisation of the bf16 peak, causal"),
        ("activated = 37e9", "activated = 3.7e9", "parameters activated by a token"),
        ("tokens_per_day = 272.80e9", "tokens_per_day = 280e9", "measured step: tokens a second and device"),
    ] {
        assert!(original.contains(from), "{from}");
        std::fs::write(&file, original.replacen(from, to, 1)).unwrap();
        let finding = claims::examine(file.to_str().unwrap(), &Devices::built_in()).unwrap();
        assert!(!finding.adds_up && finding.check(what).unwrap().verdict == Verdict::Fails, "{what}: {finding:#?}");
    }
    let error = claims::examine("deepseek-v4", &Devices::built_in()).unwrap_err();
    assert!(error.hint().unwrap().starts_with("did you mean 'deepseek-v"), "{error}");
}

#[test]
fn training_of_deepseek_v3() {
    let config = preset("deepseek-v3");
    let plan = |devices, utilisation, precision| {
        training::training(
            &config,
            &training::Assumptions {
                tokens: 14.8e12,
                sequence_length: 4096,
                device: device("h800"),
                devices,
                utilisation,
                precision,
            },
        )
    };
    // 40.65% of the bf16 peak with multi-token prediction counted is what the published hours imply.
    let plan = plan(2048, 0.4065, ProductFormat::Bf16);
    assert_eq!(to(3, plan.flops_per_token.total / 1e9), "260.649");
    assert_eq!(format!("{:.2e}", plan.flops), "3.86e24");
    assert!((plan.device_hours / 2_664e3 - 1.0).abs() < 2e-4, "{}", plan.device_hours);
    assert!((plan.usd / 5.328e6 - 1.0).abs() < 2e-4, "{}", plan.usd);
    assert_eq!(to(1, plan.days), "54.2");

    let fp8 = memory_of(&config, ProductFormat::Fp8);
    let trillions = |bytes: f64| to(3, bytes / 1e12);
    assert_eq!(trillions(fp8.master_weights), "2.731");
    assert_eq!(trillions(fp8.gradients), "2.731");
    assert_eq!(trillions(fp8.optimizer / 2.0), "1.365");
    assert_eq!(trillions(fp8.working_weights), "0.683");
    assert_eq!(trillions(memory_of(&config, ProductFormat::Bf16).working_weights), "1.365");
    assert_eq!(to(2, (fp8.master_weights + fp8.optimizer) / 2048.0 / 1e9), "2.67");
    let all = |memory: &training::Memory| {
        memory.working_weights + memory.master_weights + memory.gradients + memory.optimizer
    };
    let parameters = 682_636_487_424.0;
    assert_eq!(all(&fp8) / parameters, 13.0);
    assert_eq!(all(&memory_of(&config, ProductFormat::F32)) / parameters, 16.0);
    assert!(fp8.fits && fp8.fewest_devices.unwrap() < 2048);
    let few = training::training(
        &config,
        &training::Assumptions { devices: fp8.fewest_devices.unwrap() - 1, ..plan.assumptions.clone() },
    );
    assert!(!few.memory.fits);
}

fn memory_of(config: &ModelConfig, precision: ProductFormat) -> training::Memory {
    let assumptions = training::Assumptions {
        tokens: 1e12,
        sequence_length: 4096,
        device: device("h800"),
        devices: 2048,
        utilisation: 0.4,
        precision,
    };
    training::training(config, &assumptions).memory
}

#[test]
fn forward_operations_of_long_contexts_and_of_decoding() {
    let config = preset("deepseek-v3");
    let billions = |context| count::forward_flops(&config, context).total().0 as f64 / 1e9;
    assert_eq!(to(3, billions(Context::Causal { tokens: 4096 })), "83.486");
    assert_eq!(to(3, 3.0 * billions(Context::Causal { tokens: 4096 })), "250.457");
    assert_eq!(to(3, 3.0 * billions(Context::NonCausal { tokens: 4096 })), "281.152");
    assert_eq!(to(2, billions(Context::Causal { tokens: 4096 })), "83.49");
    assert_eq!(to(1, billions(Context::Causal { tokens: 32_768 })), "155.1");
    assert_eq!(to(1, billions(Context::Causal { tokens: 131_072 })), "400.7");
    assert_eq!(to(3, billions(Context::DecodeAbsorbed { keys: 0 })), "73.249");
    assert_eq!(to(1, billions(Context::DecodeAbsorbed { keys: 4_989 })), "158.0");
    let core = |keys| count::forward_flops(&config, Context::DecodeAbsorbed { keys }).attention_core.0;
    assert_eq!(to(3, core(1) as f64 / 1e6), "16.990");
    let counts = count::params(&config);
    assert_eq!(counts.routed_experts.0, 653_908_770_816);
    assert_eq!(to(2, 100.0 * counts.routed_experts.0 as f64 / counts.total.0 as f64), "97.45");
    // Over 16 pipeline stages and 64-fold expert parallelism.
    assert_eq!(to(1, counts.routed_experts.0 as f64 / 1024.0 / 1e6), "638.6");
    assert_eq!(to(3, (counts.total.0 - counts.routed_experts.0) as f64 / 1e9), "17.118");
    let checkpoint = count::checkpoint(&config, Dtype::Fp8);
    assert_eq!(to(3, checkpoint.bytes().0 as f64 / (1u64 << 30) as f64), "641.285");
}

#[test]
fn serving_deepseek_v3() {
    let config = preset("deepseek-v3");
    let prices = Prices::built_in();
    let assumptions = serving::Assumptions {
        device: device("h800"),
        devices: None,
        precision: ProductFormat::Fp8,
        context: 4_989,
        prompt: 4_096,
        batch: None,
        utilisation: 0.5,
    };
    let plan = serving::serving(&config, &assumptions, prices.iter());
    assert_eq!(plan.cache_bytes_per_token, 70_272.0);
    assert_eq!(to(2, 131_072.0 * plan.cache_bytes_per_token / 1e9), "9.21");
    assert_eq!(to(2, 163_840.0 * plan.cache_bytes_per_token / 1e9), "11.51");
    assert_eq!(to(1, plan.core_flops_per_byte), "241.8");
    assert_eq!(to(1, plan.decode_flops_per_token / 1e9), "158.0");
    assert!(plan.devices as f64 * 0.9 * 80e9 > plan.weights_bytes && plan.sequences_that_fit > 0);
    let bound = plan.decode_bound_by_bandwidth.min(plan.decode_bound_by_arithmetic);
    assert_eq!(plan.decode_tokens_per_second, 0.5 * bound);
    let usd_an_hour = plan.decode_tokens_per_second * 3600.0 * plan.usd_per_million_out / 1e6;
    assert!((usd_an_hour / (2.0 * plan.devices as f64) - 1.0).abs() < 1e-12);
    assert!(plan.single_stream_bound < bound);
    assert_eq!(plan.break_even.len(), prices.iter().filter(|price| price.blended().is_some()).count());
    for even in &plan.break_even {
        assert_eq!(even.tokens_per_day.is_some(), even.own_usd_per_million < even.usd_per_million, "{even:?}");
        if let Some(tokens) = even.tokens_per_day {
            let bill = tokens / 1e6 * even.usd_per_million;
            assert!((bill / (48.0 * plan.devices as f64) - 1.0).abs() < 1e-12);
        }
    }
}

#[test]
fn one_token_decoded_reads_the_activated_weights() {
    let config = ModelConfig { mtp_depth: 0, ..preset("deepseek-v3") };
    let plan = |batch| {
        let assumptions = serving::Assumptions {
            device: device("h200"),
            devices: Some(16),
            precision: ProductFormat::Bf16,
            context: 0,
            prompt: 1,
            batch: Some(batch),
            utilisation: 1.0,
        };
        serving::serving(&config, &assumptions, std::iter::empty())
    };
    let bandwidth = 16.0 * 4.8e12;
    let read = bandwidth / plan(1).decode_bound_by_bandwidth;
    let activated = 2.0 * count::params(&config).activated.0 as f64;
    // The router's biases are four bytes each, all else two.
    assert!((read / activated - 1.0).abs() < 1e-5, "{read} {activated}");
    let plan_of_many = plan(1_000_000);
    let read = 1_000_000.0 / plan_of_many.decode_bound_by_bandwidth * bandwidth;
    let many = read - 1_000_000.0 * plan_of_many.cache_bytes_per_token;
    let table = 2.0 * count::params(&config).embedding.0 as f64;
    assert!((many / (plan(1).weights_bytes - table) - 1.0).abs() < 1e-6);
}
