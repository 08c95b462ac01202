//! Questions about the host, asked at start and by `turnix check`.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;

use super::sys;
use crate::base::{Family, addr};

/// Raises the soft limit of open files to the hard one; returns the soft limit in force now and the hard one.
///
/// # Errors
/// The kernel or a container's policy refuses to tell or to change the limit.
pub fn raise_open_files() -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: getrlimit(2) writes one `struct rlimit`.
    sys::check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: setrlimit(2) reads one `struct rlimit`.
        sys::check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    }
    // `rlim_t` has 32 bits on some targets.
    #[allow(clippy::useless_conversion, reason = "not useless everywhere")]
    Ok((u64::from(limit.rlim_cur), u64::from(limit.rlim_max)))
}

/// Keeps this process from leaving a core dump, which holds every secret; for good, unless it is root.
///
/// A limit of 1 rather than 0: the kernel asks the limit of 0 for files only, and takes 1 for "do not pipe it to the
/// handler in `kernel.core_pattern` either" (core(5), fs/coredump.c).
///
/// # Errors
/// The kernel or a container's policy refuses.
pub fn forbid_core_dumps() -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: getrlimit(2) writes one `struct rlimit`.
    sys::check(unsafe { libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit) })?;
    limit.rlim_max = limit.rlim_max.min(1);
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: setrlimit(2) reads one `struct rlimit`.
    sys::check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const limit) }).map(drop)
}

/// Lets the calling thread run on `cpu` only, counted from 0.
///
/// # Errors
/// There is no such CPU, or this process may not use it.
pub fn pin_thread(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: `cpu_set_t` is an array of integers, for which zero is valid: the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: CPU_SET(3) writes one bit, which lies inside the set as checked above.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: sched_setaffinity(2) reads `cpusetsize` bytes at `mask`; 0 is the calling thread.
    sys::check(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) }).map(drop)
}

/// The CPUs that the calling thread may run on, ascending; none if the kernel does not tell.
pub fn usable_cpus() -> Vec<usize> {
    // SAFETY: `cpu_set_t` is an array of integers, for which zero is valid: the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: sched_getaffinity(2) writes at most `cpusetsize` bytes at `mask`; 0 is the calling thread.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) } < 0 {
        return Vec::new();
    }
    (0..libc::CPU_SETSIZE as usize)
        // SAFETY: CPU_ISSET(3) reads one bit, which lies inside the set.
        .filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) })
        .collect()
}

/// Makes the calling thread stand back by `by` where others want the CPU as well, as nice(1) counts: each step is about
/// a tenth. A thread may always do that.
pub fn stand_back(by: u8) {
    // SAFETY: nice(2) takes no pointers; on Linux it concerns the calling thread alone, and values beyond 19 are 19.
    unsafe { libc::nice(libc::c_int::from(by)) };
}

/// How many ticks a second the CPU times in `/proc` are counted in.
pub fn clock_ticks() -> u64 {
    // SAFETY: sysconf(3) takes no pointers.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks)
        .ok()
        .filter(|ticks| *ticks > 0)
        .unwrap_or(100)
}

/// The largest receive buffer a socket may ask for, in bytes (`net.core.rmem_max`). `None` where it is hidden, as in
/// containers without it.
pub fn rmem_max() -> Option<usize> {
    sysctl("net/core/rmem_max")?.trim().parse().ok()
}

/// The largest send buffer a socket may ask for, in bytes (`net.core.wmem_max`). `None` where it is hidden.
pub fn wmem_max() -> Option<usize> {
    sysctl("net/core/wmem_max")?.trim().parse().ok()
}

/// The ports the kernel hands out by itself; relay ports inside this range collide with them now and then.
pub fn ip_local_port_range() -> Option<RangeInclusive<u16>> {
    parse_port_range(&sysctl("net/ipv4/ip_local_port_range")?)
}

/// Addresses of all interfaces that are up, canonical, each once, in the kernel's order.
///
/// Includes loopback and link-local addresses. Empty if the kernel does not tell.
pub fn interface_addresses() -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for interface in if_addrs::get_if_addrs().unwrap_or_default() {
        let ip = interface.ip().to_canonical();
        if interface.is_oper_up() && !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    addresses
}

/// The address that datagrams to the internet leave from; `None` without a default route. Sends nothing.
pub fn default_source(family: Family) -> Option<IpAddr> {
    // Root name servers: global unicast addresses that do not move. Any other would do, only the route matters.
    let target = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(198, 41, 0, 4)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30)),
    };
    let socket = UdpSocket::bind(SocketAddr::new(addr::unspecified(family), 0)).ok()?;
    // connect(2) on a datagram socket only sets the peer, which makes the kernel choose route and source.
    socket.connect(SocketAddr::new(target, 53)).ok()?;
    let source = socket.local_addr().ok()?.ip();
    (!source.is_unspecified()).then_some(source)
}

/// What the firmware says about this machine (SMBIOS), such as `sys_vendor`; `None` where it is hidden.
pub fn firmware(field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/sys/class/dmi/id/{field}")).ok()?;
    Some(text.trim().to_owned())
}

fn sysctl(name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/{name}")).ok()
}

fn parse_port_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse::<u16>);
    let first = numbers.next()?.ok()?;
    let last = numbers.next()?.ok()?;
    (first <= last).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_range_is_two_ordered_numbers() {
        assert_eq!(parse_port_range("32768\t60999\n"), Some(32_768..=60_999));
        assert_eq!(parse_port_range("60999 32768"), None);
        assert_eq!(parse_port_range("32768"), None);
        assert_eq!(parse_port_range("32768 70000"), None);
        assert_eq!(parse_port_range(""), None);
    }
}
