//! What the system tells about this process and this machine.

use std::fs;
use std::path::{Path, PathBuf};

/// The greatest amount of memory that this process has held, in bytes; `None` where the system does not tell (read from
/// `/proc`, so on Linux alone).
pub fn peak_rss_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Lets [`peak_rss_bytes`] begin anew, from what is held now; does nothing where the system has no such thing.
pub fn forget_peak_rss() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// Memory that this process can take without others being swapped out or ended, in bytes: what the machine has left, or
/// its group of processes may still take; `None` where the system does not tell.
pub fn available_memory_bytes() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available = line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024;
    let number = |file: &str| fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse::<u64>().ok();
    let of_group = number("memory.max").zip(number("memory.current")).map(|(max, now)| max.saturating_sub(now));
    Some(of_group.map_or(available, |bytes| bytes.min(available)))
}

/// Processor time of this process so far, all threads together, in seconds; `None` where the system does not tell.
pub fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold anything; user and system time are the 14th and 15th field.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    const TICKS_PER_SECOND: f64 = 100.0; // USER_HZ, the same on every Linux
    Some(ticks as f64 / TICKS_PER_SECOND)
}

/// Seconds since 1970 by the system's clock, which can be set.
pub fn unix_time() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// The processor's name; empty where the system does not tell.
pub fn cpu_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("model name"));
    line.and_then(|line| line.split_once(": ")).map_or(String::new(), |(_, name)| name.trim().to_string())
}

/// How fast this machine did things that were measured on it, by what was done. Kept for the user, outside all runs.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Measurements {
    /// Tokens a second, by [`work`](Measurements::work).
    #[serde(default)]
    pub tokens_per_second: std::collections::BTreeMap<String, f64>,
}

impl Measurements {
    /// Where they are: `$XDG_STATE_HOME/wels/machine.json`, or below `~/.local/state`; `None` without a home.
    fn path() -> Option<PathBuf> {
        let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let state = folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME")?.join(".local/state")))?;
        Some(state.join("wels/machine.json"))
    }

    /// What was measured so far; nothing if the file is not there or cannot be read.
    pub fn load() -> Measurements {
        let text = Measurements::path().and_then(|path| fs::read_to_string(path).ok());
        text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    /// Keeps one measurement more.
    pub fn keep(work: String, tokens_per_second: f64) -> std::io::Result<()> {
        let Some(path) = Measurements::path() else { return Ok(()) };
        let mut all = Measurements::load();
        all.tokens_per_second.insert(work, tokens_per_second);
        fs::create_dir_all(path.parent().expect("a path with a folder"))?;
        crate::files::write_atomically(&path, serde_json::to_string_pretty(&all).expect("plain data").as_bytes())
    }

    /// Names the work of a recipe's training steps on this machine: all that decides about their speed.
    pub fn work(recipe: &crate::recipe::Recipe, threads: usize) -> String {
        let section = &recipe.pretrain;
        let what = serde_json::json!({
            "model": recipe.model,
            "sequence_length": recipe.data.sequence_length,
            "batch_tokens": section.batch_tokens,
            "micro_batch": section.micro_batch,
            "precision": crate::recipe::word_of_precision(section.precision),
            "recompute_layers": section.recompute_layers,
        });
        Measurements::name("training", &what, threads)
    }

    /// Names work of a kind, of which `what` says all that decides about its speed, on this machine.
    pub fn name(kind: &str, what: &serde_json::Value, threads: usize) -> String {
        let all = serde_json::json!({ "cpu": cpu_name(), "threads": threads, "what": what });
        format!("{kind} {}", &crate::hash::sha256(all.to_string().as_bytes())[..16])
    }
}

/// The counters of the processors' packages (RAPL): microjoules that grow and begin again at 0 when they are full.
/// Nothing is counted twice or lost as long as a counter is read more often than it wraps, which takes minutes.
#[derive(Debug)]
pub struct EnergyMeter(Vec<Counter>);

#[derive(Debug)]
struct Counter {
    path: PathBuf,
    range_uj: u64,
    last_uj: u64,
}

impl EnergyMeter {
    /// The meter of this machine.
    pub fn of_this_machine() -> EnergyMeter {
        EnergyMeter::open(Path::new("/sys/class/powercap"))
    }

    /// The packages below `folder`; without any that this user may read, the meter knows nothing.
    pub fn open(folder: &Path) -> EnergyMeter {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        // intel-rapl:0 is a package (AMD's too), intel-rapl:0:1 a part of it.
        let packages = entries.filter(|entry| {
            let name = entry.file_name();
            name.to_str().and_then(|name| name.strip_prefix("intel-rapl:")).is_some_and(|rest| !rest.contains(':'))
        });
        let mut counters: Vec<Counter> = packages.filter_map(|package| Counter::open(&package.path())).collect();
        counters.sort_by(|a, b| a.path.cmp(&b.path));
        EnergyMeter(counters)
    }

    /// Joules since the last call, or since the meter was opened; `None` if the machine does not tell.
    pub fn joules(&mut self) -> Option<f64> {
        self.0.retain_mut(|counter| read_number(&counter.path.join("energy_uj")).is_some());
        if self.0.is_empty() {
            return None;
        }
        Some(self.0.iter_mut().map(|counter| counter.grown_uj() as f64 / 1e6).sum())
    }
}

impl Counter {
    fn open(package: &Path) -> Option<Counter> {
        let range_uj = read_number(&package.join("max_energy_range_uj"))?;
        let last_uj = read_number(&package.join("energy_uj"))?;
        Some(Counter { path: package.to_path_buf(), range_uj, last_uj })
    }

    fn grown_uj(&mut self) -> u64 {
        let Some(now) = read_number(&self.path.join("energy_uj")) else { return 0 };
        let grown = match now >= self.last_uj {
            true => now - self.last_uj,
            false => self.range_uj.saturating_sub(self.last_uj).saturating_add(now),
        };
        self.last_uj = now;
        grown
    }
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn energy_counters_wrap() {
        let folder = tempfile::tempdir().unwrap();
        let put = |package: &str, file: &str, value: u64| {
            let package = folder.path().join(package);
            fs::create_dir_all(&package).unwrap();
            fs::write(package.join(file), format!("{value}\n")).unwrap();
        };
        for (package, at) in [("intel-rapl:0", 9_000_000), ("intel-rapl:1", 0), ("intel-rapl:0:0", 5_000_000)] {
            put(package, "max_energy_range_uj", 10_000_000);
            put(package, "energy_uj", at);
        }
        let mut meter = EnergyMeter::open(folder.path());
        assert_eq!(meter.joules(), Some(0.0));
        put("intel-rapl:0", "energy_uj", 500_000); // one joule to the end, half a joule after it
        put("intel-rapl:1", "energy_uj", 2_000_000);
        put("intel-rapl:0:0", "energy_uj", 9_000_000); // a part of a package that is counted already
        assert_eq!(meter.joules(), Some(3.5));
        assert_eq!(meter.joules(), Some(0.0));
        fs::write(folder.path().join("intel-rapl:1/energy_uj"), "nonsense").unwrap();
        put("intel-rapl:0", "energy_uj", 1_500_000);
        assert_eq!(meter.joules(), Some(1.0));
        assert_eq!(EnergyMeter::open(&folder.path().join("nothing")).joules(), None);
    }

    #[test]
    fn processor_time_grows() {
        let Some(before) = cpu_seconds() else { return eprintln!("skipped: this system does not tell") };
        let mut sum = 0u64;
        while cpu_seconds().unwrap() - before < 0.02 {
            sum = std::hint::black_box(sum + 1);
        }
    }
}
