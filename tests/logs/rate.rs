//! Levels and rates of the log, which change while it runs.

use std::fmt;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use turnix::base::PiiMode;
use turnix::logging::{Format, Level, Settings, subscriber};

/// Keeps every event as text: message and fields.
#[derive(Clone, Default)]
pub struct Kept(Arc<Mutex<Vec<String>>>);

impl Kept {
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0 += &format!("{}={value:?} ", field.name());
    }
}

impl<S: Subscriber> Layer<S> for Kept {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }
}

pub const SETTINGS: Settings = Settings {
    format: Format::Json,
    level: Level::Info,
    events_per_second: 5,
    ip_privacy: PiiMode::Full,
};

#[test]
fn a_flood_of_one_kind_is_bounded_counted_and_silences_nobody_else() {
    let kept = Kept::default();
    let (subscriber, control) = subscriber(SETTINGS, Box::new(kept.clone()));
    tracing::subscriber::with_default(subscriber, || {
        for number in 0..5000 {
            tracing::warn!(number, "flood");
        }
        tracing::warn!("another");
        for _ in 0..1000 {
            tracing::error!(target: "turnix::app", "configuration");
            tracing::error!(target: "turnix::apparent", "no part of app");
        }
        let written = kept.take();
        let of = |what: &str| written.iter().filter(|line| line.contains(what)).count();
        // Ten seconds' worth, and what has become free meanwhile on a slow machine.
        assert!((50..500).contains(&of("flood")), "{}", of("flood"));
        assert_eq!(of("another"), 1);
        assert_eq!(of("configuration"), 1000);
        assert!((50..500).contains(&of("no part of app")));

        control.report();
        let told = kept.take();
        let flood = format!("suppressed={} record=\"flood\"", 5000 - of("flood"));
        assert!(told.iter().any(|line| line.contains(&flood)), "{told:?}");
        assert_eq!(told.len(), 2, "{told:?}");
        control.report();
        assert_eq!(kept.take(), Vec::<String>::new(), "told once");

        control.change(Settings {
            events_per_second: 0,
            ..SETTINGS
        });
        for number in 0..500 {
            tracing::warn!(number, "no limit");
        }
        assert_eq!(kept.take().len(), 500);
    });
}

#[test]
fn the_level_changes_while_it_runs() {
    let kept = Kept::default();
    let (subscriber, control) = subscriber(SETTINGS, Box::new(kept.clone()));
    tracing::subscriber::with_default(subscriber, || {
        let log = || {
            tracing::error!("1");
            tracing::info!("2");
            tracing::debug!("3");
            tracing::trace!("4");
            tracing::debug!(target: "turnix::trace", "always");
            tracing::trace!(target: "turnix::trace", "never");
            tracing::warn!(target: "rustls::conn", "noise");
            kept.take().len()
        };
        assert_eq!(log(), 3);
        for (level, lines) in [
            (Level::Debug, 4),
            (Level::Error, 2),
            (Level::Trace, 5),
            (Level::Info, 3),
        ] {
            let other_format = control.change(Settings { level, ..SETTINGS });
            assert!(!other_format);
            assert_eq!(log(), lines, "{level:?}");
        }
        let format = Format::Text;
        assert!(control.change(Settings { format, ..SETTINGS }));
    });
}
