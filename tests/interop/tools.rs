//! What every client test needs: tools that may be missing, deadlines, child processes that cannot outlive the test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// The clock of the tests.
#[expect(
    clippy::disallowed_methods,
    reason = "these tests wait for real processes"
)]
pub fn now() -> Instant {
    Instant::now()
}

/// Calls `probe` until it answers, and fails the test after `timeout`.
pub fn wait_for<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = now() + timeout;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(now() < end, "{what}: not within {timeout:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Clients that measure loss or run a video call take turns: together they would starve each other on a small machine.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The program's path; `None` after having said that `test` is skipped.
pub fn find_tool(test: &str, name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        skip(test, name);
    }
    found
}

/// Says that `test` cannot run here; a failure where every tool is required.
pub fn skip(test: &str, missing: &str) {
    let line = format!("SKIPPED: {test}: {missing} not found");
    assert!(
        std::env::var_os("INTEROP_REQUIRE_TOOLS").is_none_or(|v| v != "1"),
        "{line}"
    );
    println!("{line}");
}

/// A child process that is killed when it goes out of scope; its output goes to a file.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output in `log`.
    pub fn start(command: &mut Command, log: PathBuf) -> Process {
        let output = File::create(&log).expect("log file");
        let errors = output.try_clone().expect("log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Process { child, log }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("child status")
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        read_lossy(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- {}\n{}---", self.log.display(), self.output());
        }
    }
}

/// Runs `command` to its end; `None` for the status when it had to be killed at the deadline.
pub fn run(command: &mut Command, dir: &Path, timeout: Duration) -> (Option<ExitStatus>, String) {
    let mut process = Process::start(command, dir.join("client.log"));
    let end = now() + timeout;
    let status = loop {
        match process.ended() {
            Some(status) => break Some(status),
            None if now() > end => break None,
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    (status, process.output())
}

fn read_lossy(file: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned()
}
