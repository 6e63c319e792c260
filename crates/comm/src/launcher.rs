//! What a launcher of several processes tells each of them by its environment.

use std::env;

/// Launchers by the variables that they set: how many processes, and which of them this is. Slurm's are those of a job
/// step (`srun`): a batch script alone is one process, whatever its job has.
const KNOWN: [(&str, &str, &str); 4] = [
    ("mpirun of Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("mpirun of MVAPICH", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("mpiexec", "PMI_SIZE", "PMI_RANK"),
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
];

/// A start of this program as one of several processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launched {
    /// What started it, in words.
    pub by: &'static str,
    /// Which of the processes this is, from 0.
    pub rank: usize,
    /// How many there are.
    pub world: usize,
}

/// Whether a launcher started this process.
pub fn launched() -> Option<Launched> {
    launched_by(|name| env::var(name).ok())
}

fn launched_by(variable: impl Fn(&str) -> Option<String>) -> Option<Launched> {
    let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
    KNOWN.into_iter().find_map(|(by, world, rank)| {
        let (world, rank) = (number(world)?, number(rank).unwrap_or(0));
        (world > 0).then_some(Launched { by, rank, world })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(set: &[(&str, &str)]) -> Option<Launched> {
        launched_by(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn a_launcher_is_known_by_what_it_sets() {
        assert_eq!(of(&[("PATH", "/bin")]), None);
        let open = of(&[("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "3"), ("PMI_SIZE", "9")]).unwrap();
        assert_eq!((open.rank, open.world), (3, 4));
        let slurm = of(&[("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2")]).unwrap();
        assert_eq!((slurm.by, slurm.rank, slurm.world), ("srun", 1, 2));
        assert_eq!(of(&[("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")]), None, "a batch script is one process");
        assert_eq!(of(&[("PMI_SIZE", "many")]), None);
    }
}
