//! The keys of `[[realms]]`: realms beside the default one.

use super::auth::{secret_file, users};
use super::exposure;
use super::problem::{Origin, Problem, Sources};
use super::reader::Reader;
use super::source::Node;
use super::values::{self, Converted, Fault};
use crate::access::{RealmLimits, RealmSettings};
use crate::base::Secret;

/// The most realms there may be beside the default one: each has a series of its own in the metrics.
const MOST: usize = 1000;

pub(super) fn read_realms(
    r: &mut Reader<'_>,
    sources: &Sources,
    default: Option<&str>,
    known: &[(String, Secret<String>)],
) -> Option<Vec<RealmSettings>> {
    let realms = r.tables(
        "realms",
        "realms.",
        "name",
        "tables with a name, and users or secrets, each",
        &[],
        |entry| read_realm(entry, sources),
    )?;
    let mut problem = |origin: &Origin, key: &str, found: String, remedy: &str| {
        r.problems.push(Problem {
            origin: origin.clone(),
            key: key.to_owned(),
            found,
            remedy: remedy.to_owned(),
        });
    };
    for (index, (origin, realm)) in realms.iter().enumerate() {
        let earlier = || realms.iter().take(index).map(|(_, realm)| realm);
        let name = &realm.name;
        if default == Some(name) || earlier().any(|other| other.name == *name) {
            let remedy =
                "give each realm a name of its own; the default realm is called by the key realm";
            problem(
                origin,
                "realms.name",
                format!("{name:?} occurs twice"),
                remedy,
            );
        }
        let taken = |server: &&String| earlier().any(|other| other.server_names.contains(server));
        if let Some(server) = realm.server_names.iter().find(taken) {
            let remedy = "a name that clients ask for leads to one realm";
            problem(
                origin,
                "realms.server_names",
                format!("{server:?} occurs twice"),
                remedy,
            );
        }
        let belongs = |(user, _): &&(String, _)| {
            user.rsplit_once('@')
                .is_some_and(|(_, realm)| realm == name)
        };
        if let Some((user, _)) = known.iter().find(belongs) {
            let found = format!("{user:?} is in [auth], and ends with the name of this realm");
            problem(
                origin,
                "realms.name",
                found,
                "move the user to the realm's own users",
            );
        }
    }
    if realms.len() > MOST {
        let found = format!("{} realms", realms.len());
        r.problem("realms", found, format!("a server has {MOST} at most"));
    }
    Some(realms.into_iter().map(|(_, realm)| realm).collect())
}

fn read_realm(r: &mut Reader<'_>, sources: &Sources) -> Option<RealmSettings> {
    let name = r.key(
        "realms.name",
        r#""""#,
        "1 to 127 letters, digits, dots, hyphens and underscores, usually a domain name",
        name,
    );
    let server_names = r.key(
        "realms.server_names",
        "[]",
        r#"names that TLS clients ask for: ["turn.b.example"]"#,
        values::list(server_name),
    );
    let users = r.key(
        "realms.users",
        "{}",
        r#"names and passwords: { alice = "password" }"#,
        users,
    );
    let secrets = r.key(
        "realms.secrets",
        "[]",
        "a list of texts, none of them empty",
        values::list(|item| values::secret(item).map(Secret::new)),
    );
    let from_files = r.key(
        "realms.secret_files",
        "[]",
        r#"a list of paths, or "cred:name" for systemd credentials"#,
        values::list(|item| secret_file(item, sources)),
    );
    let count = |r: &mut Reader<'_>, key| r.key(key, "0", "a number", values::number(0..=u32::MAX));
    let limits = RealmLimits {
        allocations: count(r, "realms.allocations")?,
        allocations_per_user: count(r, "realms.allocations_per_user")?,
    };
    let (users, mut secrets) = (users?, secrets?);
    for key in ["realms.users", "realms.secrets"] {
        if r.is_set(key) {
            exposure::warn_of_value(r, key, sources);
        }
    }
    let from_files = from_files?;
    (r.keys).note_secrets(
        "realms.secret_files",
        from_files.iter().map(|file| &file.secret),
    );
    for file in from_files {
        exposure::warn_of_file(r, "realms.secret_files", &file.path);
        secrets.push(file.secret);
    }
    if users.is_empty() && secrets.is_empty() {
        r.problem(
            "realms",
            "neither users nor secrets: nobody could come",
            "add secrets = [\"a long random text\"] or users = { alice = \"a password\" }, or remove the realm",
        );
        return None;
    }
    Some(RealmSettings {
        name: name?,
        server_names: server_names?,
        users,
        secrets,
        limits,
    })
}

/// A name that may stand behind `@` in names of users, whatever else they hold.
fn name(node: &Node) -> Converted<String> {
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    match values::text(node)? {
        name if (1..=127).contains(&name.chars().count()) && name.chars().all(fits) => Ok(name),
        _ => Err(Fault::of(node)),
    }
}

fn server_name(node: &Node) -> Converted<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    match values::text(node)?.to_ascii_lowercase() {
        name if (1..=253).contains(&name.len()) && name.chars().all(fits) => Ok(name),
        _ => Err(Fault::of(node)),
    }
}
