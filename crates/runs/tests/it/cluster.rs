//! Plans of clusters beside what was published of one.

use wels_model::config::ModelConfig;
use wels_model::presets;
use wels_runs::plan::cluster::schedule::Schedule;
use wels_runs::plan::cluster::{self, Cluster, ClusterPlan, Layout, Parallel, Training, Units};
use wels_runs::plan::devices::{Devices, ProductFormat};

const H800: &str = "nodes=256,gpus=8,device=h800,ib=50,nvlink=160";

fn v3() -> ModelConfig {
    presets::preset("deepseek-v3").unwrap()
}

fn training(precision: ProductFormat) -> Training {
    Training { tokens: 14.8e12, sequence_length: 4096, precision, usd_per_device_hour: 2.0 }
}

fn plan(config: &ModelConfig, cluster: &str, layout: &str, training: &Training) -> ClusterPlan {
    let cluster = Cluster::parse(cluster, &Devices::built_in()).unwrap();
    let Parallel::Given(layout) = Parallel::parse(layout, &cluster, 15_360).unwrap() else { panic!("{layout}") };
    cluster::plan(config, &cluster, &layout, training).unwrap()
}

fn within(what: &str, planned: f64, published: f64, fraction: f64) {
    let off = planned / published - 1.0;
    println!("{what:<30} {planned:>12.4} {published:>12.4} {:>+6.1}%", 100.0 * off);
    assert!(off.abs() <= fraction, "{what}: {planned}, published {published}, {:+.1}%", 100.0 * off);
}

#[test]
fn the_step_of_deepseek_v3() {
    let plan = plan(&v3(), H800, "pp=16,ep=64,dp=128", &training(ProductFormat::Fp8));
    let pipeline = plan.step.pipeline;
    // Insights into DeepSeek-V3, arXiv 2505.09343, table 4.
    within("forward alone", pipeline.forward, 1.13, 0.10);
    within("backward alone", pipeline.backward, 1.99, 0.10);
    within("weights alone", pipeline.weight, 0.48, 0.10);
    within("forward and backward", pipeline.both, 13.95, 0.10);
    within("bubble", pipeline.bubble, 2.06, 0.10);
    within("optimizer", plan.step.optimizer, 0.29, 0.10);
    within("step", plan.step.total, 19.926, 0.01);
    within("tokens a day", plan.tokens_per_day, 272.80e9, 0.01);
    within("causal FLOP/s", plan.flops_per_device_second, 1541.7 * 260.649e9, 0.01);
    // DeepSeek-V3 report, table 1.
    within("hours of a trillion tokens", plan.device_hours_per_trillion_tokens, 180e3, 0.01);
    within("hours", plan.device_hours, 2664e3, 0.01);
    within("days", plan.days, 54.2, 0.01);
    within("money", plan.usd, 5.328e6, 0.01);
    let rows = [
        ("forward alone (1F)", format!("{:.3}", pipeline.forward)),
        ("backward alone (1B)", format!("{:.3}", pipeline.backward)),
        ("gradients of weights alone (1W)", format!("{:.3}", pipeline.weight)),
        ("forward and backward together (1F1B)", format!("{:.3}", pipeline.both)),
        ("bubble", format!("{:.3}", pipeline.bubble)),
        ("optimizer", format!("{:.3}", plan.step.optimizer)),
        ("step", format!("{:.3}", plan.step.total)),
        ("tokens a day, billions", format!("{:.1}", plan.tokens_per_day / 1e9)),
        ("thousand device-hours of 10¹² tokens", format!("{:.1}", plan.device_hours_per_trillion_tokens / 1e3)),
        ("days", format!("{:.1}", plan.days)),
        ("money, millions", format!("${:.3}", plan.usd / 1e6)),
    ];
    rows.iter().for_each(|(name, planned)| assert_in_page(name, planned));
    assert!(PAGE.contains(&format!("In all {:.0} GB of an H800's 80", plan.memory.total / 1e9)));
}

const PAGE: &str = include_str!("../../../../docs/cluster-plan.md");

/// Whether the page's table has this figure.
fn assert_in_page(name: &str, planned: &str) {
    let row = format!("| {name} | {planned} |");
    assert!(PAGE.contains(&row), "docs/cluster-plan.md lacks {row}");
}

#[test]
fn memory_of_deepseek_v3() {
    let plan = |layout: &str| plan(&v3(), H800, layout, &training(ProductFormat::Fp8));
    let dual = plan("pp=16,ep=64,dp=128");
    assert_eq!(dual.layers.iter().sum::<usize>(), 62);
    assert!(dual.fits && dual.memory.total < 72e9, "{:?}", dual.memory);
    let of = |schedule| plan(&format!("pp=16,ep=64,dp=128,schedule={schedule}"));
    let (one, zero) = (of("1f1b"), of("zb1p"));
    // DeepSeek-V3 report, table 2: twice the parameters, one micro-batch more.
    within("parameters of DualPipe", dual.memory.parameters, 2.0 * zero.memory.parameters, 0.06);
    within("activations of DualPipe", dual.memory.activations / zero.memory.activations, 17.0 / 16.0, 0.02);
    assert!(one.memory.activations <= zero.memory.activations);
    assert_eq!(Schedule::ALL.map(|schedule| schedule.in_flight(16)), [16, 16, 17]);
    for (name, plan) in [("1F1B", &one), ("ZB1P", &zero), ("DualPipe", &dual)] {
        let (step, bubble) = (plan.step.total, plan.step.pipeline.bubble);
        let cells = format!("| {step:.3} s, {bubble:.3} s | {:.1} GB |", plan.memory.total / 1e9);
        assert!(PAGE.lines().any(|line| line.starts_with(&format!("| {name} |")) && line.ends_with(&cells)), "{cells}");
    }
    let steps = [&dual, &zero, &one].map(|plan| plan.step.total);
    assert!(steps.is_sorted(), "{steps:?}");
    let bubbles = [&dual, &zero, &one].map(|plan| plan.step.pipeline.bubble);
    assert!(bubbles.is_sorted(), "{bubbles:?}");
    // Without DualPipe all of dispatch and combine but what shared experts hide stands alone.
    let exposed = one.step.pipeline.exchange_exposed / one.step.pipeline.exchange;
    assert!((0.9..1.0).contains(&exposed) && dual.step.pipeline.exchange_exposed < 1.0, "{exposed}");
}

#[test]
fn the_optimizer_state_is_spread_over_all() {
    // Master weights and means of 682.6 billion parameters over 2,048 devices, if stages are alike.
    let mut config = ModelConfig { layers: 64, mtp_depth: 0, vocab_size: 128, ..v3() };
    config.moe.as_mut().unwrap().first_dense_layers = 0;
    let plan = plan(&config, H800, "pp=16,ep=64,dp=128", &training(ProductFormat::Fp8));
    let all = 8.0 * wels_model::count::params(&config).total.0 as f64;
    within("optimizer", plan.memory.optimizer, all / 2048.0, 1e-4);
}

#[test]
fn layouts_that_do_not_hold_name_those_that_do() {
    let cluster = Cluster::parse(H800, &Devices::built_in()).unwrap();
    for (text, message, hint) in [
        ("pp=16,ep=64,dp=64", "pp=16 × dp=64 is 1024 ranks, and there are 2048 devices", "pp=16,ep=64,dp=128"),
        ("pp=64,ep=32,dp=32", "pp=64 is more stages than the model's 62 layers", "pp=32,ep=32,dp=64"),
        ("pp=16,ep=48,dp=128", "ep=48 does not divide dp=128: ", "pp=16,ep=64,dp=128"),
        ("pp=4,ep=512,dp=512", "ep=512 does not divide the 256 experts of a layer", "pp=4,ep=256,dp=512"),
        ("pp=16,ep=64,dp=128,batch=1000", "a batch of 1000 sequences is no whole number", "no layout holds"),
        (
            "pp=16,ep=64,dp=128,batch=2048,schedule=dualpipe",
            "DualPipe needs 32 micro-batches at least, two for each stage, and there are 16",
            "schedule=1f1b",
        ),
    ] {
        let Parallel::Given(layout) = Parallel::parse(text, &cluster, 15_360).unwrap() else { panic!() };
        let error = cluster::plan(&v3(), &cluster, &layout, &training(ProductFormat::Fp8)).unwrap_err();
        assert!(error.to_string().starts_with(message), "{text}: {error}");
        let said = error.hint().unwrap();
        assert!(said.contains(hint), "{text}: {said}");
        for named in said.split(": ").last().unwrap().split("; ").filter(|named| named.starts_with("pp=")) {
            plan(&v3(), H800, named, &training(ProductFormat::Fp8));
        }
    }
    for (text, message) in [
        ("pp=16,pq=1", "unknown key 'pq'"),
        ("pp=0", "--parallel: pp=0 is not a whole number from 1 to 16777216"),
        ("pp", "--parallel: pp has no '='"),
        ("pp=1,pp=2", "--parallel has pp twice"),
        ("search,pp=2", "--parallel: search finds pp itself"),
        ("pp=16,schedule=gpipe", "unknown schedule 'gpipe'"),
    ] {
        let error = Parallel::parse(text, &cluster, 1).unwrap_err().to_string();
        assert!(error.starts_with(message), "{text}: {error}");
    }
    for (text, message) in [
        ("nodes=2,gpus=8,device=h800,nvlink=160", "--cluster lacks ib, 1e9 bytes a second"),
        ("nodes=2,gpus=8,device=h800,ib=50", "--cluster lacks nvlink, "),
        ("nodes=2,device=cpu,ib=1", "--cluster lacks flops, "),
        ("nodes=2,device=h800,ib=1,flops=3", "--cluster: flops is for device=cpu"),
        ("nodes=2,device=h80,ib=1", "unknown device 'h80'"),
        ("nodes=2,ib=-1", "--cluster: ib=-1 is not a number above 0"),
    ] {
        let error = Cluster::parse(text, &Devices::built_in()).unwrap_err().to_string();
        assert!(error.starts_with(message), "{text}: {error}");
    }
}

#[test]
fn a_search_finds_what_fits_and_is_no_slower() {
    let cluster = Cluster::parse(H800, &Devices::built_in()).unwrap();
    let training = training(ProductFormat::Fp8);
    let found = cluster::search(&v3(), &cluster, 15_360, &training).unwrap();
    for plan in found.iter().take(5) {
        println!("{} {:.3} {:.1}", plan.layout.text(), plan.step.total, plan.memory.total / 1e9);
    }
    assert!(found.iter().all(|plan| plan.fits));
    assert!(found.is_sorted_by(|a, b| a.step.total <= b.step.total));
    let theirs = plan(&v3(), H800, "pp=16,ep=64,dp=128", &training);
    assert!(found[0].step.total <= theirs.step.total && found.iter().any(|plan| plan.layout == theirs.layout));
    // On two nodes nothing does.
    let few = Cluster { nodes: 2, ..cluster };
    let error = cluster::search(&v3(), &few, 15_360, &training).unwrap_err();
    assert_eq!(error.to_string(), "no layout fits 80 GB a device");
    assert!(error.hint().unwrap().contains("takes least, "), "{error:?}");
}

#[test]
fn a_service_as_it_was_published() {
    let cluster = Cluster::parse(H800, &Devices::built_in()).unwrap();
    let units = Units::of(&v3(), &cluster, 4096).unwrap();
    // open-infra-index, day 6: tokens a second of a node, prompts' with those from the cache.
    within("tokens read", units.prefill.tokens_per_second_per_node, 73.7e3, 0.10);
    within("tokens written", units.decode.tokens_per_second_per_node, 14.8e3, 0.10);
    assert_eq!((units.prefill.experts_per_device, units.decode.experts_per_device), (9, 2));
    within("sequences on a device", units.decode.streams_per_device.unwrap(), 88.0, 0.10);
    for (name, unit) in [
        ("serving: tokens a second that a node reads, cache hits included", &units.prefill),
        ("tokens a second that a node writes", &units.decode),
    ] {
        let rate = wels_model::count::Params(unit.tokens_per_second_per_node.round() as u64);
        assert_in_page(name, &rate.to_string());
    }
    let memory = units.decode.bound_by_memory.unwrap();
    assert!(units.decode.bound_by_arithmetic < memory);
    for unit in units.all() {
        assert!(unit.bound_by_arithmetic < unit.bound_by_link && unit.cache_bytes > 0.0, "{unit:?}");
    }
    assert!(Units::of(&presets::preset("smollm2-135m").unwrap(), &cluster, 4096).is_none());
}

#[test]
fn four_hosts_with_processors() {
    let config = presets::preset("smollm2-135m").unwrap();
    let training =
        Training { tokens: 1e9, sequence_length: 256, precision: ProductFormat::F32, usd_per_device_hour: 0.0 };
    let cluster = "nodes=4,device=cpu,flops=150,ib=0.116,memory=16";
    let one = plan(&config, cluster, "dp=4,batch=32,micro=8", &training);
    // Each rank sends three quarters of its gradients, and three quarters of all weights are others': 4 bytes each.
    let parameters = wels_model::count::params(&config).total.0 as f64;
    assert_eq!(one.sent.optimizer, 2.0 * 4.0 * parameters * 3.0 / 4.0);
    let seconds = one.step.reduce + one.step.gather;
    assert!((seconds - one.sent.optimizer / 0.116e9).abs() < 1e-9, "{seconds}");
    // Gradients of layers go beside the backward pass, those of the embedding, which is the head too, behind it.
    let in_layers = 1.0 - (config.vocab_size * config.hidden_size) as f64 / parameters;
    assert!((one.step.reduce_hidden - one.step.reduce * in_layers).abs() < 1e-9, "{:?}", one.step);
    let exposed = one.step.reduce - one.step.reduce_hidden + one.step.update + one.step.gather;
    assert!((one.step.total - one.step.pipeline.total - exposed).abs() < 1e-9, "{:?}", one.step);
    let slow = plan(&config, "nodes=4,device=cpu,flops=150,ib=0.01,memory=16", "dp=4,batch=32,micro=8", &training);
    assert!(slow.step.reduce_hidden < slow.step.pipeline.backward + 1e-9, "no longer than the backward pass");
    let flops = wels_model::count::forward_flops(&config, wels_model::count::Context::Causal { tokens: 256 });
    let computing = flops.training().0 as f64 * 32.0 * 256.0 / 4.0 / 150e9;
    within("computing", one.step.pipeline.total, computing, 0.05);
    assert_eq!(one.layout.schedule, Schedule::OneForwardOneBackward);
    // Experts over four hosts: of a token's six, whatever is not here goes there and back, in f32.
    let lite = presets::preset("deepseek-v2-lite").unwrap();
    let spread = plan(&lite, "nodes=4,device=cpu,flops=150,ib=0.116,memory=400", "ep=4,dp=4,batch=4", &training);
    let hosts = 4.0 * (1.0 - (48.0 * 47.0 * 46.0 * 45.0 * 44.0 * 43.0) / (64.0 * 63.0 * 62.0 * 61.0 * 60.0 * 59.0));
    let (layers, bytes) = (26.0, 4.0 * 2048.0);
    let expected = 256.0 * layers * 4.0 * hosts * 0.75 * bytes;
    within("experts", spread.sent.experts_between_nodes, expected, 1e-9);
    assert_eq!(spread.sent.experts_inside_nodes, 0.0);
    let layout = Layout { data: 3, ..spread.layout.clone() };
    assert!(cluster::plan(&lite, &spread.cluster, &layout, &training).is_err());
}
