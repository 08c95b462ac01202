//! What the kernel says about a process: CPU time and memory, read from /proc.

use std::fs;

use anyhow::Context;

use crate::net::host;

/// CPU time that was used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// On a CPU, all threads together, in nanoseconds.
    pub total_ns: u64,
    /// In user mode, in nanoseconds, counted by ticks and therefore coarse.
    pub user_ns: u64,
    /// In the kernel, as coarse.
    pub system_ns: u64,
}

impl Cpu {
    /// What was used since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            total_ns: self.total_ns.saturating_sub(earlier.total_ns),
            user_ns: self.user_ns.saturating_sub(earlier.user_ns),
            system_ns: self.system_ns.saturating_sub(earlier.system_ns),
        }
    }
}

/// All threads of process `pid`.
///
/// # Errors
/// There is no such process.
pub fn cpu(pid: u32) -> anyhow::Result<Cpu> {
    let gone = || format!("there is no process {pid}; give the server's id with --pid");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(gone)?;
    // The name in parentheses may hold spaces; what follows it is proc(5)'s field 3 and on.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let tick_ns = 1_000_000_000 / host::clock_ticks();
    let ticks = |field: usize| {
        let text = fields.split_ascii_whitespace().nth(field - 3);
        text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) * tick_ns
    };
    let (user_ns, system_ns) = (ticks(14), ticks(15));
    let mut total_ns = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))
        .with_context(gone)?
        .flatten()
    {
        // A thread may end while we look.
        total_ns += schedstat(&task.path().join("schedstat")).unwrap_or(0);
    }
    if total_ns == 0 {
        // A kernel without schedstat.
        total_ns = user_ns + system_ns;
    }
    Ok(Cpu {
        total_ns,
        user_ns,
        system_ns,
    })
}

/// The calling thread's time on a CPU, in nanoseconds; 0 where the kernel does not tell.
pub fn own_cpu_ns() -> u64 {
    schedstat("/proc/thread-self/schedstat".as_ref()).unwrap_or(0)
}

fn schedstat(path: &std::path::Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// Resident memory of process `pid`, in bytes; 0 where the kernel does not tell.
pub fn resident_bytes(pid: u32) -> u64 {
    kibibytes(&format!("/proc/{pid}/status"), "VmRSS:")
}

/// Slab memory of the whole kernel, in bytes; 0 where it does not tell.
pub fn slab_bytes() -> u64 {
    kibibytes("/proc/meminfo", "Slab:")
}

fn kibibytes(path: &str, key: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_ascii_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_uses_its_cpu() {
        let pid = std::process::id();
        let before = cpu(pid).unwrap();
        let mut sum = 0u64;
        for round in 0..20_000_000u64 {
            sum = std::hint::black_box(sum.wrapping_add(round));
        }
        assert!(cpu(pid).unwrap().since(before).total_ns > 0);
        assert!(resident_bytes(pid) > 1 << 20);
        assert!(cpu(u32::MAX).is_err());
    }
}
