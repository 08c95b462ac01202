//! Whole configurations by name, for services that an application has compiled in. They lie beneath everything else:
//! each value of theirs may be given otherwise.

use super::problem::{Origin, Problem};
use super::reader::Reader;
use super::source::{Table, Value, overlay, read_text};
use super::values;

/// The key that names one.
const KEY: &str = "preset";

/// The static user of the free relay that this name stands for, and limits under which everybody may know it.
const OPENRELAY: &str = "openrelay";

/// Per address it is a fair share of what a small server has: a household's calls, and a few hundredths of the whole. A call
/// of two takes an allocation for each URL, interface and family of addresses, most of them for some seconds.
const OPENRELAY_TEXT: &str = r#"
[[listen]]
address = "[::]:3478"

[[listen]]
address = "[::]:443"

[[listen]]
address = "[::]:80"
protocols = ["udp", "tcp", "http"]

[auth]
users = { openrelayproject = "openrelayproject" }

[limits]
allocations = 4000
allocations_per_address = 64
connections_per_address = 128
bandwidth_per_allocation = "3Mbit"
allocation_lifetime = "10m"
permissions_per_allocation = 64
channels_per_allocation = 32
new_peers_per_second = 20

[peers]
deny = ["public:1-1023"]

[protocol]
channels = "rfc5766"
"#;

/// Puts what a preset says beneath `root`, if that names one.
pub(super) fn apply(root: &mut Table, problems: &mut Vec<Problem>) {
    let named = root.get(KEY).map(|entry| &entry.node.value);
    if !matches!(named, Some(Value::Text(name)) if name == OPENRELAY) {
        return;
    }
    let mut beneath = Table::new();
    let origin = |_| Origin::Preset(OPENRELAY);
    read_text(OPENRELAY_TEXT, &mut beneath, problems, &origin);
    overlay(&mut beneath, std::mem::take(root));
    *root = beneath;
}

/// Declares the key, and says what it means that the whole world knows a password.
pub(super) fn read(r: &mut Reader<'_>) {
    let preset = r.key(
        KEY,
        r#""""#,
        r#""openrelay", or "" for none"#,
        values::one_of(&[("", false), (OPENRELAY, true)]),
    );
    if preset == Some(true) {
        r.warn(Problem {
            origin: r.origin(KEY),
            key: KEY.to_owned(),
            found: "the whole world knows the password of openrelayproject, and may relay through this server".into(),
            remedy: "limits.allocations_per_address and limits.bandwidth_per_allocation bound what one address takes from \
                     the others, limits.allocations and limits.bandwidth the whole; give applications that you can change \
                     a user of their own"
                .into(),
        });
    }
}
