//! Secrets where others on the host can see them: on the command line, in files that anybody may read.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::problem::{Origin, Problem, Sources};
use super::reader::Reader;

/// Keys whose values are secrets, and what to use in their place on the command line.
const SECRET_KEYS: [(&str, &str); 7] = [
    (
        "auth.users",
        "use the configuration file, or TURNIX_AUTH__USERS in the environment",
    ),
    (
        "auth.secrets",
        "use auth.secret_files, or TURNIX_AUTH__SECRETS in the environment",
    ),
    (
        "http.token",
        "use http.token_file, or TURNIX_HTTP__TOKEN in the environment",
    ),
    (
        "api.keys.secret",
        "use secret_file, or the secret's hash (\"sha256:…\")",
    ),
    ("auth.oauth.keys.key", "use key_file"),
    ("realms.users", "use the configuration file"),
    ("realms.secrets", "use secret_files"),
];

/// Warns of secrets on the command line, and of a configuration file that holds some for all to read.
pub(super) fn warn(r: &mut Reader<'_>, sources: &Sources) {
    for (key, _) in SECRET_KEYS {
        if r.is_set(key) {
            warn_of_value(r, key, sources);
        }
    }
}

/// The same for one key, which somebody wrote.
pub(super) fn warn_of_value(r: &mut Reader<'_>, key: &str, sources: &Sources) {
    let origin = r.origin(key);
    if origin == Origin::Set || sources.set_on_command_line(key) {
        let remedy = SECRET_KEYS.iter().find(|(name, _)| *name == key);
        r.warn(Problem {
            origin: Origin::Set,
            key: key.into(),
            found: "a secret on the command line, which ps shows to everybody on this host".into(),
            remedy: remedy
                .map_or("use the configuration file", |(_, remedy)| remedy)
                .into(),
        });
    }
    if matches!(origin, Origin::File(..))
        && let Some(path) = &sources.file
        && let Some(mode) = too_open(path)
    {
        r.warn(Problem::file(
            path,
            format!("holds secrets and may be read or changed by others (mode {mode:04o})"),
            format!(
                "chmod 640 {} and give it to the group that turnix runs as, or move the secrets to files of their own \
                 (auth.secret_files)",
                path.display()
            ),
        ));
    }
}

/// Warns of `path`, which `key` names, if it may be read by everybody or changed by a group.
pub(super) fn warn_of_file(r: &mut Reader<'_>, key: &str, path: &Path) {
    if let Some(mode) = too_open(path) {
        r.warn(Problem {
            origin: r.origin(key),
            key: key.into(),
            found: format!(
                "{} may be read or changed by others (mode {mode:04o})",
                path.display()
            ),
            remedy: format!(
                "chmod 600 {}, and another secret if somebody else may have read it",
                path.display()
            ),
        });
    }
}

/// The mode of `path` if it gives others anything, or lets the group write. Reading by a group is how services share
/// a certificate.
fn too_open(path: &Path) -> Option<u32> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o027 != 0).then_some(mode)
}
