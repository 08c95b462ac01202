//! Which certificate a server begins with, and who keeps it good: whoever writes files, or an authority by ACME.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::acme::{Counts, Issuer, Settings, Store};
use crate::base::Clock;
use crate::config::{Config, PemFiles, Problem, Tls};
use crate::stream::certificates::{self, Certificate};
use crate::stream::{Certificates, Challenges};

use super::Running;

/// What ACME needs for as long as the process lives, whether or not anything is ordered.
#[derive(Default)]
pub(super) struct Certification {
    challenges: Arc<Challenges>,
    counts: Arc<Counts>,
    poke: Arc<Notify>,
    /// Something was ordered since the start.
    begun: bool,
    task: Option<(Settings, JoinHandle<()>)>,
}

/// What to serve from the beginning, or from a reload on.
pub(super) enum First {
    /// There is no TLS.
    None,
    /// What is served already.
    Current,
    /// This.
    Load(Certificate),
}

impl Certification {
    /// What to serve by `config`. `serves`: there is a certificate that would do until another is issued.
    pub fn first(&self, config: &Config, serves: bool, problems: &mut Vec<Problem>) -> First {
        let loaded = match &config.tls {
            None => return First::None,
            Some(Tls::Files(files)) => from_files(files),
            Some(Tls::Acme(settings)) => {
                let unchanged = self
                    .task
                    .as_ref()
                    .is_some_and(|(running, _)| running == settings);
                if serves && unchanged {
                    return First::Current;
                }
                match kept(settings) {
                    Ok(None) if serves => return First::Current,
                    Ok(None) => placeholder(settings),
                    Ok(Some(certificate)) => Ok(certificate),
                    Err(problem) => Err(problem),
                }
            }
        };
        loaded.map_or_else(
            |problem| {
                problems.push(problem);
                First::None
            },
            First::Load,
        )
    }

    /// Serves `certificate`, and answers challenges.
    pub fn serving(&self, certificate: Certificate) -> Arc<Certificates> {
        Certificates::answering(certificate, self.challenges())
    }

    /// What authorities find.
    pub fn challenges(&self) -> Arc<Challenges> {
        Arc::clone(&self.challenges)
    }

    /// What became of orders, where `config` wants some.
    pub fn counts(&self, config: &Config) -> Option<Arc<Counts>> {
        matches!(config.tls, Some(Tls::Acme(_))).then(|| Arc::clone(&self.counts))
    }

    /// Ends the pause after a failure; false if nothing is ordered here.
    pub fn poke(&self) -> bool {
        if self.task.is_some() {
            self.poke.notify_one();
        }
        self.task.is_some()
    }

    /// Orders nothing from now on.
    pub fn stop(&mut self) {
        if let Some((_, task)) = self.task.take() {
            task.abort();
        }
    }

    /// Orders what `settings` say from now on.
    fn order(&mut self, settings: &Settings, served: &Arc<Certificates>, control: &Handle) {
        if self
            .task
            .as_ref()
            .is_some_and(|(running, _)| running == settings)
        {
            return;
        }
        self.stop();
        let store = match Store::open(settings) {
            Ok(store) => store,
            // Opened a moment ago: whoever took it away will be told by the log, and a restart.
            Err(error) => {
                let problem = unusable(settings, &error);
                tracing::error!("{problem}");
                return;
            }
        };
        self.poke = Arc::default();
        let issuer = Issuer::new(
            settings.clone(),
            store,
            Arc::clone(served),
            self.challenges(),
            Arc::clone(&self.counts),
            Arc::clone(&self.poke),
        );
        // Whoever has just changed what is ordered has mended what kept it from being issued.
        let changed = std::mem::replace(&mut self.begun, true);
        self.task = Some((settings.clone(), control.spawn(issuer.keep(changed))));
    }
}

impl Running {
    /// Has certificates ordered as the configuration in effect says.
    pub(super) fn certify(&mut self) {
        match (&self.config.tls, &self.certificates) {
            (Some(Tls::Acme(settings)), Some(served)) => {
                self.certification
                    .order(settings, served, self.control.handle());
            }
            _ => self.certification.stop(),
        }
    }
}

/// The certificates for other names.
pub(super) fn others(config: &Config, problems: &mut Vec<Problem>) -> Vec<Certificate> {
    let mut load = |files| {
        from_files(files)
            .map_err(|problem| problems.push(problem))
            .ok()
    };
    config.certificates.iter().filter_map(&mut load).collect()
}

/// Names that are this server's whatever its certificates say.
pub(super) fn own_names(config: &Config) -> Vec<String> {
    let mut names = vec![config.access.realm.clone()];
    if let Some(Tls::Acme(settings)) = &config.tls {
        names.extend_from_slice(&settings.names);
    }
    for realm in &config.access.realms {
        names.push(realm.name.clone());
        names.extend_from_slice(&realm.server_names);
    }
    names
}

fn from_files(files: &PemFiles) -> Result<Certificate, Problem> {
    certificates::load(&files.certificate, &files.key)
        .map_err(|error| Problem::host("tls", error.to_string(), "put it right and start again"))
}

/// The certificate that an earlier order brought, if it is good.
fn kept(settings: &Settings) -> Result<Option<Certificate>, Problem> {
    let store = Store::open(settings).map_err(|error| unusable(settings, &error))?;
    let now = Clock.now().unix_secs();
    // What is wrong with the file is told by whoever orders another.
    let kept = store.certificate().ok().flatten();
    Ok(kept.filter(|certificate| certificate.not_after_unix() > now))
}

/// What is served until an authority has issued something: nobody trusts it, and the server starts at once.
fn placeholder(settings: &Settings) -> Result<Certificate, Problem> {
    let failed = |error: &dyn std::fmt::Display| {
        Problem::host(
            "tls.acme.names",
            error.to_string(),
            "name this server by its DNS names",
        )
    };
    let now = Clock.now().unix_secs();
    let made = certificates::self_signed(&settings.names, now).map_err(|error| failed(&error))?;
    Certificate::from_pem(
        made.certificate_pem.as_bytes(),
        made.key_pem.expose().as_bytes(),
    )
    .map_err(|error| failed(&error))
}

fn unusable(settings: &Settings, error: &std::io::Error) -> Problem {
    Problem::host(
        "tls.acme",
        format!(
            "account and certificates cannot be kept in {}: {error}",
            settings.state.display()
        ),
        "let the user that turnix runs as write there, or set STATE_DIRECTORY to another directory (systemd's \
         StateDirectory= does)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    #[test]
    fn names_of_every_realm_are_this_servers() {
        let set = [
            "auth.secrets=[\"s3cret\"]",
            "realm=turn.example.org",
            r#"realms=[{ name = "example.net", server_names = ["turn.example.net"], secrets = ["another s3cret"] }]"#,
        ];
        let config = Config::load(&Sources {
            set: set.map(Into::into).to_vec(),
            ..Sources::default()
        })
        .unwrap_or_else(|problems| panic!("{problems}"));
        let expected = ["turn.example.org", "example.net", "turn.example.net"];
        assert_eq!(own_names(&config), expected);
    }
}
