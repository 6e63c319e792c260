//! What the system tells about this process.

/// The greatest amount of memory that this process has held, in bytes; `None` where the system does not tell (read from
/// `/proc`, so on Linux alone).
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
