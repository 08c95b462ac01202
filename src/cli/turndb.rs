//! coturn's SQLite database, read by the program `sqlite3`.
//!
//! An import happens once in the life of a server, and SQLite in the program would stay: two megabytes of C beside the
//! sockets, and minutes of every build.

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::base::Secret;
use crate::config::coturn::{Database, Row};

/// Everything that an import can use.
///
/// # Errors
/// The database or the program is not there, or it is none of coturn's; nothing of what it holds.
pub fn read(path: &Path) -> anyhow::Result<Database> {
    // Opening what is not there would tell less.
    std::fs::File::open(path)?;
    let path = std::path::absolute(path)?;
    let tables: Vec<String> = query(&path, "SELECT name FROM sqlite_master WHERE type = 'table'")?
        .iter()
        .map(|row| text(row, "name"))
        .collect();
    let has = |table: &str| tables.iter().any(|name| name == table);
    if !has("turnusers_lt") && !has("turn_secret") {
        bail!("it has neither turnusers_lt nor turn_secret, the tables of coturn");
    }
    let rows = |table: &str, name: &str, value: &str| -> anyhow::Result<Vec<Row>> {
        if !has(table) {
            return Ok(Vec::new());
        }
        let select =
            format!("SELECT realm, {name} AS name, {value} AS value FROM {table} ORDER BY rowid");
        Ok(query(&path, &select)?
            .iter()
            .map(|row| Row {
                realm: text(row, "realm"),
                name: text(row, "name"),
                value: Secret::new(text(row, "value")),
            })
            .collect())
    };
    let count = |table: &str| -> anyhow::Result<usize> {
        if !has(table) {
            return Ok(0);
        }
        let counted = query(&path, &format!("SELECT count(*) AS count FROM {table}"))?;
        let count = counted.first().and_then(|row| row["count"].as_u64());
        Ok(usize::try_from(count.unwrap_or(0))?)
    };
    Ok(Database {
        users: rows("turnusers_lt", "name", "hmackey")?,
        secrets: rows("turn_secret", "''", "value")?,
        allowed: rows("allowed_peer_ip", "''", "ip_range")?,
        denied: rows("denied_peer_ip", "''", "ip_range")?,
        options: rows("turn_realm_option", "opt", "value")?,
        origins: count("turn_origin_to_realm")?,
        oauth_keys: count("oauth_key")?,
        admins: count("admin_user")?,
    })
}

/// Runs one query; a row is an object.
fn query(path: &Path, sql: &str) -> anyhow::Result<Vec<Value>> {
    let ran = Command::new("sqlite3")
        .args(["-batch", "-readonly", "-init", "/dev/null", "-json"])
        .arg(path)
        .arg(sql)
        .stdin(Stdio::null())
        .output();
    let output = match ran {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("the program sqlite3 is not there; install it (apt-get install sqlite3)")
        }
        other => other.context("sqlite3 cannot be run")?,
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("sqlite3 says: {}", said.lines().last().unwrap_or("nothing"));
    }
    // No rows are no text.
    if output.stdout.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&output.stdout)
        .context("sqlite3 printed what is no JSON; version 3.33 or later is needed")
}

fn text(row: &Value, column: &str) -> String {
    match &row[column] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
