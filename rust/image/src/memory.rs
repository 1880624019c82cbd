//! How much memory there is to be had.

/// Bytes that this process could have without the host swapping or killing, as far as that can be told.
#[cfg(target_os = "linux")]
pub(crate) fn available() -> u64 {
    use std::fs::read_to_string;
    use std::path::Path;

    // proc_meminfo(5), in KiB.
    let mut least = read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        })
        .map_or(0, |kib| kib.saturating_mul(1024));
    // Control groups of version 2 (Documentation/admin-guide/cgroup-v2.rst): the process's own and those above it.
    let own = read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    for group in Path::new(own).ancestors() {
        let place = Path::new("/sys/fs/cgroup").join(group);
        let value = |name: &str| {
            read_to_string(place.join(name)).ok().and_then(|text| text.trim().parse::<u64>().ok())
        };
        if let (Some(most), Some(used)) = (value("memory.max"), value("memory.current")) {
            least = least.min(most.saturating_sub(used));
        }
    }
    // proc_pid_limits(5): the name, then the soft limit in bytes, or "unlimited".
    let limits = read_to_string("/proc/self/limits").unwrap_or_default();
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max address space"));
    match soft.and_then(|line| line.split_whitespace().next()?.parse().ok()) {
        Some(bytes) => least.min(bytes),
        None => least,
    }
}

/// Elsewhere nothing is known that could be relied on.
#[cfg(not(target_os = "linux"))]
pub(crate) fn available() -> u64 {
    2 << 30
}
