//! Where NVIDIA's libraries are looked for.
//!
//! The driver (`libcuda.so.1`) comes with the card's kernel module and is where the system's loader finds it. The
//! compiler (NVRTC) and the library for several cards (NCCL) may come with a toolkit or with Python packages, PyTorch's
//! among them, and are looked for in this order:
//!
//! 1. the directories of the environment variable [`VARIABLE`], separated by `:`
//! 2. the toolkit of `CUDA_HOME` or `CUDA_PATH`
//! 3. `nvidia/*/lib` in the packages of `VIRTUAL_ENV`, of `CONDA_PREFIX`, of the `python3` of `PATH`, of the user's own
//!    and of the system's Pythons
//! 4. the toolkit in `/usr/local/cuda`
//! 5. where the system's loader looks, which `LD_LIBRARY_PATH` says
//!
//! The first file found is loaded by its full path, so that what is asked for by name afterwards is that file.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{env, fs};

use libloading::Library;

/// Directories that are looked into first.
pub const VARIABLE: &str = "WELS_CUDA_LIBRARIES";

/// What was found, or where it was looked for.
#[derive(Clone, Debug)]
pub struct Search {
    /// The file that was loaded.
    pub found: Option<PathBuf>,
    /// Directories that exist and were looked into.
    pub looked: Vec<PathBuf>,
}

/// Loads the compiler, once for the process.
pub fn nvrtc() -> &'static Search {
    static SEARCH: OnceLock<Search> = OnceLock::new();
    SEARCH.get_or_init(|| load("libnvrtc.so", directories()))
}

/// Loads the library for several cards, once for the process.
pub fn nccl() -> &'static Search {
    static SEARCH: OnceLock<Search> = OnceLock::new();
    SEARCH.get_or_init(|| load("libnccl.so", directories()))
}

/// Whether the driver is where the system's loader looks.
pub fn driver_is_present() -> bool {
    // SAFETY: loading the driver's library runs its initialisers, which are written for that.
    unsafe { cudarc::driver::sys::is_culib_present() }
}

/// Whether the compiler was found, or is where the system's loader looks.
pub fn nvrtc_is_present() -> bool {
    nvrtc();
    // SAFETY: as above, for the compiler's library.
    unsafe { cudarc::nvrtc::sys::is_culib_present() }
}

fn load(name: &str, directories: Vec<PathBuf>) -> Search {
    let looked: Vec<PathBuf> = directories.into_iter().filter(|directory| directory.is_dir()).collect();
    let files = looked.iter().flat_map(|directory| named(directory, name));
    for file in files {
        // SAFETY: loading NVIDIA's libraries runs their initialisers, which are written for that. The directories are
        // the user's own or the system's.
        #[cfg(unix)]
        let library = unsafe {
            use libloading::os::unix::{Library as Global, RTLD_GLOBAL, RTLD_NOW};
            Global::open(Some(&file), RTLD_NOW | RTLD_GLOBAL).map(Library::from)
        };
        #[cfg(not(unix))] // SAFETY: as above.
        let library = unsafe { Library::new(&file) };
        if let Ok(library) = library {
            std::mem::forget(library); // stays loaded as long as the process
            return Search { found: Some(file), looked };
        }
    }
    Search { found: None, looked }
}

/// Files `name` or `name.N…` of a directory, the highest number first.
fn named(directory: &Path, name: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let numbers = |path: &PathBuf| -> Option<Vec<u32>> {
        let rest = path.file_name()?.to_str()?.strip_prefix(name)?;
        rest.split('.').filter(|part| !part.is_empty()).map(|part| part.parse().ok()).collect()
    };
    let mut found: Vec<(Vec<u32>, PathBuf)> =
        entries.flatten().map(|entry| entry.path()).filter_map(|path| Some((numbers(&path)?, path))).collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

fn directories() -> Vec<PathBuf> {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    let mut all: Vec<PathBuf> = variable(VARIABLE).iter().flat_map(env::split_paths).collect();
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).map(PathBuf::from);
    all.extend(toolkits.flat_map(|root| of_toolkit(&root)));
    let mut prefixes: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable).map(PathBuf::from).collect();
    prefixes.extend(python_of_path());
    prefixes.extend(variable("HOME").map(|home| Path::new(&home).join(".local")));
    prefixes.extend(["/usr/local", "/usr", "/opt/conda"].map(PathBuf::from));
    all.extend(prefixes.iter().flat_map(|prefix| of_packages(prefix)));
    all.extend(of_toolkit(Path::new("/usr/local/cuda")));
    all
}

fn of_toolkit(root: &Path) -> Vec<PathBuf> {
    ["lib64", "targets/x86_64-linux/lib", "lib"].iter().map(|part| root.join(part)).collect()
}

/// The prefix of the first `python3` of `PATH`: where `bin/python3` really lies.
fn python_of_path() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let python = env::split_paths(&path).map(|directory| directory.join("python3")).find(|file| file.is_file())?;
    Some(fs::canonicalize(python).ok()?.parent()?.parent()?.to_path_buf())
}

/// `nvidia/*/lib` of all packages below a prefix.
fn of_packages(prefix: &Path) -> Vec<PathBuf> {
    let children = |directory: PathBuf| -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.path()).collect();
        paths.sort();
        paths.reverse();
        paths
    };
    let pythons = children(prefix.join("lib"))
        .into_iter()
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("python3")));
    let packages = pythons.flat_map(|python| [python.join("site-packages"), python.join("dist-packages")]);
    packages.flat_map(|packages| children(packages.join("nvidia"))).map(|package| package.join("lib")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_library_of_a_directory_comes_first() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in
            ["libnvrtc.so.12", "libnvrtc.so.13.0.88", "libnvrtc.so", "libnvrtc-builtins.so.13", "libnvrtc.alt.so.12"]
        {
            fs::write(directory.path().join(name), "").expect("a file");
        }
        let found = named(directory.path(), "libnvrtc.so");
        let names: Vec<_> = found.iter().filter_map(|path| path.file_name()?.to_str()).collect();
        assert_eq!(names, ["libnvrtc.so.13.0.88", "libnvrtc.so.12", "libnvrtc.so"]);
    }

    #[test]
    fn packages_of_every_python_are_looked_into() {
        let prefix = tempfile::tempdir().expect("a directory");
        let packages = prefix.path().join("lib/python3.11/site-packages/nvidia");
        for package in ["cuda_nvrtc", "cu13"] {
            fs::create_dir_all(packages.join(package).join("lib")).expect("a directory");
        }
        let expected = ["cuda_nvrtc", "cu13"].map(|package| packages.join(package).join("lib"));
        assert_eq!(of_packages(prefix.path()), expected);
        assert!(of_packages(&prefix.path().join("nowhere")).is_empty());
    }

    #[test]
    fn a_file_that_is_no_library_is_passed_over() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("libnothing.so.1"), "no library").expect("a file");
        let missing = directory.path().join("missing");
        let search = load("libnothing.so", vec![directory.path().to_path_buf(), missing]);
        assert_eq!((search.found, search.looked), (None, vec![directory.path().to_path_buf()]));
    }
}
