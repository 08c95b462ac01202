//! The keys of `[cluster]` and `[api]`: which servers make up the service, and who may ask for its configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::auth::secret_file;
use super::exposure;
use super::load::host_name;
use super::problem::{Origin, Problem, Sources};
use super::reader::{Given, Reader};
use super::source::Node;
use super::values::{self, Converted, Fault};
use crate::access::{RealmName, RealmSettings};
use crate::base::Secret;
use crate::cluster::{self, TurnUri};
use crate::http::ice::ApiKey;

/// What a hash in place of a secret begins with.
const HASHED: &str = "sha256:";

/// What `[cluster]` says.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Name of this server among others.
    pub node: String,
    /// Region of this server; may be empty.
    pub region: String,
    /// The servers of the service; none: this one alone.
    pub nodes: Vec<cluster::Node>,
    /// The database that tells where clients are.
    pub geoip: Option<PathBuf>,
}

pub(super) fn read_cluster(r: &mut Reader<'_>) -> Option<Cluster> {
    let node = r.key("cluster.node", r#""""#, "a name", values::text);
    let region = r.key("cluster.region", r#""""#, "a name", values::text);
    let geoip = r.key(
        "cluster.geoip",
        r#""""#,
        "the path of a City database in MaxMind's format",
        geoip,
    );
    let nodes = r.tables(
        "cluster.nodes",
        "cluster.nodes.",
        "name",
        "tables with a name, a region and urls each",
        &[],
        read_node,
    );
    let nodes = unique(r, nodes?, "cluster.nodes.name", |node| &node.name);
    Some(Cluster {
        node: node.map(|name| if name.is_empty() { host_name() } else { name })?,
        region: region?,
        nodes,
        geoip: geoip?,
    })
}

fn read_node(r: &mut Reader<'_>) -> Option<cluster::Node> {
    let name = r.key(
        "cluster.nodes.name",
        r#""""#,
        "the node's cluster.node",
        named,
    );
    let region = r.key("cluster.nodes.region", r#""""#, "a name", values::text);
    let location = r.key(
        "cluster.nodes.location",
        r#""""#,
        "latitude and longitude in degrees",
        |node: &Node| match values::text(node)?.as_str() {
            "" => Ok(None),
            _ => values::parsed(str::parse::<cluster::Location>)(node).map(Some),
        },
    );
    let weight = r.key(
        "cluster.nodes.weight",
        "100",
        "a number from 0 to 10000",
        values::number(0..=10_000),
    );
    let urls = r.key(
        "cluster.nodes.urls",
        "[]",
        r#"URIs such as "turn:turn.example.org:3478?transport=udp", in the order to try them"#,
        |node: &Node| {
            let urls = values::list(values::parsed(|text: &str| {
                (text.parse::<TurnUri>().map(|_| text.to_owned()))
                    .map_err(|error| error.to_string())
            }))(node)?;
            if urls.is_empty() {
                return Err(Fault::of(node));
            }
            Ok(urls)
        },
    );
    Some(cluster::Node {
        name: name?,
        region: region?,
        location: location?,
        weight: weight?,
        urls: urls?,
    })
}

fn geoip(node: &Node) -> Converted<Option<PathBuf>> {
    let path = values::text(node)?;
    if path.is_empty() {
        return Ok(None);
    }
    match cluster::places(Path::new(&path)) {
        Ok(_) => Ok(Some(path.into())),
        Err(error) => Err(Fault::with(
            node,
            format!("{path} cannot be used: {error}"),
            "name a City database (GeoLite2-City.mmdb), or leave it empty: clients then go by region and weight",
        )),
    }
}

fn named(node: &Node) -> Converted<String> {
    match values::text(node)? {
        name if name.is_empty() => Err(Fault::of(node)),
        name => Ok(name),
    }
}

pub(super) fn read_keys(
    r: &mut Reader<'_>,
    sources: &Sources,
    has_secrets: bool,
    realms: &[RealmSettings],
) -> Option<Vec<ApiKey>> {
    let keys = r.tables(
        "api.keys",
        "api.keys.",
        "id",
        "tables with an id and a secret each",
        &[],
        |entry| read_api_key(entry, sources, realms),
    );
    let keys = unique(r, keys?, "api.keys.id", |key| &key.id);
    if keys.iter().any(|key| key.realm.is_none()) && !has_secrets {
        r.problem(
            "api.keys",
            "given, and there is no secret to make credentials with",
            "add auth.secrets = [\"a long random text\"], the same on every server of the service",
        );
    }
    Some(keys)
}

fn read_api_key(r: &mut Reader<'_>, sources: &Sources, realms: &[RealmSettings]) -> Option<ApiKey> {
    let id = r.key(
        "api.keys.id",
        r#""""#,
        "a name of 1 to 64 bytes without semicolons and control characters",
        |node: &Node| match named(node)? {
            // Names that it mints carry it.
            id if id.len() <= 64 && !id.chars().any(|c| c.is_control() || c == ';') => Ok(id),
            _ => Err(Fault::of(node)),
        },
    );
    let secret = r.key(
        "api.keys.secret",
        r#""""#,
        "a text of 16 characters or more, or \"sha256:\" and its hash in hexadecimal",
        |node: &Node| match values::text(node)?.as_str() {
            "" => Ok(None),
            text => match secret_hash(text) {
                Some(hash) => Ok(Some((hash, in_clear(text)))),
                None => Err(Fault::masked(node)),
            },
        },
    );
    let from_file = r.key(
        "api.keys.secret_file",
        r#""""#,
        r#"a path, or "cred:name" for systemd credentials"#,
        |node: &Node| {
            if values::text(node)?.is_empty() {
                return Ok(None);
            }
            let file = secret_file(node, sources)?;
            let text = file.secret.expose();
            match secret_hash(text) {
                Some(hash) => Ok(Some((hash, in_clear(text), file.path))),
                None => Err(Fault::with(
                    node,
                    "the secret in it is too short",
                    "write 16 characters or more",
                )),
            }
        },
    );
    let ttl = r.key(
        "api.keys.ttl",
        r#""24h""#,
        r#"a duration from "10s" to "48h""#,
        values::duration_within(10, 48 * 3600),
    );
    let origins = r.key(
        "api.keys.origins",
        "[]",
        r#"origins such as "https://app.example.org""#,
        values::list(values::parsed(origin)),
    );
    let user_prefix = r.key(
        "api.keys.user_prefix",
        r#""""#,
        "at most 64 characters",
        |node: &Node| match values::text(node)? {
            prefix if prefix.len() <= 64 && !prefix.chars().any(char::is_control) => Ok(prefix),
            _ => Err(Fault::of(node)),
        },
    );
    let rate = r.key(
        "api.keys.rate",
        "0",
        "a number of credentials a minute from 0 to 1000000",
        values::number(0..=1_000_000),
    );
    let realm = r.key(
        "api.keys.realm",
        r#""""#,
        "the name of one of [[realms]] that has a secret",
        |node: &Node| match values::text(node)?.as_str() {
            "" => Ok(None),
            name => (realms.iter().find(|realm| realm.name == name))
                .and_then(|realm| Some((RealmName::new(name), realm.secrets.first()?.clone())))
                .map(Some)
                .ok_or_else(|| Fault::of(node)),
        },
    );
    let given = (secret?, from_file?);
    let give = "give the key a secret, or a secret_file";
    let (secret_hash, secret) = match r.one_of_both("api.keys.secret", given, give)? {
        Given::Value((hash, secret)) => {
            if secret.is_some() {
                exposure::warn_of_value(r, "api.keys.secret", sources);
            }
            (hash, secret)
        }
        Given::File((hash, secret, path)) => {
            exposure::warn_of_file(r, "api.keys.secret_file", &path);
            (hash, secret)
        }
    };
    Some(ApiKey {
        id: id?,
        secret_hash,
        secret,
        ttl: ttl?.max(Duration::from_secs(1)),
        origins: origins?,
        user_prefix: user_prefix?,
        rate: rate?,
        realm: realm?,
    })
}

/// The secret, unless `text` is the hash of one.
fn in_clear(text: &str) -> Option<Secret<String>> {
    (!text.starts_with(HASHED)).then(|| Secret::new(text.to_owned()))
}

/// SHA-256 of a secret that is worth one, or the hash that is written in its place.
fn secret_hash(text: &str) -> Option<[u8; 32]> {
    let Some(hex) = text.strip_prefix(HASHED) else {
        return (text.chars().count() >= 16).then(|| Sha256::digest(text).into());
    };
    let mut hash = [0; 32];
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(hash)
}

/// `scheme://host` or `scheme://host:port`, as browsers write it.
fn origin(text: &str) -> Result<String, String> {
    let wanted = || "an origin such as \"https://app.example.org\", without a path".to_owned();
    let (scheme, host) = text.split_once("://").ok_or_else(wanted)?;
    let fine = !scheme.is_empty() && !host.is_empty() && !host.contains(['/', '*', ' ', '?', '#']);
    // Browsers write schemes and hosts in lower case, and nothing else is compared.
    fine.then(|| text.to_ascii_lowercase()).ok_or_else(wanted)
}

/// The entries of a list, after a problem with every name that occurs twice.
pub(super) fn unique<T>(
    r: &mut Reader<'_>,
    entries: Vec<(Origin, T)>,
    key: &str,
    name: impl Fn(&T) -> &String,
) -> Vec<T> {
    for (index, (origin, entry)) in entries.iter().enumerate() {
        let again = |(_, other): &(Origin, T)| name(other) == name(entry);
        if entries.iter().take(index).any(again) {
            r.problems.push(Problem {
                origin: origin.clone(),
                key: key.to_owned(),
                found: format!("{:?} occurs twice", name(entry)),
                remedy: "give each a name of its own".into(),
            });
        }
    }
    entries.into_iter().map(|(_, entry)| entry).collect()
}
