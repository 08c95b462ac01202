//! The keys of `[auth]`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::exposure;
use super::oauth::read_oauth;
use super::problem::Sources;
use super::reader::Reader;
use super::source::{Node, Value};
use super::values::{self, Converted, Fault};
use crate::access::{NotAKey, Revocation, oauth, stored_key};
use crate::base::Secret;
use crate::cluster::{Directory, DirectoryError, Entries, RevokedFile, UsersFile};

/// What `[auth]` says.
pub(super) struct Auth {
    pub users: Vec<(String, Secret<String>)>,
    pub secrets: Vec<Secret<String>>,
    pub strict_expiry: bool,
    pub nonce_lifetime: Duration,
    /// Where some of the users are kept.
    pub directory: Option<UsersFile>,
    /// What is revoked, and the file that says so.
    pub revoked: Vec<Revocation>,
    pub revoked_file: Option<RevokedFile>,
    pub oauth: oauth::Settings,
}

impl Auth {
    /// Whether clients can come as more than one user.
    pub fn knows_several(&self) -> bool {
        self.users.len() + self.oauth.keys.len() > 1 || !self.secrets.is_empty()
    }
}

pub(super) fn read_auth(r: &mut Reader<'_>, sources: &Sources) -> Option<Auth> {
    let users = r.key(
        "auth.users",
        "{}",
        r#"names and passwords: { alice = "password" }"#,
        users,
    );
    let directory = r.key(
        "auth.users_file",
        r#""""#,
        "the path of a file with name:password on each line",
        users_file,
    );
    let revoked = r.key(
        "auth.revoked_file",
        r#""""#,
        "the path of a file with credential, user or key and a name on each line",
        revoked_file,
    );
    let secrets = r.key(
        "auth.secrets",
        "[]",
        "a list of texts, none of them empty",
        values::list(|item| values::secret(item).map(Secret::new)),
    );
    let from_files = r.key(
        "auth.secret_files",
        "[]",
        r#"a list of paths, or "cred:name" for systemd credentials"#,
        values::list(|item| secret_file(item, sources)),
    );
    let strict_expiry = r.key(
        "auth.strict_expiry",
        "false",
        "true or false",
        values::boolean,
    );
    let nonce_lifetime = r.key(
        "auth.nonce_lifetime",
        r#""1h""#,
        r#"a duration from "10s" to "24h""#,
        values::duration_within(10, 86_400),
    );
    let oauth = read_oauth(r, sources)?;
    let (mut users, mut secrets, from_files) = (users?, secrets?, from_files?);
    let (revoked_file, revoked) = match revoked? {
        Some((file, entries)) => {
            let text = |one: &Revocation| Secret::new(format!("{} {}", one.kind.label(), one.name));
            let lines: Vec<_> = entries.revoked.iter().map(text).collect();
            (r.keys).note_secrets("auth.revoked_file", lines.iter());
            (Some(file), entries.revoked)
        }
        None => (None, Vec::new()),
    };
    let directory = directory?.map(|(file, entries)| {
        let text = |(name, password): &(String, Secret<String>)| {
            Secret::new(format!("{name}:{}", password.expose()))
        };
        let lines: Vec<_> = entries.users.iter().map(text).collect();
        (r.keys).note_secrets("auth.users_file", lines.iter());
        exposure::warn_of_file(r, "auth.users_file", file.path());
        let again = |(name, _): &&(String, _)| users.iter().any(|(known, _)| known == name);
        if let Some((name, _)) = entries.users.iter().find(again) {
            r.problem(
                "auth.users_file",
                format!("{name:?} is in auth.users, too"),
                "keep each user in one place",
            );
        }
        users.extend(entries.users);
        secrets.extend(entries.secrets);
        file
    });
    (r.keys).note_secrets(
        "auth.secret_files",
        from_files.iter().map(|file| &file.secret),
    );
    for file in from_files {
        exposure::warn_of_file(r, "auth.secret_files", &file.path);
        secrets.push(file.secret);
    }
    let others = !oauth.keys.is_empty() || r.is_filled("realms");
    if users.is_empty() && secrets.is_empty() && !others {
        r.problem(
            "auth",
            "neither users nor secrets: without either, the server would be useless or an open relay",
            "add to [auth] either secrets = [\"a long random text\"] (`turnix credentials` then makes \
             time-limited credentials) or users = { alice = \"a password\" }",
        );
    }
    Some(Auth {
        users,
        secrets,
        strict_expiry: strict_expiry?,
        nonce_lifetime: nonce_lifetime?,
        directory,
        revoked,
        revoked_file,
        oauth,
    })
}

fn users_file(node: &Node) -> Converted<Option<(UsersFile, Entries)>> {
    directory(node, UsersFile::new)
}

fn revoked_file(node: &Node) -> Converted<Option<(RevokedFile, Entries)>> {
    directory(node, RevokedFile::new)
}

/// The directory at the path that `node` names, and what is in it; `None` if it names none.
fn directory<D: Directory>(
    node: &Node,
    new: impl Fn(String) -> D,
) -> Converted<Option<(D, Entries)>> {
    let path = values::text(node)?;
    if path.is_empty() {
        return Ok(None);
    }
    let file = new(path);
    match file.read() {
        Ok(entries) => Ok(Some((file, entries))),
        Err(DirectoryError { found, remedy }) => Err(Fault::with(node, found, remedy)),
    }
}

pub(super) fn users(node: &Node) -> Converted<Vec<(String, Secret<String>)>> {
    let Value::Table(table) = &node.value else {
        return Err(Fault::masked(node));
    };
    let mut users = Vec::with_capacity(table.len());
    let mut faults = Vec::new();
    for (name, entry) in table {
        // RFC 8489 §14.3: fewer than 509 bytes.
        if name.is_empty() || name.len() > 508 {
            faults.extend(Fault::with(
                &entry.node,
                format!("a user name of {} bytes", name.len()),
                "use 1 to 508 bytes",
            ));
        }
        match values::secret(&entry.node) {
            Ok(password) if matches!(stored_key(&password), Some(Err(_))) => {
                faults.extend(Fault::with(
                    &entry.node,
                    format!("the password of {name:?} begins with md5: or sha256: and is no key"),
                    NotAKey::REMEDY,
                ));
            }
            Ok(password) => users.push((name.clone(), Secret::new(password))),
            Err(_) => faults.extend(Fault::with(
                &entry.node,
                format!("the password of {name:?} is {}", entry.node.kind()),
                "write it as a text of one character or more",
            )),
        }
    }
    if faults.is_empty() {
        Ok(users)
    } else {
        Err(faults)
    }
}

/// A secret and where it was kept.
pub(super) struct SecretFile {
    pub path: PathBuf,
    pub secret: Secret<String>,
}

/// Reads the file that `node` names by its path or as `cred:name`.
pub(super) fn secret_file(node: &Node, sources: &Sources) -> Converted<SecretFile> {
    let credentials = (sources.environment.iter())
        .find(|(name, _)| name == "CREDENTIALS_DIRECTORY")
        .map(|(_, directory)| Path::new(directory));
    let name = values::text(node)?;
    let path = match (name.strip_prefix("cred:"), credentials) {
        (None, _) => PathBuf::from(&name),
        (Some(credential), Some(directory)) if !credential.contains('/') => {
            directory.join(credential)
        }
        (Some(_), Some(_)) => return Err(Fault::of(node)),
        (Some(_), None) => {
            return Err(Fault::with(
                node,
                format!(
                    "found {}, and CREDENTIALS_DIRECTORY is not set",
                    node.shown()
                ),
                "add LoadCredential= to the systemd unit, or name a path",
            ));
        }
    };
    match read_secret(&path) {
        Ok(secret) => Ok(SecretFile { path, secret }),
        Err((found, remedy)) => Err(Fault::with(node, found, remedy)),
    }
}

/// The one line of the file at `path`.
///
/// # Errors
/// What is wrong with the file, and the way out; nothing of what it holds.
pub fn read_secret(path: &Path) -> Result<Secret<String>, (String, &'static str)> {
    let text = fs::read_to_string(path).map(Secret::new).map_err(|error| {
        (
            format!("{} cannot be read: {error}", path.display()),
            "name a file that this user may read",
        )
    })?;
    match text.expose().trim_end_matches(['\r', '\n']) {
        "" => Err((
            format!("{} is empty", path.display()),
            "write one secret into it",
        )),
        several if several.contains('\n') => Err((
            format!("{} has more than one line", path.display()),
            "write one secret per file",
        )),
        secret => Ok(Secret::new(secret.to_owned())),
    }
}
