//! `turnix check`: everything that is wrong with the configuration and the host, at once.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::path::Path;
use std::time::Duration;

use super::credentials::utc;
use super::{Configuration, Exit, holder, print, quick_start, state};
use crate::acme;
use crate::app::{self, Outside};
use crate::base::Clock;
use crate::config::{Config, External, PemFiles, Problem, Problems, Tls};
use crate::net::host;
use crate::stream::certificates;

/// 2024-01-01: a clock before this day has never been set.
const CLOCK_SET_UNIX: u64 = 1_704_067_200;
const CERTIFICATE_WARNING_SECS: u64 = 14 * 86_400;
/// How long a `listen.upstream` may take to accept a connection.
const UPSTREAM_PATIENCE: Duration = Duration::from_secs(2);
/// Relay ports that are tried before the range counts as taken.
const PORTS_TRIED: usize = 16;

#[derive(Default)]
struct Report {
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
    notes: Vec<String>,
}

impl Report {
    fn fail(&mut self, error: &anyhow::Error) {
        match error.downcast_ref::<Problems>() {
            Some(problems) => self.errors.extend(problems.iter().cloned()),
            None => self.errors.push(Problem::host(
                "quick start",
                format!("{error:#}"),
                "solve that, or give a configuration file with -c",
            )),
        }
    }
}

/// Prints every problem.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(configuration: &Configuration) -> anyhow::Result<Exit> {
    let mut report = Report::default();
    if let Some(config) = load(configuration, &mut report) {
        listeners(&config, &mut report);
        relays(&config, &mut report);
        if let Some(admin) = config.admin {
            check_bind(&mut report, "http.admin", admin, false);
        }
        match &config.tls {
            Some(Tls::Files(files)) => certificate(files, &mut report),
            Some(Tls::Acme(settings)) => ordered(&config, settings, &mut report),
            None => {}
        }
        for files in &config.certificates {
            certificate(files, &mut report);
        }
        if let Some(file) = &config.records.file {
            records_file(file, &mut report);
        }
        report.warnings.extend(app::host_shortages(&config));
        report.warnings.extend(config.warnings);
    }
    machine(&mut report);
    print(&render(&report))?;
    Ok(if report.errors.is_empty() {
        Exit::Done
    } else {
        Exit::Unusable
    })
}

/// Opens the file for writing as the server would, and leaves none behind.
fn records_file(path: &Path, report: &mut Report) {
    let existed = path.exists();
    let opened = OpenOptions::new().append(true).create(true).open(path);
    match opened {
        Ok(_) if !existed => {
            // Whoever removed it meanwhile has done the same.
            let _ = fs::remove_file(path);
        }
        Ok(_) => {}
        Err(error) => report.errors.push(Problem::host(
            "records.file",
            format!("{} cannot be written: {error}", path.display()),
            "let the user that the server runs as write there, or leave it empty",
        )),
    }
}

fn load(configuration: &Configuration, report: &mut Report) -> Option<Config> {
    let sources = configuration.sources();
    if sources.file.is_none() {
        report.notes.push(format!(
            "no configuration file: `turnix` would do its quick start, with its state in {}",
            state::directory(&sources).display()
        ));
        match quick_start::prepare(sources) {
            Ok(quick) => {
                report.notes.extend(quick.notes);
                return Some(quick.config);
            }
            Err(error) => {
                report.fail(&error);
                return None;
            }
        }
    }
    match Config::load(&sources) {
        Ok(config) => Some(config),
        Err(problems) => {
            report.errors.extend(problems.iter().cloned());
            None
        }
    }
}

/// Binds `address` for a moment.
fn bind(address: SocketAddr, udp: bool) -> io::Result<()> {
    if udp {
        UdpSocket::bind(address).map(drop)
    } else {
        TcpListener::bind(address).map(drop)
    }
}

fn check_bind(report: &mut Report, key: &str, address: SocketAddr, udp: bool) {
    let Err(error) = bind(address, udp) else {
        return;
    };
    let port = address.port();
    let kind = if udp { "UDP" } else { "TCP" };
    let mut found = format!("{address} ({kind}) cannot be bound: {error}");
    let remedy = match error.kind() {
        ErrorKind::AddrInUse => match holder::of_port(udp, port) {
            Some(holder) if holder.is_turnix() => {
                report.warnings.push(Problem::host(
                    key,
                    format!("{address} ({kind}) is in use by {holder}"),
                    "fine if that is the server to be reloaded or restarted",
                ));
                return;
            }
            Some(holder) => {
                found = format!("{address} ({kind}) is in use by {holder}");
                "stop that program, or choose another port".to_owned()
            }
            None => format!(
                "stop the program that has it (as root, ss -lnp 'sport = :{port}' names it), or choose another port"
            ),
        },
        ErrorKind::PermissionDenied => "run as root or with CAP_NET_BIND_SERVICE (setcap \
             cap_net_bind_service=+ep on the program), or choose a port from 1024"
            .into(),
        ErrorKind::AddrNotAvailable => {
            "use an address of this host (ip address lists them), or a wildcard".into()
        }
        _ if address.is_ipv6() => {
            "if IPv6 is switched off on this host, listen on 0.0.0.0 instead of [::]".into()
        }
        _ => "choose another address or port".into(),
    };
    report.errors.push(Problem::host(key, found, remedy));
}

fn listeners(config: &Config, report: &mut Report) {
    for listener in &config.listeners {
        if listener.has_datagrams() {
            check_bind(report, "listen.address", listener.address, true);
        }
        if listener.has_streams() {
            check_bind(report, "listen.address", listener.address, false);
        }
        if let Some(upstream) = &listener.sharing.upstream
            && let Err(error) = TcpStream::connect_timeout(&upstream.address, UPSTREAM_PATIENCE)
        {
            report.warnings.push(Problem::host(
                "listen.upstream",
                format!("{} does not accept connections: {error}", upstream.address),
                "start that server; until then whoever asks for it is turned away",
            ));
        }
    }
}

fn relays(config: &Config, report: &mut Report) {
    let addresses = config.relay_locals();
    if addresses.is_empty() {
        report.warnings.push(Problem::host(
            "relay.addresses",
            "this host has no address but loopback, so only clients on it can be relayed",
            "bring up an interface, or name an address",
        ));
    }
    for ip in &addresses {
        if let Err(problem) = relay_bindable(config, *ip) {
            report.errors.push(problem);
        }
    }
    let outside = Outside::new(config);
    match outside.look_now() {
        Ok(look) => {
            let seen = look.seen.iter().filter(|seen| seen.local != seen.external);
            report.notes.extend(seen.map(|seen| {
                let source = seen.source.described();
                format!(
                    "{} is seen from outside as {} ({source})",
                    seen.local, seen.external
                )
            }));
            report.warnings.extend(outside.complaints(&look));
        }
        Err(error) => report.errors.push(Problem::host(
            "relay.external_address",
            format!("cannot be looked for: {error}"),
            "if it says \"too many open files\", raise LimitNOFILE",
        )),
    }
    if let External::Mapped(mappings) = &config.relay.external {
        let locals = mappings.iter().filter_map(|mapping| mapping.local);
        for local in locals.filter(|local| !addresses.contains(local)) {
            report.warnings.push(Problem::host(
                "relay.external_address",
                format!("maps {local}, from which nothing is relayed"),
                "add it to relay.addresses, or remove the mapping",
            ));
        }
    }
}

fn relay_bindable(config: &Config, ip: IpAddr) -> Result<(), Problem> {
    let (first, last) = (*config.relay.ports.start(), *config.relay.ports.end());
    let step = (usize::from(last - first) / PORTS_TRIED).max(1);
    let mut refusal = None;
    for port in config.relay.ports.clone().step_by(step) {
        match bind(SocketAddr::new(ip, port), true) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                return Err(Problem::host(
                    "relay.addresses",
                    format!("{ip} is not an address of this host"),
                    "write the local address here (ip address lists them) and the public one in relay.external_address",
                ));
            }
            Err(error) => refusal = Some(error),
        }
    }
    let why = refusal.map_or_else(String::new, |error| error.to_string());
    Err(Problem::host(
        "relay.ports",
        format!("no port of {first}-{last} on {ip} can be bound: {why}"),
        "choose another range, or stop the program that has these ports",
    ))
}

/// What loading does not refuse already.
fn certificate(files: &PemFiles, report: &mut Report) {
    let Ok(loaded) = certificates::load(&files.certificate, &files.key) else {
        return;
    };
    let left = loaded
        .not_after_unix()
        .saturating_sub(Clock.now().unix_secs());
    if left < CERTIFICATE_WARNING_SECS {
        report.warnings.push(Problem::host(
            "tls.certificate",
            format!(
                "{} expires in {} days, on {}",
                files.certificate.display(),
                left / 86_400,
                utc(loaded.not_after_unix())
            ),
            "renew it; turnix reads the files again when they change",
        ));
    }
}

/// What an authority would stumble over, as far as it can be told from here.
fn ordered(config: &Config, settings: &acme::Settings, report: &mut Report) {
    let store = acme::Store::at(settings);
    let (names, place) = (settings.names.join(", "), store.directory().display());
    if let Err(error) = store.probe() {
        report.errors.push(Problem::host(
            "tls.acme",
            format!("nothing can be kept in {place}: {error}"),
            "let the user that the server runs as write there, and run this check as that user; STATE_DIRECTORY names \
             another directory",
        ));
    }
    match store.certificate() {
        Ok(Some(kept)) => report.notes.push(format!(
            "the certificate for {names} in {place} is good until {}",
            utc(kept.not_after_unix())
        )),
        Ok(None) => report.notes.push(format!(
            "{place} holds no certificate for {names} yet: the server orders one when it starts"
        )),
        Err(error) => report.warnings.push(Problem::host(
            "tls.acme",
            error.to_string(),
            "nothing needs to be done: the server orders another when it starts",
        )),
    }
    let mut own: Vec<IpAddr> = host::interface_addresses();
    if let External::Mapped(mappings) = &config.relay.external {
        own.extend(mappings.iter().map(|mapping| mapping.external));
    }
    for name in &settings.names {
        let found = match (name.as_str(), 0).to_socket_addrs() {
            Ok(found) => found
                .map(|address| address.ip().to_canonical())
                .collect::<Vec<_>>(),
            Err(error) => {
                report.warnings.push(Problem::host(
                    "tls.acme.names",
                    format!("{name} leads nowhere from here: {error}"),
                    "give it an A or AAAA record with the public address of this host",
                ));
                continue;
            }
        };
        if !found.iter().any(|ip| own.contains(ip)) {
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            report.warnings.push(Problem::host(
                "tls.acme.names",
                format!("{name} leads to {}, which this host does not have", found.join(", ")),
                "fine where that is a NAT or a proxy in front of it (relay.external_address may say so); else correct the \
                 record",
            ));
        }
    }
}

fn machine(report: &mut Report) {
    let now_unix = Clock.now().unix_secs();
    if now_unix < CLOCK_SET_UNIX {
        report.errors.push(Problem::host(
            "clock",
            format!("says {}", utc(now_unix)),
            "set it (timedatectl set-ntp true): time-limited credentials and certificates depend on it",
        ));
    }
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    for problem in &report.errors {
        text += &format!("error: {problem}\n");
    }
    for problem in &report.warnings {
        text += &format!("warning: {problem}\n");
    }
    for note in &report.notes {
        text += &format!("note: {note}\n");
    }
    let count = |number: usize, what: &str| match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    };
    let warnings = count(report.warnings.len(), "warning");
    if report.errors.is_empty() {
        text + &format!("turnix can serve: {warnings}\n")
    } else {
        let errors = count(report.errors.len(), "error");
        text + &format!("turnix could not serve: {errors}, {warnings}\n")
    }
}
