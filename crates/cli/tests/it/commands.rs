//! The verbs: stdout, stderr, exit code.

use crate::lab::Lab;

/// Every verb that computes takes `--device`, and says the same where there is no card.
#[test]
fn a_card_that_is_not_there_is_refused_in_a_sentence() {
    let lab = crate::eval::lab();
    lab.done(&["run", &lab.recipe("r", &[])]);
    let there = ["libcuda.so.1", "libcuda.so"]
        .iter()
        .any(|name| lab.shell(&format!("ldconfig -p | grep -q {name}")).code == Some(0));
    if there {
        return eprintln!("SKIPPED: this machine has NVIDIA's driver");
    }
    let verbs: [&[&str]; 12] = [
        &["run", "r.toml"],
        &["plan", "r.toml"],
        &["bench", "decode", "r.toml", "--prompt", "8", "--tokens", "8"],
        &["verify", "runs/r"],
        &["score", "model", "--text", "river"],
        &["chat", "model"],
        &["serve", "model"],
        &["eval", "model", "--data", "data", "--bench", "gsm8k", "--shots", "0"],
        &["bench", "train", "r.toml"],
        &["bench", "rl", "model", "--prompt", "8", "--tokens", "8"],
        &["bench", "speculation", "model", "--prompt", "river"],
        &["bench", "decode", "model", "--prompt", "8", "--tokens", "8"],
    ];
    for verb in verbs {
        let said = lab.wels(&[verb, &["--device", "cuda"]].concat());
        assert_eq!(said.code, Some(1), "{verb:?}: {said:?}");
        let expected = "error: there is no NVIDIA driver: the system's loader does not find libcuda.so.1\nhint: leave \
                        --device out to compute with the processor\n";
        assert_eq!(said.failure(), expected, "{verb:?}");
    }
    // If there is a choice, it is the processor, and the bits are its bits.
    let auto = lab.done(&["run", &lab.recipe("auto", &[]), "--device", "auto"]);
    assert!(auto.stderr.contains("device: the processor; there is no NVIDIA driver"), "{auto:?}");
    assert_eq!(lab.weights("auto"), lab.weights("r"));
}

/// A model is divided between a GPU and the processor; without a GPU there is nothing to divide.
#[test]
fn a_model_is_divided_only_with_a_card() {
    let lab = crate::eval::lab();
    let verbs: [&[&str]; 6] = [
        &["score", "model", "--text", "river"],
        &["chat", "model"],
        &["serve", "model", "--listen", "127.0.0.1:0", "--db", "sqlite:l.db"],
        &["eval", "model", "--data", "data", "--bench", "gsm8k", "--shots", "0"],
        &["bench", "speculation", "model", "--prompt", "river"],
        &["bench", "decode", "model", "--prompt", "8", "--tokens", "8"],
    ];
    for verb in verbs {
        let said = lab.wels(&[verb, &["--device", "cpu", "--gpu-layers", "1"]].concat());
        let expected = "error: --gpu-layers divides a model between a GPU and the processor, and there is no GPU\nhint: \
                        leave --gpu-layers out to compute with the processor\n";
        assert_eq!((said.code, said.failure()), (Some(1), expected.into()), "{verb:?}");
    }
    for (flags, expected) in [
        (&["--gpu-layers", "-1"][..], "error: unexpected argument '-1' found"),
        (&["--gpu-layers", "some"], "error: invalid value 'some' for '--gpu-layers <N>'"),
        (&["--cpu-experts=x"], "error: invalid value 'x' for '--cpu-experts[=<N>]'"),
        (&["--cpu-experts", "--device", "cpu"], "error: --cpu-experts"),
    ] {
        let said = lab.wels(&[&["score", "model", "--text", "river"], flags].concat());
        assert!(said.code == Some(1) && said.failure().starts_with(expected), "{flags:?}: {said:?}");
    }
}

#[test]
fn failures_are_a_sentence_and_a_hint() {
    let lab = Lab::new();
    let bad = lab.recipe("bad", &[("seed = 7", "sead = 7")]);
    std::fs::write(lab.at("broken.toml"), "[run\n").unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&["run", &bad], "error: bad.toml:4:1: unknown key 'sead' in [run]\nhint: did you mean 'seed'?\n"),
        (&["run", "broken.toml"], "error: broken.toml:1:5: unclosed table, expected `]`\n"),
        (
            &["run", "none.toml"],
            "error: cannot read the recipe none.toml: No such file or directory (os error 2)\n\
             hint: give the path of a recipe (.toml), or of a run to go on with\n",
        ),
        (&["run", "text"], "error: text is not a run\nhint: a run's directory holds run.json and recipe.toml\n"),
        (
            &["score", "text", "--text", "a"],
            "error: text is no model\n\
             hint: give a directory with config.json and safetensors files, a run, an adapter, or a .gguf file\n",
        ),
        (&["score", "text"], "error: the following required arguments were not provided:"),
        (&["plan", "deepseek-v4"], "error: deepseek-v4 is neither a file, a preset nor the name of a model: "),
        (&["bench", "train", "bad.toml", "--steps", "0"], "error: invalid value '0' for '--steps <STEPS>'"),
    ];
    for (args, expected) in cases {
        let said = lab.wels(args);
        assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""), "{args:?}: {said:?}");
        let failure = said.failure();
        match expected.ends_with('\n') {
            true => assert_eq!(failure, *expected, "{args:?}"),
            false => assert!(failure.starts_with(expected), "{args:?}: {failure}"),
        }
    }
}

#[test]
fn plan_counts_published_models() {
    let lab = Lab::new();
    let said = lab.done(&["plan", "deepseek-v3", "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(plan["parameters"]["total"], 671_026_419_200u64);
    assert_eq!(plan["parameters"]["activated"], 36_625_618_432u64);
    assert_eq!(plan["parameters"]["mtp"]["unique"], 11_610_068_224u64);
    assert_eq!(plan["bytes"]["kv_cache_per_token"], 70_272);
    assert_eq!(plan["bytes"]["weights_fp8"], 688_574_839_360u64);
    let recipe = lab.recipe("r", &[]);
    let said = lab.done(&["plan", &recipe, "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(plan["steps"], 20);
}

#[test]
fn plan_answers_for_claims_and_for_what_would_be() {
    let lab = Lab::new();
    let json = |args: &[&str]| -> serde_json::Value {
        serde_json::from_str(&lab.done(&[&["plan", "--json"], args].concat()).stdout).unwrap()
    };
    let claim = json(&["--claim", "deepseek-v3"]);
    assert_eq!((&claim["adds_up"], &claim["beside"][0]["adds_up"]), (&true.into(), &true.into()));
    let said = lab.done(&["plan", "--claim", "deepseek-v3"]);
    for line in ["cost in all", "$5,576,000", "impossible: 373% of the peak", "39.06 %", "the claim adds up"] {
        assert!(said.stdout.contains(line), "{line}: {said:?}");
    }
    let plan = json(&["deepseek-v3", "--what-if", "price=4", "--what-if", "experts=128"]);
    let (is, would) = (&plan["training"], &plan["what_if"]["training"]);
    assert_eq!(would["usd"].as_f64().unwrap() / would["device_hours"].as_f64().unwrap(), 4.0);
    // A router half as wide is all that 128 experts of which 8 are chosen save.
    assert!(would["device_hours"].as_f64() < is["device_hours"].as_f64());
    assert!(plan["what_if"]["parameters"].as_u64().unwrap() < 350_000_000_000);
    let said = lab.done(&["plan", "deepseek-v3"]);
    assert!(said.stdout.contains("of MTP layers, besides                     11,610,068,224\n"), "{said:?}");
    for (args, message) in [
        (
            &["deepseek-v3", "--what-if", "prise=1"][..],
            "error: --what-if knows no key 'prise'\nhint: the keys are: price, ",
        ),
        (&["deepseek-v3", "--what-if", "experts=4"], "error: --what-if experts: 8 of 4 experts cannot be chosen\n"),
        (&["smollm2-135m", "--what-if", "experts=4"], "error: --what-if experts: the model has no experts\n"),
        (&["deepseek-v3", "--device", "h8"], "error: unknown device 'h8'\nhint: did you mean 'h"),
        (&["deepseek-v3", "--utilisation", "40"], "error: utilisation 40 is not above 0 and at most 1\n"),
        (&["--claim", "deepsek-v3"], "error: unknown claim 'deepsek-v3'\nhint: did you mean 'deepseek-v3'?"),
    ] {
        let said = lab.wels(&[&["plan"], args].concat());
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.failure().starts_with(message), "{said:?}");
    }
}

/// The cluster of DeepSeek-V3's report.
const H800: [&str; 4] = ["plan", "deepseek-v3", "--cluster", "nodes=256,gpus=8,device=h800,ib=50,nvlink=160"];

#[test]
fn plan_spreads_a_model_over_a_cluster() {
    let lab = Lab::new();
    let with = |args: &[&str]| lab.wels(&[&H800[..], args].concat());
    let said = with(&["--parallel", "pp=16,ep=64,dp=128"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let row = |name: &str, value: &str| format!("{name:<48} {value:>20}\n");
    for (name, value) in [
        ("training", "14.8T tokens"),
        ("  on", "256 × 8 h800, fp8"),
        ("  micro-batches of a pipeline", "120"),
        ("a step", "20.069 s"),
        ("  bubble", "1.931 s"),
        ("  nodes that a token visits", "3.63"),
        ("  fits", "yes"),
        ("days", "54.6"),
        ("money", "$5,371,526"),
    ] {
        assert!(said.stdout.contains(&row(name, value)), "{name}: {}", said.stdout);
    }
    let dear = with(&["--parallel", "pp=16,ep=64,dp=128", "--gpu-hour-price", "4", "--json", "--tokens", "1e12"]);
    let json: serde_json::Value = serde_json::from_str(&dear.stdout).unwrap();
    let plan = &json["plans"][0];
    assert_eq!(plan["usd"].as_f64().unwrap(), 4.0 * plan["device_hours"].as_f64().unwrap());
    assert_eq!(plan["device_hours"], plan["device_hours_per_trillion_tokens"]);
    let schedules: Vec<_> = json["schedules"].as_array().unwrap().iter().map(|of| &of["schedule"]).collect();
    assert_eq!(schedules, ["1f1b", "zb1p", "dualpipe"]);
    let found: serde_json::Value = serde_json::from_str(&with(&["--json"]).stdout).unwrap();
    let layouts = found["plans"].as_array().unwrap();
    assert!(layouts.len() == 5 && layouts.iter().all(|plan| plan["fits"] == true), "{found}");
    for (args, failure) in [
        (
            &["--parallel", "pp=16,ep=64,dp=64"][..],
            "error: pp=16 × dp=64 is 1024 ranks, and there are 2048 devices\n\
             hint: the nearest that hold: pp=",
        ),
        (&["--parallel", "pp=16,pe=64"], "error: unknown key 'pe'\nhint: did you mean 'pp'?"),
        (&["--gpu-hour-price", "0"], "error: --gpu-hour-price must be above 0, but is 0\n"),
        (&["--devices", "2"], "error: the argument '--cluster <KEY=VALUE,…>' cannot be used with"),
    ] {
        let said = with(args);
        assert!(said.code == Some(1) && said.failure().starts_with(failure), "{args:?}: {said:?}");
    }
}

#[test]
fn plan_places_replicas_of_experts() {
    let lab = Lab::new();
    let loads = "[[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]]";
    std::fs::write(lab.at("loads.json"), loads).unwrap();
    let eplb = ["plan", "--eplb", "loads.json", "--replicas", "16", "--nodes", "2", "--gpus", "8", "--groups", "4"];
    let said = lab.done(&eplb);
    let first = "layer 0: most loaded device 1.2081 of the mean\n  \
                 node 0 device 0    load     122  experts 5 6\n  \
                 node 0 device 1    load      86  experts 5 7\n";
    assert!(said.stdout.starts_with(first), "{}", said.stdout);
    assert_eq!(said.stdout.lines().count(), 18);
    let json: serde_json::Value = serde_json::from_str(&lab.done(&[&eplb[..], &["--json"]].concat()).stdout).unwrap();
    assert_eq!(json[1]["experts"], serde_json::json!([7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]));
    for (args, failure) in [
        (
            &["plan", "--eplb", "loads.json", "--replicas", "8"][..],
            "error: 8 replicas are fewer than the 12 experts, of which each needs one\n",
        ),
        (
            &["plan", "deepseek-v3", "--eplb", "loads.json", "--replicas", "288"],
            "error: loads.json has 12 loads in a layer, and the model 256 experts\n",
        ),
        (&["plan", "--eplb", "r.toml", "--replicas", "8"], "error: cannot read r.toml: "),
        (&["plan", "--eplb", "loads.json"], "error: the following required arguments were not provided:"),
    ] {
        let said = lab.wels(args);
        assert!(said.code == Some(1) && said.failure().starts_with(failure), "{args:?}: {said:?}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let lab = Lab::new();
    let said = lab.shell("WELS plan deepseek-v3 | true; WELS plan deepseek-v3 --json | head -c 1");
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{said:?}");
}

/// Nobody reads what a run says any more; it is done to its end all the same.
#[test]
fn a_run_goes_on_without_its_readers() {
    let lab = Lab::new();
    for (name, script) in
        [("deaf", "WELS run deaf.toml 2>&1 >/dev/null | head -n 1"), ("mute", "WELS run mute.toml 2>mute.log | true")]
    {
        lab.recipe(name, &[]);
        let said = lab.shell(&format!("{script}; WELS verify runs/{name}"));
        assert!(said.code == Some(0) && said.stdout.contains("verified"), "{name}: {said:?}");
        assert!(lab.at(&format!("runs/{name}/sample/samples.json")).is_file(), "{name}: {said:?}");
    }
}

#[test]
fn an_address_in_use_is_refused_with_a_hint() {
    let lab = Lab::new();
    lab.done(&["run", &lab.recipe("r", &[])]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = lab.wels(&["serve", "runs/r", "--listen", &address, "--no-key"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    let failure = said.failure();
    assert!(failure.starts_with(&format!("error: cannot listen on {address}: ")), "{failure}");
    assert!(failure.contains("\nhint: give another address with --listen"), "{failure}");
}

#[test]
fn flags_that_a_plan_has_no_use_for_are_refused() {
    let lab = Lab::new();
    let recipe = lab.recipe("r", &[]);
    for (args, failure) in [
        (&["plan", &recipe, "--ranks", "2"][..], "error: --ranks is of the plan of a model\n"),
        (&["plan", &recipe, "--context", "9"], "error: --context is of the plan of a model\n"),
        (&["plan", &recipe, "--tokens", "1e9"], "error: --tokens is of the plan of a model\n"),
        (&["plan", &recipe, "--devices", "2"], "error: --devices is of the plan of a model\n"),
        (&["plan", &recipe, "--utilisation", "0.5"], "error: --utilisation is of the plan of a model\n"),
        (&["plan", &recipe, "--precision", "bf16"], "error: --precision is of the plan of a model\n"),
        (&["plan", &recipe, "--what-if", "price=2"], "error: --what-if is of the plan of a model\n"),
        (&["plan", &recipe, "--device", "h100"], "error: --device h100 is not of this machine\n"),
        (&["plan", "deepseek-v3", "--measure"], "error: --measure is of the plan of a recipe\n"),
    ] {
        let said = lab.wels(args);
        assert!(said.code == Some(1) && said.failure().starts_with(failure), "{args:?}: {said:?}");
    }
    lab.done(&["plan", &recipe, "--device", "cpu"]);
}

#[test]
fn flags_of_one_meaning_have_one_name_in_all_verbs() {
    let lab = Lab::new();
    for args in [
        &["serve", "none", "--max-tokens", "5"][..],
        &["eval", "none", "--bench", "gsm8k", "--data", "none", "--max-running", "2", "--output", "out"],
        &["draw", "none", "a circle", "--out", "out.png"],
    ] {
        let said = lab.wels(args);
        assert!(said.code == Some(1) && said.failure().contains("none"), "{args:?}: {said:?}");
        assert!(!said.stderr.contains("unexpected argument"), "{args:?}: {said:?}");
    }
}

#[test]
fn runs_are_compared_in_numbers() {
    let lab = Lab::new();
    lab.done(&["run", &lab.recipe("r", &[])]);
    let said = lab.done(&["report", "runs/r", "runs/r", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    let run = &json["runs"][1];
    assert_eq!(run["name"], "r");
    assert!(run["parameters"].as_u64().unwrap() > run["parameters_activated"].as_u64().unwrap());
    assert!(run["tokens"].as_u64().unwrap() > 0 && run["flops"].as_f64().unwrap() > 0.0);
    assert!(run["loss"].as_f64().unwrap() > 0.0 && run["validation_nll"].as_f64().unwrap() > 0.0);
    assert!(run["reward"].is_null() && run["held_out_accuracy"].is_null());
    let page = lab.done(&["report", "runs/r", "runs/r"]).stdout;
    assert!(page.contains(&format!("{:.4}", run["loss"].as_f64().unwrap())), "{page}");
}

/// What the checkpoints of a run were made by stays; a budget may change.
#[test]
fn the_recipe_of_a_run_is_not_changed_under_it() {
    let lab = Lab::new();
    lab.done(&["run", &lab.recipe("r", &[])]);
    let path = lab.at("runs/r/recipe.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let edit = |from: &str, to: &str| {
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
    };
    edit("learning_rate = 0.003", "learning_rate = 0.004");
    let said = lab.wels(&["run", "runs/r"]);
    let failure = said.failure();
    assert!(said.code == Some(1) && failure.contains("pretrain.learning_rate: 0.003 → 0.004"), "{failure}");
    // Nor where the recipe that is given says the same.
    lab.recipe("r", &[("learning_rate = 3e-3", "learning_rate = 4e-3")]);
    assert_eq!(lab.wels(&["run", "r.toml"]).code, Some(1));
    edit("checkpoint_every = 5", "checkpoint_every = 4");
    lab.done(&["run", "runs/r"]);
}

#[test]
fn a_run_is_a_model_to_score() {
    let lab = Lab::new();
    let said = lab.done(&["run", &lab.recipe("r", &[])]);
    assert!(said.stdout.starts_with("The river") && said.stdout.ends_with("---\n"), "{said:?}");
    assert!(said.stderr.contains("runs/r/pretrain/step-000020 (a Hugging Face directory)"), "{said:?}");
    let score = |args: &[&str]| -> serde_json::Value {
        serde_json::from_str(&lab.done(&[&["score", "runs/r", "--json"], args].concat()).stdout).unwrap()
    };
    let by_text = score(&["--text", "the old bridge"]);
    let logprobs = by_text["logprobs"].as_array().unwrap();
    assert!(logprobs[0].is_null() && logprobs[1..].iter().all(|logprob| logprob.as_f64().unwrap() < 0.0));
    let mean =
        -logprobs[1..].iter().map(|logprob| logprob.as_f64().unwrap()).sum::<f64>() / (logprobs.len() - 1) as f64;
    assert!((mean - by_text["nll"].as_f64().unwrap()).abs() < 1e-6);
    let bits = mean * (logprobs.len() - 1) as f64 / std::f64::consts::LN_2 / "the old bridge".len() as f64;
    assert!((bits - by_text["bits_per_byte"].as_f64().unwrap()).abs() < 1e-6);

    let ids: Vec<String> = by_text["ids"].as_array().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(score(&["--ids", &ids.join(",")]), by_text);
    std::fs::write(lab.at("t.txt"), "the old bridge").unwrap();
    assert_eq!(score(&["--file", "t.txt"]), by_text);
    // Windows are texts of their own, of which the second half counts; each begins with the tokenizer's BOS.
    let all: Vec<String> = (0..2).flat_map(|_| &ids[..4]).chain(&ids[3..4]).cloned().collect();
    let windows = score(&["--ids", &all.join(","), "--window", "4"]);
    let logprob = &by_text["logprobs"][3];
    let none = serde_json::Value::Null;
    let expected = [&none, &none, &none, logprob, &none, &none, &none, logprob, &none];
    assert_eq!(windows["logprobs"].as_array().unwrap().iter().collect::<Vec<_>>(), expected);
    assert!((windows["nll"].as_f64().unwrap() + logprob.as_f64().unwrap()).abs() < 1e-6);
    let said = lab.wels(&["score", "runs/r", "--ids", "1,2,3", "--window", "4"]);
    assert!(said.failure().starts_with("error: there are 3 tokens, less than a window of 4\n"), "{said:?}");
    // Nothing predicts a token alone.
    let alone = score(&["--ids", "7"]);
    let nothing = serde_json::json!({"ids": [7], "logprobs": [null], "nll": null, "ppl": null, "bits_per_byte": null});
    assert_eq!(alone, nothing);
    let said = lab.done(&["score", "runs/r", "--ids", "7"]);
    assert!(said.stdout.ends_with("\none token, which nothing predicts: there is nothing to score\n"), "{said:?}");
    let said = lab.wels(&["score", "runs/r", "--ids", "1,99999"]);
    assert_eq!(said.failure(), "error: token id 99999 is not below the model's vocab_size 400\nhint: check the ids\n");
}

#[test]
fn bench_train_reports_a_rate_and_a_limit() {
    let lab = Lab::new();
    let said = lab.done(&["bench", "train", &lab.recipe("r", &[]), "--steps", "2", "--json"]);
    let bench: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    let number = |key: &str| bench[key].as_f64().unwrap_or_else(|| panic!("{key} in {bench}"));
    assert!(number("tokens_per_second") > 0.0 && number("mfu") > 0.0 && number("mfu") < 1.0);
    let ratio = number("flops_per_second") / number("peak_flops_per_second");
    assert_eq!(
        (bench["peak"].as_str(), &bench["peak_device_bytes"]),
        (Some("the processor's FMA peak, measured"), &serde_json::Value::Null)
    );
    assert!((ratio - number("mfu")).abs() < 1e-9);
}

#[test]
fn a_bench_makes_up_the_model_of_a_recipe() {
    let lab = Lab::new();
    let recipe = lab.recipe("r", &[]);
    for quant in ["stored", "q8", "q4"] {
        let few = ["--prompt", "8", "--tokens", "4", "--streams", "2", "--prompt-rounds", "1"];
        let said = lab.done(&[&["bench", "decode", &recipe, "--json", "--quant", quant], &few[..]].concat());
        let bench: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
        assert!(bench["step_bytes"].as_f64() > Some(0.0) && bench["prompt_of_peak"].is_null(), "{bench}");
    }
    let few = ["--prompts", "2", "--samples", "2", "--prompt", "4", "--tokens", "4", "--steps", "1"];
    let said = lab.done(&[&["bench", "rl", &recipe, "--json"], &few[..]].concat());
    let bench: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(bench["logprob_difference_max"].as_f64(), Some(0.0), "{bench}");
}
