//! What Prometheus' own libraries say of a process, from `/proc`; elsewhere nothing.

use std::fs;

use super::page::{Kind, Page};

/// Ticks a second of the times in `/proc`: 100 on every architecture that Linux shows them to programs on.
const TICKS: f64 = 100.0;

/// Writes the `process_…` metrics that the system tells.
pub(super) fn write(page: &mut Page) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is the program's name in parentheses, in which anything can stand; what follows has no spaces.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace().collect();
    // Numbered from 1 in proc(5); the third is the first here.
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<f64>().ok());
    let mut metric = |name, kind, help, value: Option<f64>| {
        if let Some(value) = value {
            page.plain(name, kind, help, value);
        }
    };
    let seconds = field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS);
    metric("process_cpu_seconds_total", Kind::Counter, "Processor time of all threads.", seconds);
    let started = field(22).zip(boot_unix_s()).map(|(ticks, boot)| boot + ticks / TICKS);
    metric("process_start_time_seconds", Kind::Gauge, "When the process began, since 1970.", started);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let (resident, mapped) = (kib(&status, "VmRSS:"), kib(&status, "VmSize:"));
    metric("process_resident_memory_bytes", Kind::Gauge, "Memory in use.", resident.map(|kib| kib * 1024.0));
    metric("process_virtual_memory_bytes", Kind::Gauge, "Address space in use.", mapped.map(|kib| kib * 1024.0));
    let open = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1) as f64);
    metric("process_open_fds", Kind::Gauge, "Open descriptors.", open);
    metric("process_max_fds", Kind::Gauge, "Descriptors that may be open.", max_fds());
}

/// Of a line `NAME   NUMBER kB`.
fn kib(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// When the machine began, in seconds since 1970.
fn boot_unix_s() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn max_fds() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}
