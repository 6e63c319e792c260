//! Ranks as processes of `mpirun`, which start this program again. Without the feature `mpi` there is nothing to test,
//! and this says so.

#[cfg(feature = "mpi")]
mod ranks;

fn main() {
    #[cfg(feature = "mpi")]
    ranks::main();
    #[cfg(not(feature = "mpi"))]
    eprintln!("ranks as processes are not tested: the feature `mpi` is left out");
}
