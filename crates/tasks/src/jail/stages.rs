//! The three processes that make the jail, each started by the one before.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, exit};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::sys::time::TimeValLike;
use nix::unistd::{Gid, Uid, chdir, close, execve, getegid, geteuid, pivot_root, setgroups, setresgid, setresuid};
use rustix::thread::{CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities};

use super::{POLL, SETUP_FAILED, SIGNAL_BASE, Setup, TIME_LIMIT, VERB, filter};

/// Where the stages' own binary is within the jail.
const INIT: &str = "/init";
const SCRATCH: &str = "/scratch";
/// The user and group that own nothing.
const NOBODY: u32 = 65534;
/// Users that systemd's table of ranges, the widest in use, leaves unused: from here on by number of process.
const USERS: u32 = 0x7000_0000;
/// Of the outer stage and of process 1, which share the count in a user namespace.
const STAGE_THREADS: u64 = 2;
/// What Linux gives a program that nobody has configured.
const STACK_BYTES: u64 = 8 << 20;
/// Devices that a program may open.
const DEVICES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"];

type Staged<T> = Result<T, String>;

/// The hidden verb: `arguments` are what follows [`VERB`]. Does not return.
pub fn main(arguments: &[String]) -> ! {
    let ended = match arguments {
        [stage, setup] => {
            if stage == "outer" {
                close_inherited(); // before anything else; the stages after it inherit three, and open none
            }
            stage_of(stage, setup)
        }
        _ => Err(format!("{VERB} is not for people")),
    };
    match ended {
        Ok(code) => exit(code),
        Err(reason) => {
            eprintln!("\n{reason}");
            exit(SETUP_FAILED)
        }
    }
}

/// Closes every descriptor but the three standard ones. Whoever started the program may have left others open without
/// meaning to: a folder's would lead out of the jail. Nothing of this process's own is open yet.
fn close_inherited() {
    let number = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    let open: Vec<i32> = match fs::read_dir("/proc/self/fd") {
        Ok(entries) => entries.filter_map(number).collect(), // also the listing's own, which is closed by now
        Err(_) => {
            (0..getrlimit(Resource::RLIMIT_NOFILE).map_or(1 << 16, |(_, most)| most.min(1 << 20) as i32)).collect()
        }
    };
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        let _ = close(descriptor);
    }
}

fn stage_of(stage: &str, text: &str) -> Staged<i32> {
    let setup: Setup = serde_json::from_str(text).map_err(|error| error.to_string())?;
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| format!("cannot end with the parent: {error}"))?;
    match stage {
        "outer" => outer(setup),
        "inner" => inner(&setup, text),
        "exec" => Err(run_python(&setup)),
        stage => Err(format!("there is no stage {stage}")),
    }
}

/// New namespaces; then a child that is process 1 in them.
fn outer(mut setup: Setup) -> Staged<i32> {
    setup.user = USERS + std::process::id();
    setup.namespaces_count = is_since_5_14(&fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default());
    let spaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    let (user, group) = (geteuid(), getegid());
    if !user.is_root() || unshare(spaces).is_err() {
        own_count(&setup)?;
        unshare(spaces | CloneFlags::CLONE_NEWUSER).map_err(|error| {
            format!("the kernel gives no new namespaces ({error}); it needs unprivileged user namespaces, or root")
        })?;
        let map = |file: &str, text: String| {
            fs::write(file, text).map_err(|error| format!("cannot map the user in {file}: {error}"))
        };
        map("/proc/self/setgroups", "deny".to_owned())?;
        map("/proc/self/uid_map", format!("0 {user} 1"))?;
        map("/proc/self/gid_map", format!("0 {group} 1"))?;
    }
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let text = serde_json::to_string(&setup).map_err(|error| error.to_string())?;
    let status = Command::new(program).args([VERB, "inner", &text]).status();
    Ok(code_of(status.map_err(|error| format!("cannot start process 1: {error}"))?))
}

/// Fails where threads in a user namespace of the jail's own would be counted with all others of the user: whether an
/// answer may have one more would depend on what else runs.
fn own_count(setup: &Setup) -> Staged<()> {
    let reason = "before Linux 5.14 the threads of a user's jails are one count, and verdicts would depend on what else runs; \
                  run it as root, where each jail has a user of its own";
    setup.namespaces_count.then_some(()).ok_or_else(|| reason.to_owned())
}

/// Whether `release` (`6.1.0-13-amd64`) is 5.14, which counts by namespace ("Count rlimits in each user namespace"), or
/// newer.
fn is_since_5_14(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (5, 14))
}

/// An exit code as it is, a signal behind [`SIGNAL_BASE`].
fn code_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| SIGNAL_BASE + status.signal().unwrap_or(0))
}

/// Process 1: the jail's files, then the program, then nothing.
fn inner(setup: &Setup, text: &str) -> Staged<i32> {
    build_root(setup)?;
    let mut child = Command::new(INIT)
        .args([VERB, "exec", text])
        .env_clear()
        .spawn()
        .map_err(|error| format!("cannot start the program: {error}"))?;
    let deadline = Instant::now() + Duration::from_secs(setup.limits.wall_s);
    // No thread that waits: it would be one more process that the code can see.
    let status = loop {
        match child.try_wait().map_err(|error| format!("cannot wait: {error}"))? {
            Some(status) => break status,
            None if Instant::now() >= deadline => return Ok(TIME_LIMIT),
            None => thread::sleep(POLL),
        }
    };
    Ok(match code_of(status) {
        // By the kernel's ticks, which may run ahead of the time that it accounts for.
        _ if status.signal() == Some(Signal::SIGXCPU as i32) => TIME_LIMIT,
        // Where that is overlooked, SIGKILL follows one second later.
        _ if status.signal().is_some() && cpu_seconds()? >= setup.limits.cpu_s as i64 => TIME_LIMIT,
        // A program's own exit codes mean nothing here.
        code if status.code().is_some() => i32::from(code != 0),
        code => code,
    })
}

/// What the program has used.
fn cpu_seconds() -> Staged<i64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(|error| format!("cannot read the clock: {error}"))?;
    Ok((usage.user_time() + usage.system_time()).num_seconds())
}

/// A root in memory with read-only views of the interpreter's folders, and a scratch folder.
fn build_root(setup: &Setup) -> Staged<()> {
    let none: Option<&Path> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).map_err(|error| format!("cannot make the mounts private: {error}"))?;
    let root = &setup.root;
    memory(root, 1 << 20, 0o755)?;
    for folder in &setup.folders {
        view_folder(root, folder)?;
    }
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    view_file(root, &program, Path::new(INIT), MsFlags::MS_NODEV)?;
    for device in DEVICES.map(Path::new) {
        view_file(root, device, device, MsFlags::MS_NOEXEC)?;
    }
    let scratch = inside(root, Path::new(SCRATCH));
    make_folder(&scratch)?;
    memory(&scratch, setup.limits.disk_bytes, 0o777)?;
    let old = root.join("old");
    make_folder(&old)?;
    pivot_root(root.as_path(), old.as_path()).map_err(|error| format!("cannot change the root: {error}"))?;
    chdir("/").map_err(|error| format!("cannot enter the root: {error}"))?;
    umount2("/old", MntFlags::MNT_DETACH).map_err(|error| format!("cannot leave the old root: {error}"))?;
    fs::remove_dir("/old").map_err(|error| format!("cannot remove the old root's place: {error}"))?;
    let sealed = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(none, "/", none, sealed, none).map_err(|error| format!("cannot make the root read-only: {error}"))?;
    chdir(SCRATCH).map_err(|error| format!("cannot enter the scratch folder: {error}"))
}

/// Mounts a file system in memory.
fn memory(at: &Path, bytes: u64, mode: u32) -> Staged<()> {
    let options = format!("size={bytes},nr_inodes=4096,mode={mode:o}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(|error| format!("cannot mount memory on {}: {error}", at.display()))
}

/// Where an absolute path lies within `root`.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn make_folder(path: &Path) -> Staged<()> {
    fs::create_dir_all(path).map_err(|error| format!("cannot make {}: {error}", path.display()))?;
    // The mask of the caller does not count.
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(path, open).map_err(|error| format!("cannot open {}: {error}", path.display()))
}

/// A read-only view of a folder at its own place; a symbolic link (`/lib` → `usr/lib`) as such.
fn view_folder(root: &Path, folder: &Path) -> Staged<()> {
    let place = inside(root, folder);
    if let Ok(target) = fs::read_link(folder) {
        return symlink(target, &place).map_err(|error| format!("cannot link {}: {error}", folder.display()));
    }
    let mut part = root.to_owned();
    for name in folder.strip_prefix("/").unwrap_or(folder) {
        part.push(name);
        if !part.exists() {
            make_folder(&part)?;
        }
    }
    bind(folder, &place, MsFlags::MS_NODEV)
}

fn view_file(root: &Path, file: &Path, place: &Path, flags: MsFlags) -> Staged<()> {
    let place = inside(root, place);
    make_folder(place.parent().expect("absolute"))?;
    let made = File::options().write(true).create(true).truncate(false).mode(0o644).open(&place);
    made.map_err(|error| format!("cannot make {}: {error}", place.display()))?;
    bind(file, &place, flags)
}

/// Shows `from` at `to`, read-only and without privileges. Flags that the mount has already may not be taken away
/// within a user namespace, so they are kept.
fn bind(from: &Path, to: &Path, flags: MsFlags) -> Staged<()> {
    let none: Option<&Path> = None;
    let fail = |error| format!("cannot show {} read-only: {error}", from.display());
    mount(Some(from), to, none, MsFlags::MS_BIND, none).map_err(fail)?;
    let present = statvfs(to).map_err(fail)?.flags();
    let kept = [
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    let kept = kept.into_iter().filter(|(flag, _)| present.contains(*flag)).map(|(_, flag)| flag);
    let sealed = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | flags;
    mount(none, to, none, kept.fold(sealed, |all, flag| all | flag), none).map_err(fail)
}

/// Gives everything up and becomes Python; returns only why that failed.
fn run_python(setup: &Setup) -> String {
    let path = |path: &Path| CString::new(path.as_os_str().as_encoded_bytes()).expect("a path holds no zero");
    let python = path(&setup.python);
    let text = |text: &str| CString::new(text).expect("no zero");
    // -s, -S: no site packages; -B: no bytecode files. Not -I: it would pass over the seed of hashes, which decides the
    // order of sets. The environment and the folder are ours.
    let arguments = [python.clone(), text("-s"), text("-S"), text("-B"), text("-c"), text(setup.part.harness())];
    // One arena: others reserve address space by the number of processors, and the limit on that would bite elsewhere.
    let environment = ["PATH=/usr/bin", "HOME=/scratch", "LC_ALL=C.UTF-8", "PYTHONHASHSEED=0", "MALLOC_ARENA_MAX=1"];
    let environment = environment.map(text);
    if let Err(reason) = give_up(setup) {
        return reason;
    }
    match execve(&python, &arguments, &environment) {
        Ok(never) => match never {},
        Err(error) => format!("cannot run {}: {error}", setup.python.display()),
    }
}

/// Limits, user, capabilities, system calls, in this order: each needs what the next takes away.
fn give_up(setup: &Setup) -> Staged<()> {
    let limits = &setup.limits;
    limit(Resource::RLIMIT_CPU, limits.cpu_s, limits.cpu_s + 1)?;
    limit(Resource::RLIMIT_AS, limits.memory_bytes, limits.memory_bytes)?;
    limit(Resource::RLIMIT_FSIZE, limits.disk_bytes, limits.disk_bytes)?;
    limit(Resource::RLIMIT_NOFILE, 64, 64)?;
    limit(Resource::RLIMIT_CORE, 0, 0)?;
    limit(Resource::RLIMIT_MEMLOCK, 0, 0)?;
    // How deep a recursion and how many threads fit must not depend on the caller's.
    limit(Resource::RLIMIT_STACK, STACK_BYTES, STACK_BYTES)?;
    drop_bounding_set()?;
    // Not before: in a new user namespace this limit would bind the one outside, too.
    let others = leave_user(setup)?;
    limit(Resource::RLIMIT_NPROC, limits.threads + others, limits.threads + others)?;
    let nothing = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: nothing, permitted: nothing, inheritable: nothing })
        .map_err(|error| format!("cannot drop capabilities: {error}"))?;
    prctl::set_no_new_privs().map_err(|error| format!("cannot forbid new privileges: {error}"))?;
    filter::apply()
}

fn limit(resource: Resource, soft: u64, hard: u64) -> Staged<()> {
    setrlimit(resource, soft, hard).map_err(|error| format!("cannot limit {resource:?}: {error}"))
}

fn drop_bounding_set() -> Staged<()> {
    for number in 0..64 {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            Err(_) if number > 0 => break, // beyond the kernel's last one
            Err(error) => return Err(format!("cannot drop capabilities: {error}")),
        }
    }
    Ok(())
}

/// Becomes a user whose threads are counted for this jail alone; how many others than Python's are in that count.
fn leave_user(setup: &Setup) -> Staged<u64> {
    let fail = |error| format!("cannot become nobody: {error}");
    // In a user namespace there is no other user to become; its root is the caller outside. Its count is its own.
    if setgroups(&[]).is_err() {
        return Ok(STAGE_THREADS);
    }
    let become_user = |id: u32| {
        let (user, group) = (Uid::from_raw(id), Gid::from_raw(NOBODY));
        setresgid(group, group, group).and_then(|()| setresuid(user, user, user))
    };
    if become_user(setup.user).is_ok() {
        return Ok(0);
    }
    // A container that maps few users: nobody, who may be elsewhere too, in a namespace of its own.
    become_user(NOBODY).map_err(fail)?;
    own_count(setup)?;
    unshare(CloneFlags::CLONE_NEWUSER).map_err(fail)?;
    drop_bounding_set()?; // a new namespace begins with all
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_count_by_namespace_are_known() {
        for (release, counts) in [
            ("6.18.44-fc-v595\n", true),
            ("5.14.0-427.el9.x86_64", true),
            ("5.13.19", false),
            ("4.18.0-553", false),
            ("10.0", true),
            ("5", false),
            ("", false),
        ] {
            assert_eq!(is_since_5_14(release), counts, "{release}");
        }
    }
}
