//! What coturn keeps in its SQLite database.

use std::collections::BTreeSet;

use super::translate::{Translation, Verdict};
use super::{Finding, Outcome, Place};
use crate::access::stored_key;
use crate::base::Secret;

/// A value of one realm.
#[derive(Clone, Debug)]
pub struct Row {
    /// The realm; empty: every realm.
    pub realm: String,
    /// The user, the option, or nothing.
    pub name: String,
    /// The key, the secret, the range or the option's value.
    pub value: Secret<String>,
}

/// The tables of the database.
#[derive(Clone, Debug, Default)]
pub struct Database {
    /// `turnusers_lt`: users and their keys.
    pub users: Vec<Row>,
    /// `turn_secret`: shared secrets.
    pub secrets: Vec<Row>,
    /// `allowed_peer_ip`.
    pub allowed: Vec<Row>,
    /// `denied_peer_ip`.
    pub denied: Vec<Row>,
    /// `turn_realm_option`: quotas and bandwidth.
    pub options: Vec<Row>,
    /// How many origins `turn_origin_to_realm` has.
    pub origins: usize,
    /// How many keys `oauth_key` has.
    pub oauth_keys: usize,
    /// How many people `admin_user` has.
    pub admins: usize,
}

impl Translation<'_> {
    /// Takes the realm of the users in the database if the file names none and they have one in common.
    pub(super) fn adopt_realm(&mut self, database: Option<&Database>) {
        if let (None, Some(database)) = (&self.realm, database) {
            let rows = if self.has_secrets_only() {
                &database.secrets
            } else {
                &database.users
            };
            let realms: BTreeSet<&str> = rows.iter().map(|row| row.realm.as_str()).collect();
            if let [realm] = Vec::from_iter(realms)[..]
                && !realm.is_empty()
            {
                self.realm = Some(realm.to_owned());
            }
        }
    }

    pub(super) fn take_database(&mut self, database: &Database) {
        self.take_access(database);
        if self.on("no-dynamic-ip-list") {
            self.leave(
                "denied_peer_ip",
                database.denied.len(),
                "no-dynamic-ip-list is set",
            );
            self.leave(
                "allowed_peer_ip",
                database.allowed.len(),
                "no-dynamic-ip-list is set",
            );
        } else {
            self.take("denied_peer_ip", &database.denied, true, |t, row, note| {
                t.deny(row.value.expose(), note)
            });
            self.take(
                "allowed_peer_ip",
                &database.allowed,
                true,
                |t, row, note| t.allow(row.value.expose(), note),
            );
        }
        if self.on("no-dynamic-realms") {
            self.leave(
                "turn_realm_option",
                database.options.len(),
                "no-dynamic-realms is set",
            );
        } else {
            self.take("turn_realm_option", &database.options, false, option);
        }
        self.leave(
            "turn_origin_to_realm",
            database.origins,
            "realms are told apart by server name or by user@realm here: [[realms]]",
        );
        self.leave(
            "oauth_key",
            database.oauth_keys,
            "write them into [[auth.oauth.keys]], as many bytes of each as its algorithm takes",
        );
        self.leave(
            "admin_user",
            database.admins,
            "the admin API has no users; http.token_file guards it where others reach it",
        );
    }

    fn take_access(&mut self, database: &Database) {
        if self.has_secrets_only() {
            self.leave(
                "turnusers_lt",
                database.users.len(),
                "coturn looks at no users while use-auth-secret is set",
            );
            self.take("turn_secret", &database.secrets, false, |t, row, note| {
                t.draft.add("auth.secrets", row.value.expose(), note);
                Verdict::mapped("auth.secrets")
            });
        } else {
            self.leave(
                "turn_secret",
                database.secrets.len(),
                "coturn looks at no secrets unless use-auth-secret is set",
            );
            self.take("turnusers_lt", &database.users, false, |t, row, note| {
                let digits = row.value.expose().trim_start_matches("0x");
                let key = format!("md5:{digits}");
                if !matches!(stored_key(&key), Some(Ok(_))) {
                    return Verdict::refused("a key that is not 32 hexadecimal digits of MD5");
                }
                if t.draft.add_user(&row.name, &key, note) {
                    Verdict::mapped("auth.users")
                } else {
                    Verdict::refused("the file has a user of that name, who comes first")
                }
            });
        }
    }

    /// Takes the rows of this realm, and those of every realm where `shared`; one finding for all that end alike.
    fn take(
        &mut self,
        table: &'static str,
        rows: &[Row],
        shared: bool,
        each: fn(&mut Self, &Row, &str) -> Verdict,
    ) {
        let realm = self.realm.clone().unwrap_or_default();
        let mut ends: Vec<(usize, Finding)> = Vec::new();
        for row in rows {
            let ours = row.realm == realm || (shared && row.realm.is_empty());
            let verdict = if ours {
                each(self, row, &format!("database: {table}"))
            } else {
                Verdict::refused(if realm.is_empty() {
                    "of a realm, and the file names none: set the realm there".to_owned()
                } else {
                    "of another realm; run another instance of turnix for it (turnix@.service)"
                        .to_owned()
                })
            };
            let finding = verdict.finding(Place::Table(table), table);
            match ends.iter_mut().find(|(_, known)| *known == finding) {
                Some((count, _)) => *count += 1,
                None => ends.push((1, finding)),
            }
        }
        self.findings
            .extend(ends.into_iter().map(|(count, finding)| Finding {
                option: rows_of(count),
                ..finding
            }));
    }

    /// Says that rows are left where they are.
    fn leave(&mut self, table: &'static str, count: usize, reason: &str) {
        if count > 0 {
            self.findings.push(Finding {
                place: Place::Table(table),
                option: rows_of(count),
                outcome: Outcome::Refused,
                keys: Vec::new(),
                reason: reason.to_owned(),
            });
        }
    }
}

fn rows_of(count: usize) -> String {
    match count {
        1 => "1 row".to_owned(),
        _ => format!("{count} rows"),
    }
}

/// An option of the realm, which comes before that of the file.
fn option(t: &mut Translation<'_>, row: &Row, note: &str) -> Verdict {
    let value = row.value.expose().trim();
    // turnadmin writes -1 for what is as in the file.
    let Ok(number) = value.parse::<u64>() else {
        return Verdict::idle("as the file says");
    };
    let note = format!("{note}: {}", row.name);
    match row.name.as_str() {
        "max-bps" => t.limit_bandwidth(false, number, &note),
        "user-quota" | "total-quota" => {
            let key = match row.name.as_str() {
                "user-quota" => "limits.allocations_per_user",
                _ => "limits.allocations",
            };
            t.draft
                .set(key, number.min(u64::from(u32::MAX)).to_string(), note);
            Verdict::mapped(key)
        }
        _ => Verdict::refused("coturn knows no such option of a realm"),
    }
}
