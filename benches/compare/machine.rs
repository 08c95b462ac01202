//! The machine and the day, as far as they bear on the figures.

use std::fs;

use turnix::base::Clock;

use crate::process::output_of;

/// Name and value of everything that a reader has to know.
pub fn describe(real_time: bool, cpus: (usize, usize)) -> Vec<(&'static str, String)> {
    let mut rows = vec![("date", date(Clock.now().unix_secs()))];
    let cpuinfo = read("/proc/cpuinfo");
    let field = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
    };
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor"));
    let virtual_machine = field("flags").is_some_and(|flags| flags.contains("hypervisor"));
    rows.push((
        "CPU",
        format!(
            "{}, {} cores{}",
            field("model name").unwrap_or_else(|| "unknown".into()),
            cores.count(),
            if virtual_machine {
                ", a virtual machine"
            } else {
                ""
            }
        ),
    ));
    let kib = |key: &str| {
        let meminfo = read("/proc/meminfo");
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|rest| rest.split_ascii_whitespace().next());
        number.and_then(|number| number.parse::<u64>().ok())
    };
    if let Some(total) = kib("MemTotal:") {
        rows.push(("memory", format!("{} GiB", (total + (1 << 19)) >> 20)));
    }
    rows.push((
        "kernel",
        format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
    ));
    let release = read("/etc/os-release");
    if let Some(name) = (release.lines()).find_map(|line| line.strip_prefix("PRETTY_NAME=")) {
        rows.push(("system", name.trim_matches('"').to_owned()));
    }
    rows.push((
        "socket buffers",
        format!(
            "net.core.rmem_max {}, wmem_max {}",
            or_unknown(&read("/proc/sys/net/core/rmem_max")),
            or_unknown(&read("/proc/sys/net/core/wmem_max"))
        ),
    ));
    rows.push((
        "placement",
        format!(
            "servers on CPU {}, generator on CPU {}, {}",
            cpus.0,
            cpus.1,
            if real_time {
                "both SCHED_FIFO"
            } else {
                "without real-time priority: chrt was not permitted"
            }
        ),
    ));
    rows.push(("load average at the start", load_average()));
    rows
}

/// The CPUs that this process may run on, in order.
pub fn usable_cpus() -> Vec<usize> {
    let status = read("/proc/self/status");
    let list = (status.lines()).find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let ranges = list.unwrap_or_default().trim().split(',');
    ranges
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(first.parse::<usize>().ok()?..=last.parse().ok()?)
        })
        .flatten()
        .collect()
}

/// The commit that was built, where git tells.
pub fn commit() -> Option<String> {
    let root = env!("CARGO_MANIFEST_DIR");
    let arguments = ["-C", root, "describe", "--always", "--dirty=+"];
    let text = output_of("git", &arguments)?;
    let text = text.trim();
    let known = !text.is_empty() && !text.contains(char::is_whitespace);
    known.then(|| text.to_owned())
}

/// Runnable processes, averaged over 1, 5 and 15 minutes.
pub fn load_average() -> String {
    let text = read("/proc/loadavg");
    let numbers: Vec<&str> = text.split_ascii_whitespace().take(3).collect();
    or_unknown(&numbers.join(" ")).to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn or_unknown(text: &str) -> &str {
    match text.trim() {
        "" => "unknown",
        known => known,
    }
}

/// The day as YYYY-MM-DD, from seconds since the Unix epoch.
fn date(unix_secs: u64) -> String {
    let mut days = unix_secs / 86_400;
    let mut year = 1970;
    let leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", days + 1)
}
