//! What the host grants less of than the configuration asks for: told at start and by `turnix check`.

use crate::config::{Config, Problem};
use crate::net::{self, host};

/// Files that are open besides relay sockets: listeners, stream clients, logs, epoll sets.
const OTHER_FILES: u64 = 512;

/// Raises the limit of open files, and says what allocations and bursts will run into, each with the way out.
pub fn shortages(config: &Config) -> Vec<Problem> {
    let limit = match host::raise_open_files() {
        Ok((limit, _)) => limit,
        Err(error) => {
            return vec![Problem::host(
                "open files",
                format!("the limit cannot be raised: {error}"),
                "raise it from outside (LimitNOFILE= in the systemd unit): every allocation needs one",
            )];
        }
    };
    let allocations = u64::from(config.access.limits.allocations);
    // A host that has nothing but loopback relays from there.
    let addresses = config.relay_locals().len().max(1) as u64;
    let ports = config.relay.ports.clone().count() as u64;
    [
        buffers(config),
        relayed_addresses(allocations, ports, addresses),
        open_files(allocations, ports * addresses, limit),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn buffers(config: &Config) -> Option<Problem> {
    let server = config.server;
    let (key, wanted) = [
        ("server.listener_buffer", server.listener_buffer_bytes),
        ("server.relay_buffer", server.relay_buffer_bytes),
    ]
    .into_iter()
    .max_by_key(|(_, bytes)| *bytes)?;
    let (receive, send) = net::granted_buffers(wanted).ok()?;
    let granted = receive.min(send);
    (granted < wanted).then(|| {
        Problem::host(
            key,
            format!(
                "wants {wanted} bytes, and this host grants {granted}: packets of longer bursts are lost"
            ),
            format!(
                "sysctl -w net.core.rmem_max={wanted} net.core.wmem_max={wanted}, give turnix CAP_NET_ADMIN, \
                 or ask for less"
            ),
        )
    })
}

fn relayed_addresses(allocations: u64, ports: u64, addresses: u64) -> Option<Problem> {
    let most = ports * addresses;
    (allocations > most).then(|| {
        let of = match addresses {
            1 => "one relay address has".to_owned(),
            _ => format!("{addresses} relay addresses have"),
        };
        Problem::host(
            "relay.ports",
            format!("{of} {most} ports, and limits.allocations is {allocations}"),
            "widen relay.ports, name more addresses in relay.addresses, or lower limits.allocations",
        )
    })
}

fn open_files(allocations: u64, relayed_addresses: u64, limit: u64) -> Option<Problem> {
    let (wanted, why) = match allocations {
        0 => (relayed_addresses, "there are relay ports for"),
        _ if allocations > relayed_addresses => (relayed_addresses, "there are relay ports for"),
        _ => (allocations, "limits.allocations is"),
    };
    let possible = limit.saturating_sub(OTHER_FILES);
    (wanted > possible).then(|| {
        Problem::host(
            "open files",
            format!("at most {limit}, enough for {possible} allocations, and {why} {wanted}"),
            format!(
                "raise the hard limit (LimitNOFILE={} in the systemd unit, ulimit -Hn), or set limits.allocations",
                wanted + OTHER_FILES
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(problem: Option<Problem>) -> String {
        problem.map_or_else(String::new, |problem| problem.to_string())
    }

    #[test]
    fn files_are_counted_against_what_can_be_allocated() {
        assert_eq!(said(open_files(0, 16_384, 1_048_576)), "");
        assert_eq!(said(open_files(1000, 16_384, 1512)), "");
        assert_eq!(
            said(open_files(1001, 16_384, 1512)),
            "host: open files: at most 1512, enough for 1000 allocations, and limits.allocations is 1001; raise the \
             hard limit (LimitNOFILE=1513 in the systemd unit, ulimit -Hn), or set limits.allocations"
        );
        let many = said(open_files(u32::MAX.into(), 32_768, 1024));
        assert!(
            many.contains("enough for 512 allocations, and there are relay ports for 32768;"),
            "{many}"
        );
        assert!(many.contains("LimitNOFILE=33280"), "{many}");
    }

    #[test]
    fn ports_are_counted_on_every_address() {
        assert_eq!(said(relayed_addresses(0, 10, 1)), "");
        assert_eq!(said(relayed_addresses(20, 10, 2)), "");
        assert!(
            said(relayed_addresses(21, 10, 2))
                .contains("2 relay addresses have 20 ports, and limits.allocations is 21")
        );
        assert!(said(relayed_addresses(11, 10, 1)).contains("one relay address has 10 ports"));
    }
}
