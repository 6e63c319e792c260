//! Bad input and bad luck: one clear message with a hint, exit code 1, nothing lost.

use std::fs;

use crate::lab::Lab;

#[test]
fn a_recipe_changed_under_a_run_is_refused_key_by_key() {
    let lab = Lab::new();
    lab.done(&["run", &lab.recipe("r", &[])]);
    let changes = [
        ("learning_rate = 3e-3", "learning_rate = 2e-3"),
        ("seed = 7", "seed = 8"),
        ("micro_batch = 4", "micro_batch = 2"),
    ];
    let said = lab.wels(&["run", &lab.recipe("r", &changes)]);
    assert_eq!(said.code, Some(1));
    let failure = said.failure();
    assert!(
        failure.starts_with(
            "error: the recipe of the run runs/r has changed since it began: pretrain.learning_rate: 0.003 → 0.002; \
             pretrain.learning_rate_min: 0.00030000000000000003 → 0.0002; run.seed: 7 → 8\nhint: "
        ),
        "{failure}"
    );
    lab.done(&["run", &lab.recipe("r", &[("micro_batch = 4", "micro_batch = 2")])]);
}

#[test]
fn ranks_that_do_not_divide_the_shards_start_nothing() {
    let lab = Lab::new();
    let recipe = lab.recipe("r", &[("micro_batch = 4", "micro_batch = 4\ngradient_shards = 4")]);
    let said = lab.wels(&["run", &recipe, "--ranks", "3"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    let expected = "error: 3 ranks do not divide the 4 gradient shards of the stage pretrain\nhint: 2 and 4 ranks do\n";
    assert_eq!(said.failure(), expected);
    assert!(!lab.at("runs").exists());
    // Of a run that is there already, too.
    lab.done(&["run", &recipe, "--ranks", "4"]);
    let said = lab.wels(&["run", "runs/r", "--ranks", "8"]);
    let hint = "hint: 4 do, or gradient_shards = 8 in a recipe of another run.name\n";
    assert!(said.code == Some(1) && said.failure().ends_with(hint), "{said:?}");
    let said = lab.wels(&["run", "runs/r", "--ranks", "4", "--expert-parallel", "3"]);
    let failure = "error: --expert-parallel 3 does not divide the 4 ranks\nhint: 2 and 4 do\n";
    assert!(said.code == Some(1) && said.failure() == failure, "{said:?}");
    // What was begun with other shards is another run.
    let other = lab.recipe("r", &[("micro_batch = 4", "micro_batch = 4\ngradient_shards = 2")]);
    let failure = lab.wels(&["run", &other]).failure();
    assert!(failure.contains("has changed since it began: pretrain.gradient_shards: 4 → 2\n"), "{failure}");
}

#[cfg(not(feature = "mpi"))]
#[test]
fn one_of_several_processes_without_mpi_does_nothing() {
    let lab = Lab::new();
    let recipe = lab.recipe("r", &[]);
    for (world, rank) in [("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK")] {
        let script = |number: u32| format!("{world}=2 {rank}={number} WELS run {recipe}");
        let first = lab.shell(&script(0));
        assert_eq!(first.code, Some(1), "{first:?}");
        let failure = first.failure();
        assert!(failure.contains("has started 2 processes, and this wels is built without MPI"), "{failure}");
        assert!(failure.contains("\nhint: build it with `cargo build --release --features mpi`"), "{failure}");
        let second = lab.shell(&script(1));
        assert_eq!((second.code, &second.stderr[..]), (Some(1), ""), "{second:?}");
    }
    assert!(!lab.at("runs").exists());
    // One process of a launcher is a process like any other.
    let said = lab.shell(&format!("OMPI_COMM_WORLD_SIZE=1 WELS run {recipe}"));
    assert_eq!(said.code, Some(0), "{said:?}");
}

#[test]
fn a_loss_that_is_not_a_number_stops_before_the_weights() {
    let lab = Lab::new();
    let said = lab.wels(&["run", &lab.recipe("wild", &[("learning_rate = 3e-3", "learning_rate = 1e30")])]);
    assert_eq!(said.code, Some(1));
    let failure = said.failure();
    assert!(failure.contains(" of step ") && failure.contains("is not a finite number, first in "), "{failure}");
    assert!(failure.contains("\nhint: lower the stage's learning_rate"), "{failure}");
}

#[test]
fn a_full_disk_loses_nothing() {
    let lab = Lab::new();
    lab.done(&["run", &lab.recipe("whole", &[])]);
    // No file beyond 200 or 400 kB, by the shell's unit: smaller than the optimizer's, larger than all before it.
    let recipe = lab.recipe("full", &[]);
    let said = lab.shell(&format!("trap '' XFSZ; ulimit -f 400; exec WELS run {recipe}"));
    assert_eq!(said.code, Some(1), "{said:?}");
    let failure = said.failure();
    assert!(failure.starts_with("error: cannot save a checkpoint: cannot write runs/full/pretrain/step-"), "{failure}");
    assert!(failure.contains("\nhint: make room and give the same command again"), "{failure}");
    assert!(!crate::lab::is_writing(&lab.at("runs/full/pretrain")));
    lab.done(&["run", &recipe]);
    assert_eq!(lab.weights("full"), lab.weights("whole"));
}

#[test]
fn a_read_only_place_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new();
    let recipe = lab.recipe("r", &[]);
    fs::create_dir(lab.at("locked")).unwrap();
    fs::set_permissions(lab.at("locked"), fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(lab.at("locked/probe"), "").is_ok() {
        eprintln!("skipped: this user may write anywhere, so permissions cannot be tested");
        return;
    }
    let said = lab.wels(&["run", &recipe, "--runs", "locked"]);
    assert_eq!(said.code, Some(1));
    assert_eq!(
        said.failure(),
        "error: cannot create the run's directory locked/r: Permission denied (os error 13)\n\
         hint: make this place readable and writable, or choose another one (of runs with --runs DIR)\n"
    );
}

#[test]
fn an_empty_corpus_is_refused() {
    let lab = Lab::new();
    fs::create_dir(lab.at("nothing")).unwrap();
    let recipe = lab.recipe("empty", &[("sources = [\"text\"]", "sources = [\"nothing\"]")]);
    let said = lab.wels(&["run", &recipe]);
    assert_eq!(said.code, Some(1));
    assert!(said.failure().contains("nothing holds no file that can be read: text"), "{said:?}");
    fs::write(lab.at("nothing/blank.txt"), " \n").unwrap();
    let said = lab.wels(&["run", &recipe]);
    assert_eq!(said.code, Some(1));
    assert!(said.failure().contains("hint: "), "{said:?}");
}

#[test]
fn damage_is_found_and_named() {
    let lab = Lab::new();
    let recipe = lab.recipe("r", &[]);
    lab.done(&["run", &recipe]);
    let weights = lab.at("runs/r/pretrain/step-000020/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let said = lab.wels(&["run", &recipe]);
    assert_eq!(said.code, Some(1));
    let failure = said.failure();
    assert!(failure.contains("model.safetensors is damaged"), "{failure}");
    assert!(failure.contains("hint: remove runs/r/pretrain/step-000020"), "{failure}");

    fs::write(lab.at("runs/r/run.json"), "{\"format\": 99, \"wels_version\": \"9.0.0\"}").unwrap();
    let said = lab.wels(&["run", "runs/r"]);
    assert_eq!(
        said.failure(),
        "error: runs/r has run format 99, and this program reads up to 1\nhint: use the newer program that made it\n"
    );
}
