//! Every option of coturn: its names, and what becomes of it.

use super::translate::{Translation, Verdict};
use super::{lines, take as t};

/// An option of coturn 4.17 or an earlier version.
pub(super) struct Known {
    /// Its long name, the only one that coturn reads in a file.
    pub name: &'static str,
    /// Its letter on the command line.
    short: Option<char>,
    /// Whether every line counts, not the last one alone.
    pub many: bool,
    plan: Plan,
}

/// What becomes of an option.
enum Plan {
    /// A switch that turnix has no key for, since it is always on.
    Always(&'static str),
    /// Something that turnix does not do, and why, or the way to it.
    Never(&'static str),
    /// Something that changes nothing with turnix.
    Idle(&'static str),
    /// Something to write.
    Taken(fn(&mut Translation<'_>, &Line<'_>) -> Verdict),
}

/// A line of the file and the option it is about.
pub(super) struct Line<'a> {
    /// The option.
    pub known: &'static Known,
    /// Counted from 1.
    pub number: usize,
    /// What is set.
    pub value: &'a str,
}

impl Line<'_> {
    /// Where a key of the result comes from.
    pub fn note(&self) -> String {
        format!("line {}: {}", self.number, self.known.name)
    }

    /// What becomes of it, with what there is to write written to `translation`.
    pub fn apply(&self, translation: &mut Translation<'_>) -> Verdict {
        let on = lines::is_on(self.value);
        match self.known.plan {
            Plan::Always(reason) if on == Some(false) => {
                Verdict::refused(format!("it cannot be switched off: {reason}"))
            }
            Plan::Always(reason) | Plan::Idle(reason) => Verdict::idle(reason),
            Plan::Never(_) if lines::says_off(self.value) => {
                Verdict::idle("switched off, as it always is here")
            }
            Plan::Never(reason) => Verdict::refused(reason),
            Plan::Taken(take) => take(translation, self),
        }
    }
}

/// The option of that long name.
pub(super) fn find(name: &str) -> Option<&'static Known> {
    OPTIONS.iter().find(|option| option.name == name)
}

/// The option of that letter.
pub(super) fn find_short(letter: char) -> Option<&'static Known> {
    OPTIONS.iter().find(|option| option.short == Some(letter))
}

const fn option(name: &'static str, short: Option<char>, plan: Plan) -> Known {
    Known {
        name,
        short,
        many: false,
        plan,
    }
}

const fn many(name: &'static str, short: Option<char>, plan: Plan) -> Known {
    Known {
        many: true,
        ..option(name, short, plan)
    }
}

/// All of them, as `docs/from-coturn.md` groups them.
pub(super) const OPTIONS: &[Known] = &[
    // Where it listens.
    option("listening-port", Some('p'), Plan::Taken(t::listen)),
    option("tls-listening-port", None, Plan::Taken(t::listen)),
    many("listening-ip", Some('L'), Plan::Taken(t::listen)),
    many("aux-server", None, Plan::Taken(t::listen)),
    option(
        "listening-device",
        Some('d'),
        Plan::Never("name the addresses of the interface in [[listen]]"),
    ),
    option(
        "alt-listening-port",
        None,
        Plan::Never(
            "it serves the discovery of NAT behaviour (RFC 5780), which turnix does not speak",
        ),
    ),
    option(
        "alt-tls-listening-port",
        None,
        Plan::Never(
            "it serves the discovery of NAT behaviour (RFC 5780), which turnix does not speak",
        ),
    ),
    option(
        "tcp-proxy-port",
        None,
        Plan::Never(
            "name your balancer in trusted_proxies of a [[listen]]: from there alone a PROXY header is believed, on the same port",
        ),
    ),
    option(
        "udp-self-balance",
        None,
        Plan::Idle("every port is served by all shards"),
    ),
    option("no-udp", None, Plan::Taken(t::listen)),
    option("no-tcp", None, Plan::Taken(t::listen)),
    option("no-tls", None, Plan::Taken(t::listen)),
    option(
        "no-dtls",
        None,
        Plan::Always("DTLS is off unless listen.protocols names \"dtls\""),
    ),
    option(
        "dtls",
        None,
        Plan::Never(
            "add \"dtls\" to listen.protocols, which takes a certificate with an ECDSA key",
        ),
    ),
    option(
        "respond-http-unsupported",
        None,
        Plan::Never("a port that does not name \"http\" closes such connections"),
    ),
    // From where and how it relays.
    many("relay-ip", Some('E'), Plan::Taken(t::relay_ip)),
    many("external-ip", Some('X'), Plan::Taken(t::external_ip)),
    option("min-port", None, Plan::Taken(t::ports)),
    option("max-port", None, Plan::Taken(t::ports)),
    option(
        "relay-device",
        Some('i'),
        Plan::Never("name the addresses of the interface in relay.addresses"),
    ),
    option("relay-threads", Some('m'), Plan::Taken(t::relay_threads)),
    option("cpus", None, Plan::Taken(t::relay_threads)),
    option("sock-buf-size", None, Plan::Taken(t::sock_buf_size)),
    option(
        "udp-recvmmsg",
        None,
        Plan::Always("packets are received in batches wherever the kernel can"),
    ),
    option(
        "udp-recvmmsg-log",
        None,
        Plan::Idle("turn_relayed_packets_total tells what passes"),
    ),
    option(
        "udp-gso",
        None,
        Plan::Always("packets are sent in trains wherever the kernel can"),
    ),
    option(
        "multiplex-peer",
        None,
        Plan::Never(
            "every allocation has a port of its own; relay.ports has 16384 unless you say otherwise",
        ),
    ),
    option(
        "multiplex-peer-port",
        None,
        Plan::Never("every allocation has a port of its own"),
    ),
    option(
        "multiplex-peer-max-peers",
        None,
        Plan::Never(
            "every allocation has a port of its own; limits.permissions_per_allocation bounds its peers",
        ),
    ),
    option(
        "multiplex-peer-tag",
        None,
        Plan::Never("every allocation has a port of its own"),
    ),
    option(
        "no-udp-relay",
        None,
        Plan::Never("UDP is what turnix relays"),
    ),
    option("no-tcp-relay", None, Plan::Taken(t::no_tcp_relay)),
    option(
        "server-relay",
        None,
        Plan::Never("peers without permission stay out (RFC 8656 §9)"),
    ),
    option("ne", None, Plan::Idle("there is one engine")),
    option(
        "keep-address-family",
        Some('K'),
        Plan::Taken(t::keep_family),
    ),
    option(
        "allocation-default-address-family",
        Some('A'),
        Plan::Taken(t::default_family),
    ),
    // Who may use it.
    option(
        "lt-cred-mech",
        Some('a'),
        Plan::Always("clients always need credentials"),
    ),
    option(
        "st-cred-mech",
        None,
        Plan::Never("TURN has long-term credentials only (RFC 8656 §5)"),
    ),
    option(
        "no-auth",
        Some('z'),
        Plan::Never(
            "it makes an open relay, which others use for attacks in your name; turnix always asks for credentials",
        ),
    ),
    many("user", Some('u'), Plan::Taken(t::user)),
    option(
        "use-auth-secret",
        None,
        Plan::Always("time-limited credentials are taken wherever there is a secret"),
    ),
    many("static-auth-secret", None, Plan::Taken(t::secret)),
    option("rest-api-separator", Some('C'), Plan::Taken(t::separator)),
    option("realm", Some('r'), Plan::Taken(t::realm)),
    option(
        "server-name",
        None,
        Plan::Idle("coturn uses it for OAuth only; here it is auth.oauth.server_name"),
    ),
    option(
        "oauth",
        None,
        Plan::Never(
            "write the keys of tokens into [[auth.oauth.keys]]; browsers know time-limited credentials (auth.secrets) only",
        ),
    ),
    option("userdb", Some('b'), Plan::Taken(t::database)),
    option("db", Some('b'), Plan::Taken(t::database)),
    option("psql-userdb", Some('e'), Plan::Taken(t::other_database)),
    option("sql-userdb", Some('e'), Plan::Taken(t::other_database)),
    option("mysql-userdb", Some('M'), Plan::Taken(t::other_database)),
    option("mongo-userdb", Some('J'), Plan::Taken(t::other_database)),
    option("redis-userdb", Some('N'), Plan::Taken(t::other_database)),
    option(
        "secret-key-file",
        None,
        Plan::Idle("it decrypts coturn's password for MySQL"),
    ),
    option(
        "redis-statsdb",
        Some('O'),
        Plan::Never(
            "metrics of every live allocation are in GET /metrics, records of the ended ones in [records]",
        ),
    ),
    option(
        "no-auth-pings",
        None,
        Plan::Idle("secrets are not asked for over a network"),
    ),
    option(
        "no-dynamic-ip-list",
        None,
        Plan::Idle("it keeps coturn from the peers in its database, and the import as well"),
    ),
    option(
        "no-dynamic-realms",
        None,
        Plan::Idle("it keeps coturn from the realms in its database, and the import as well"),
    ),
    option(
        "check-origin-consistency",
        None,
        Plan::Never("ORIGIN is not looked at: clients choose it, so it proves nothing"),
    ),
    option("stale-nonce", None, Plan::Taken(t::stale_nonce)),
    option(
        "stateless-nonce",
        None,
        Plan::Always("nonces are computed, not kept"),
    ),
    option(
        "stateless-nonce-secret",
        None,
        Plan::Idle("nonces are signed with a key of the process; clients renew them by themselves"),
    ),
    option(
        "secure-stun",
        None,
        Plan::Never(
            "Binding is answered without credentials, at a bounded rate (limits.unauthenticated_per_address)",
        ),
    ),
    // How much.
    option("user-quota", Some('q'), Plan::Taken(t::quota)),
    option("total-quota", Some('Q'), Plan::Taken(t::quota)),
    option("max-bps", Some('s'), Plan::Taken(t::bandwidth)),
    option("bps-capacity", Some('B'), Plan::Taken(t::bandwidth)),
    option(
        "max-allocate-lifetime",
        None,
        Plan::Taken(t::allocate_lifetime),
    ),
    option("channel-lifetime", None, Plan::Taken(t::fixed_lifetime)),
    option("permission-lifetime", None, Plan::Taken(t::fixed_lifetime)),
    option(
        "max-allocate-timeout",
        None,
        Plan::Idle("nothing is kept for a client before its credentials have been verified"),
    ),
    option(
        "unauthorized-ratelimit",
        None,
        Plan::Always("answers without credentials are bounded always"),
    ),
    option(
        "unauthorized-ratelimit-rps",
        None,
        Plan::Taken(t::unauthorized_rate),
    ),
    // Which peers.
    many("denied-peer-ip", None, Plan::Taken(t::denied)),
    many("allowed-peer-ip", None, Plan::Taken(t::allowed)),
    option(
        "allow-loopback-peers",
        None,
        Plan::Never(
            "it opens what listens on this host to every client; for a test on one machine, peers.allow = [\"loopback\"]",
        ),
    ),
    option(
        "no-loopback-peers",
        None,
        Plan::Always("loopback is refused by default"),
    ),
    option(
        "no-multicast-peers",
        None,
        Plan::Always("multicast is refused by default"),
    ),
    // The protocol.
    option(
        "fingerprint",
        Some('f'),
        Plan::Idle("an answer has a FINGERPRINT where the request has one"),
    ),
    option(
        "stun-only",
        Some('S'),
        Plan::Never(
            "turnix relays; without credentials, strangers get STUN and nothing else anyway",
        ),
    ),
    option(
        "no-stun",
        None,
        Plan::Never(
            "Binding is always answered, at a bounded rate (limits.unauthenticated_per_address)",
        ),
    ),
    option(
        "no-software-attribute",
        None,
        Plan::Always("SOFTWARE is never sent"),
    ),
    option("prod", None, Plan::Always("SOFTWARE is never sent")),
    option(
        "software-attribute",
        None,
        Plan::Never("SOFTWARE tells attackers which version to look up"),
    ),
    option(
        "mobility",
        None,
        Plan::Always("clients may move (RFC 8016), unless protocol.mobility is off"),
    ),
    option(
        "rfc5780",
        None,
        Plan::Never("the discovery of NAT behaviour is not spoken"),
    ),
    option(
        "no-rfc5780",
        None,
        Plan::Always("the discovery of NAT behaviour is not spoken"),
    ),
    option(
        "stun-backward-compatibility",
        None,
        Plan::Never("requests of RFC 3489, which is obsolete since 2008, are not answered"),
    ),
    option(
        "no-stun-backward-compatibility",
        None,
        Plan::Always("requests of RFC 3489 are not answered"),
    ),
    option(
        "rfc3489-compatibility",
        None,
        Plan::Never("requests of RFC 3489, which is obsolete since 2008, are not answered"),
    ),
    option(
        "rfc5766-channel-numbers",
        None,
        Plan::Always("protocol.channels = \"rfc5766\" is written below"),
    ),
    option(
        "response-origin-only-with-rfc5780",
        None,
        Plan::Always("RESPONSE-ORIGIN is never sent"),
    ),
    option(
        "include-reason-string",
        None,
        Plan::Never("errors carry their code and no more, so that answers stay small"),
    ),
    // TLS.
    option("cert", None, Plan::Taken(t::certificate)),
    option("pkey", None, Plan::Taken(t::certificate)),
    option(
        "pkey-pwd",
        None,
        Plan::Never(
            "keys are read as they are: openssl pkey -in KEY -out NEWKEY writes one without a password",
        ),
    ),
    option(
        "raw-public-keys",
        None,
        Plan::Never("clients of TURN expect certificates"),
    ),
    option(
        "cipher-list",
        None,
        Plan::Never("TLS 1.2 and 1.3 are spoken with the ciphers that rustls holds safe"),
    ),
    option(
        "CA-file",
        None,
        Plan::Never("clients show no certificates; they have credentials"),
    ),
    option(
        "ec-curve-name",
        None,
        Plan::Never("TLS 1.2 and 1.3 are spoken with the curves that rustls holds safe"),
    ),
    option(
        "dh566",
        None,
        Plan::Never("key exchange is over elliptic curves"),
    ),
    option(
        "dh1066",
        None,
        Plan::Never("key exchange is over elliptic curves"),
    ),
    option(
        "dh2066",
        None,
        Plan::Never("key exchange is over elliptic curves"),
    ),
    option(
        "dh-file",
        None,
        Plan::Never("key exchange is over elliptic curves"),
    ),
    option(
        "no-sslv2",
        None,
        Plan::Always("TLS 1.2 and 1.3 are spoken, nothing older"),
    ),
    option(
        "no-sslv3",
        None,
        Plan::Always("TLS 1.2 and 1.3 are spoken, nothing older"),
    ),
    option(
        "no-tlsv1",
        None,
        Plan::Always("TLS 1.2 and 1.3 are spoken, nothing older"),
    ),
    option(
        "no-tlsv1_1",
        None,
        Plan::Always("TLS 1.2 and 1.3 are spoken, nothing older"),
    ),
    option(
        "no-tlsv1_2",
        None,
        Plan::Never("TLS 1.2 stays for older clients, with ciphers as strong as those of 1.3"),
    ),
    option(
        "tlsv1",
        None,
        Plan::Never("TLS 1.0 is broken; every browser speaks 1.2"),
    ),
    option(
        "tlsv1_1",
        None,
        Plan::Never("TLS 1.1 is broken; every browser speaks 1.2"),
    ),
    option(
        "acme-redirect",
        None,
        Plan::Never(
            "nothing is redirected; renew certificates on another port or by DNS, and turnix reads the new files by itself",
        ),
    ),
    // Other servers.
    many("alternate-server", None, Plan::Taken(t::alternate)),
    many(
        "udp-alternate-server",
        None,
        Plan::Never("drain.alternates takes servers for every transport alike"),
    ),
    many(
        "tcp-alternate-server",
        None,
        Plan::Never("drain.alternates takes servers for every transport alike"),
    ),
    many(
        "tls-alternate-server",
        None,
        Plan::Never(
            "a certificate names a host, and ALTERNATE-SERVER an address; name the other servers in the application",
        ),
    ),
    option(
        "drain-min-allocations",
        None,
        Plan::Never("a drain ends with the last allocation, or at drain.deadline"),
    ),
    // Logs and metrics.
    option(
        "verbose",
        Some('v'),
        Plan::Idle("log.level = \"info\" tells as much, and is the default"),
    ),
    option("Verbose", Some('V'), Plan::Taken(t::log_level)),
    option("log-min-level", None, Plan::Taken(t::log_level)),
    option("log-file", Some('l'), Plan::Taken(t::log_file)),
    option(
        "syslog",
        None,
        Plan::Idle("under systemd the journal gets every record with its fields (log.format)"),
    ),
    option(
        "syslog-facility",
        None,
        Plan::Never("records go to the journal or to standard error, which know no facilities"),
    ),
    option(
        "no-stdout-log",
        None,
        Plan::Idle("records go to one place: the journal under systemd, else standard error"),
    ),
    option("simple-log", None, Plan::Idle("turnix writes no log files")),
    option(
        "new-log-timestamp",
        None,
        Plan::Always("records carry their time as ISO 8601 has it"),
    ),
    option(
        "new-log-timestamp-format",
        None,
        Plan::Never("records carry their time as ISO 8601 has it"),
    ),
    option(
        "log-binding",
        None,
        Plan::Never("Binding requests are counted (turn_requests_total) and not logged"),
    ),
    option("prometheus", None, Plan::Taken(t::prometheus)),
    option("prometheus-port", None, Plan::Taken(t::prometheus)),
    option("prometheus-address", None, Plan::Taken(t::prometheus)),
    option("prometheus-path", None, Plan::Taken(t::prometheus_path)),
    option(
        "prometheus-username-labels",
        None,
        Plan::Taken(t::username_labels),
    ),
    option(
        "prometheus-tls",
        None,
        Plan::Never("http.tls = true does it, with the certificate of [tls]"),
    ),
    option(
        "prometheus-cert",
        None,
        Plan::Never("http.tls = true uses the certificate of [tls]"),
    ),
    option(
        "prometheus-key",
        None,
        Plan::Never("http.tls = true uses the key of [tls]"),
    ),
    // Its administration.
    option(
        "cli",
        None,
        Plan::Never(
            "there is no telnet interface: `turnix allocations`, `disconnect`, `drain` and `reload` ask the admin API",
        ),
    ),
    option("no-cli", None, Plan::Always("there is no telnet interface")),
    option(
        "cli-ip",
        None,
        Plan::Never("there is no telnet interface; http.admin is where the admin API listens"),
    ),
    option(
        "cli-port",
        None,
        Plan::Never("there is no telnet interface; http.admin is where the admin API listens"),
    ),
    option(
        "cli-password",
        None,
        Plan::Never(
            "there is no telnet interface, and no password that travels in clear; http.token_file guards the admin API",
        ),
    ),
    option(
        "cli-max-output-sessions",
        None,
        Plan::Never("there is no telnet interface; `turnix allocations` shows all of them"),
    ),
    option(
        "web-admin",
        None,
        Plan::Never(
            "http.admin has a dashboard; users and secrets are kept in files that are read again when they change",
        ),
    ),
    option(
        "web-admin-ip",
        None,
        Plan::Never("http.admin is where the admin API listens"),
    ),
    option(
        "web-admin-port",
        None,
        Plan::Never("http.admin is where the admin API listens"),
    ),
    option(
        "web-admin-listen-on-workers",
        None,
        Plan::Never("administration does not belong on ports that strangers reach"),
    ),
    // The process.
    option(
        "proc-user",
        None,
        Plan::Never("the systemd unit says as whom turnix runs (User=), by default as turnix"),
    ),
    option(
        "proc-group",
        None,
        Plan::Never("the systemd unit says as whom turnix runs (Group=), by default as turnix"),
    ),
    option(
        "daemon",
        Some('o'),
        Plan::Never("systemd keeps it in the background"),
    ),
    option("pidfile", None, Plan::Never("systemd knows the process")),
    option(
        "version",
        None,
        Plan::Idle("it means something on a command line only"),
    ),
];
