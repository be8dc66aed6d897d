//! How much memory the process may use.

use std::fs;
use std::path::Path;

/// The memory that the process may have, in bytes: the least bound of its control groups, or that of the
/// machine. `None`: it cannot be told.
#[must_use]
pub fn memory_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_of(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let bounds = groups.lines().filter_map(bound_of_line);
    bounds.chain(machine).min()
}

/// The least bound of a control group and those that it is in.
fn bound_of_line(line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, group) = (parts.next()?, parts.next()?, parts.next()?);
    let (root, file) = match controllers {
        "" => ("/sys/fs/cgroup", "memory.max"),
        _ if controllers.split(',').any(|name| name == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        _ => return None,
    };
    // In a container the root may be the group itself.
    let groups = Path::new(group).ancestors().chain([Path::new("/")]);
    let bounds = groups.filter_map(|group| {
        let path = Path::new(root).join(group.strip_prefix("/").unwrap_or(group)).join(file);
        fs::read_to_string(path).ok().and_then(|text| bound_of(&text))
    });
    bounds.min()
}

/// `max` is none.
fn bound_of(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

fn total_of(meminfo: &str) -> Option<u64> {
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"));
    kib?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_read_as_the_kernel_writes_them() {
        assert_eq!(total_of("MemTotal:       24683456 kB\nMemFree: 1 kB\n"), Some(24_683_456 * 1024));
        assert_eq!(total_of("MemFree: 1 kB\n"), None);
        assert_eq!(bound_of("536870912\n"), Some(512 * 1024 * 1024));
        assert_eq!(bound_of("max\n"), None);
        assert_eq!(bound_of_line("4:cpu,cpuacct:/x"), None);
        assert!(memory_bytes().is_some());
    }
}
