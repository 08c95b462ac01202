//! Progress for people: a line for each step, live on a terminal, plain otherwise.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use tokio::time::Instant;

use crate::base::Printable;

/// Between two updates of a line.
const OFTEN: Duration = Duration::from_millis(100);

/// Where the output goes.
pub struct Screen {
    shows: bool,
    live: bool,
    colour: bool,
    updated: Option<Instant>,
}

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// As it should.
    Ok,
    /// Not quite.
    Warn,
    /// It did not.
    Fail,
}

impl Screen {
    /// Standard output; nothing is written if it is to hold a document.
    pub fn new(document: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            shows: !document,
            live: terminal && !dumb,
            colour: terminal && !dumb && !set("NO_COLOR"),
            updated: None,
        }
    }

    /// A step has begun.
    pub fn begin(&mut self, step: &str) {
        if self.shows && self.live {
            self.write(&format!("\r\x1b[K  …     {step}"));
            self.updated = None;
        }
    }

    /// A step is as far as `done` of `all`.
    pub fn update(&mut self, step: &str, done: u32, all: u32) {
        let now = Instant::now();
        let due = self.updated.is_none_or(|last| now - last >= OFTEN);
        if self.shows && self.live && due {
            self.updated = Some(now);
            self.write(&format!("\r\x1b[K  …     {step:<13} {done} of {all}"));
        }
    }

    /// A step is over.
    pub fn end(&mut self, step: &str, mark: Mark, text: &str) {
        if !self.shows {
            return;
        }
        let (word, colour) = match mark {
            Mark::Ok => ("ok  ", "32"),
            Mark::Warn => ("warn", "33"),
            Mark::Fail => ("FAIL", "31"),
        };
        let word = self.painted(word, colour);
        // Some of the text is the server's own.
        let line = format!("  {word}  {step:<13} {}", Printable(text));
        self.line(line.trim_end());
    }

    /// A line of its own.
    pub fn line(&mut self, line: &str) {
        if self.shows {
            let clear = if self.live { "\r\x1b[K" } else { "" };
            self.write(&format!("{clear}{line}\n"));
        }
    }

    /// Removes what stands for a step that is not over.
    pub fn clear(&mut self) {
        if self.shows && self.live {
            self.write("\r\x1b[K");
        }
    }

    /// `text` in a colour (ECMA-48 §8.3.117), where colours are welcome.
    pub fn painted(&self, text: &str, colour: &str) -> String {
        match self.colour {
            true => format!("\x1b[{colour}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    fn write(&self, text: &str) {
        let mut stdout = io::stdout().lock();
        // Nobody is left to watch if standard output is gone; the exit code still tells.
        let _ = stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush());
    }
}
