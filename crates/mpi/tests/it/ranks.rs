//! What ranks do and what is expected of it: the operations, and every way to end.

use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, thread};

use libtest_mimic::{Arguments, Failed, Trial};
use wels_comm::launcher::launched;
use wels_comm::{Comm, Lost, threads};
use wels_mpi::{JoinError, Mpi, join};

/// Names what a rank does.
const PART: &str = "WELS_MPI_PART";

pub fn main() {
    if let Ok(part) = env::var(PART) {
        return rank(&part);
    }
    let of = |name: &str, test: fn() -> Result<(), Failed>| Trial::test(format!("mpi::{name}"), test);
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trials = vec![
        of("operations_give_what_those_of_threads_give", operations),
        of("a_message_of_several_pieces_comes_whole", || ends("pieces", 3, Some(0), "")),
        of("a_rank_that_leaves_is_lost_to_the_others", || ends("leaves", 3, Some(0), "")),
        of("a_rank_that_leaves_in_the_middle_of_large_messages_is_lost", || ends("leaves large", 3, Some(0), "")),
        of("a_rank_that_fails_ends_the_others", || ends("fails", 3, None, "rank 2 of 3 on ")),
        of("a_rank_that_is_stopped_ends_the_others", silence),
        of("the_loss_of_a_rank_can_be_told_instead", told_of_losses),
        of("a_rank_that_waits_leaves_its_core_to_others", || ends("waits", 2, Some(0), "")),
        of("another_launcher_is_noticed", || ends("alone", 2, Some(0), "")),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}

/// Starts ranks that do `part`, for a minute at most.
fn start(part: &str, ranks: usize) -> Output {
    let program = env::current_exe().expect("this program");
    let options = "-k 5 60 mpirun --allow-run-as-root --oversubscribe --mca mpi_yield_when_idle 1 --bind-to none -np";
    let mut command = Command::new("timeout");
    command.args(options.split(' ')).arg(ranks.to_string());
    command.args((part == "is told").then_some("--enable-recovery")).arg(program).env(PART, part);
    command.output().expect("mpirun starts")
}

fn ends(part: &str, ranks: usize, code: Option<i32>, says: &str) -> Result<(), Failed> {
    let output = start(part, ranks);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let as_expected = match code {
        Some(code) => output.status.code() == Some(code),
        None => !output.status.success() && output.status.code() != Some(124),
    };
    if !as_expected || !stderr.contains(says) {
        return Err(format!("{part} on {ranks} ranks: {:?}: {stderr}", output.status).into());
    }
    Ok(())
}

fn operations() -> Result<(), Failed> {
    [1, 2, 4].into_iter().try_for_each(|ranks| ends("operations", ranks, Some(0), ""))
}

/// The others end it by the silence of one that is stopped, with one message.
fn silence() -> Result<(), Failed> {
    let begin = Instant::now();
    let output = start("is stopped", 3);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let messages: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    let named = messages.iter().all(|line| line.contains("rank 1 of 3 on ") && line.contains("has not been heard of"));
    if messages.len() != 1 || !named || output.status.success() || begin.elapsed() > Duration::from_secs(30) {
        return Err(format!("after {:?} {:?}: {stderr}", begin.elapsed(), output.status).into());
    }
    Ok(())
}

/// Open MPI leaves the others alone, and they hear of it in time; of an operation with more than MPI sends at once too.
fn told_of_losses() -> Result<(), Failed> {
    let output = start("is told", 3);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let told = stderr.matches("told as planned").count();
    if told != 2 { Err(format!("{told} ranks were told, {:?}: {stderr}", output.status).into()) } else { Ok(()) }
}

fn rank(part: &str) {
    let mut launched = launched().expect("mpirun started this");
    if part == "alone" {
        launched.world += 1;
        assert!(matches!(join(launched), Err(JoinError::World { sees: 2, .. })));
        return;
    }
    let mpi = Arc::new(join(launched).expect("MPI starts"));
    std::panic::set_hook(Box::new({
        let place = mpi.place();
        move |panic| eprintln!("{place}: {panic}")
    }));
    let work = mpi.clone();
    if thread::spawn(move || do_part(&part_of(), &work)).join().is_err() {
        mpi.abort(101);
    }
    assert!(mpi.leave(None));
}

fn part_of() -> String {
    env::var(PART).expect("what to do")
}

fn do_part(part: &str, mpi: &Mpi) {
    let (rank, world) = (mpi.rank(), mpi.world());
    match part {
        "operations" => {
            let mut comms = threads(world);
            let expected = thread::scope(|scope| {
                let ranks: Vec<_> = comms.drain(..).map(|comm| scope.spawn(move || told(&comm))).collect();
                ranks.into_iter().map(|thread| thread.join().expect("a rank")).nth(rank).expect("this rank")
            });
            let given = told(mpi);
            assert!(given == expected, "rank {rank} of {world} heard something else than a thread");
        }
        "pieces" => of_several_pieces(mpi),
        "leaves" if rank == 1 => assert!(mpi.barrier().is_ok()),
        "leaves" => {
            mpi.barrier().expect("all are there");
            for _ in 0..3 {
                assert!(matches!(mpi.all_gather(vec![1]), Err(Lost { world: 3, .. })));
            }
        }
        "leaves large" if rank == 1 => assert!(mpi.all_gather(vec![1; 10_000]).is_ok()),
        "leaves large" => {
            mpi.all_gather(vec![1; 10_000]).expect("all are there");
            assert!(mpi.all_gather(vec![2; 50 << 20]).is_err());
        }
        "fails" if rank == 2 => panic!("as planned"),
        "fails" => drop(mpi.barrier()),
        "is stopped" if rank == 1 => {
            mpi.barrier().expect("all are there");
            let stopped = Command::new("kill").args(["-STOP", &std::process::id().to_string()]).status();
            panic!("still here: {stopped:?}");
        }
        "is stopped" => {
            mpi.barrier().expect("all are there");
            let _ = mpi.barrier();
        }
        "is told" => {
            mpi.tell_of_losses(Duration::from_secs(3));
            mpi.barrier().expect("all are there");
            if rank == 1 {
                let killed = Command::new("kill").args(["-KILL", &std::process::id().to_string()]).status();
                panic!("still here: {killed:?}");
            }
            let begin = Instant::now();
            let lost = mpi.all_gather(vec![1; 5 << 20]);
            assert_eq!(lost, Err(Lost { rank: 1, world: 3 }));
            assert_eq!(mpi.lost(), Some(Lost { rank: 1, world: 3 }));
            assert!(mpi.barrier().is_err() && begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
            assert!(!mpi.leave(Some(Duration::from_secs(60))));
            eprintln!("told as planned");
            mpi.abort(3);
        }
        "waits" if rank == 0 => {
            thread::sleep(Duration::from_secs(2));
            mpi.barrier().expect("all are there");
        }
        "waits" => {
            let before = processor_ticks();
            mpi.barrier().expect("all are there");
            let took = processor_ticks() - before;
            assert!(took < 40, "{took} hundredths of a second of two seconds were spent waiting");
        }
        other => panic!("nothing to do for {other}"),
    }
}

/// A broadcast of two pieces; then the same to a rank that has left too, which throws it away.
fn of_several_pieces(mpi: &Mpi) {
    let mut message = Vec::new();
    for number in 0..70u8 {
        message.resize(message.len() + (1 << 20), number);
    }
    let times = if mpi.rank() == 2 { 1 } else { 2 };
    for _ in 0..times {
        let mine = if mpi.rank() == 0 { message.clone() } else { Vec::new() };
        let came = mpi.broadcast(mine).expect("the first is there");
        assert!(came == message, "{} bytes came of {}, or others", came.len(), message.len());
    }
}

/// Hundredths of a second of processor time of this process, its own and the system's.
fn processor_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
    [11, 12].iter().map(|&field: &usize| fields[field].parse::<u64>().expect("ticks")).sum()
}

/// All that a rank hears in a conversation of messages of many sizes.
fn told(comm: &dyn Comm) -> Vec<Vec<Vec<u8>>> {
    let (rank, world) = (comm.rank(), comm.world());
    let message = |to: usize, len: usize| (0..len).map(|i| (i * 31 + rank * 7 + to) as u8).collect::<Vec<u8>>();
    let mut heard = Vec::new();
    // Around what goes with a length, and around what MPI sends at once; unequal from rank to rank.
    for len in [0, 1, 4087, 4088, 4089, 70_000, 9_000_001] {
        let lengths = |to: usize| if (rank + to).is_multiple_of(3) { 0 } else { len + rank };
        heard.push(comm.all_to_all((0..world).map(|to| message(to, lengths(to))).collect()).expect("all are there"));
        heard.push(comm.all_gather(message(0, len)).expect("all are there"));
        heard.push(comm.gather(message(1, len)).expect("all are there"));
        heard.push(vec![comm.broadcast(message(2, len)).expect("all are there")]);
        comm.barrier().expect("all are there");
    }
    // Many small ones, in which ranks get ahead of each other.
    for round in 0..300u32 {
        heard.push(comm.gather(round.to_le_bytes().to_vec()).expect("all are there"));
        heard.push(vec![comm.broadcast(vec![round as u8]).expect("all are there")]);
    }
    heard
}
