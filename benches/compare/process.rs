//! Child processes that never outlive the comparison.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use turnix::base::Clock;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How often a child is looked after.
const POLL: Duration = Duration::from_millis(10);

/// Turns SIGINT, SIGTERM and SIGHUP into an error of whatever waits, so that guards are dropped.
pub fn watch_signals() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                let streams = (
                    signal(SignalKind::interrupt()),
                    signal(SignalKind::terminate()),
                    signal(SignalKind::hangup()),
                );
                let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) = streams else {
                    return;
                };
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                INTERRUPTED.store(true, Ordering::Relaxed);
            });
        })
        .map(drop)
}

/// # Errors
/// A signal asked for the end.
pub fn check_interrupted() -> anyhow::Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Sleeps a moment.
///
/// # Errors
/// A signal asked for the end.
pub fn nap() -> anyhow::Result<()> {
    check_interrupted()?;
    std::thread::sleep(POLL);
    Ok(())
}

/// Whether `command` can be run and ends well; its output goes nowhere.
pub fn works(command: &[&str]) -> bool {
    let Some((program, arguments)) = command.split_first() else {
        return false;
    };
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

/// Standard output and standard error of `program`, one after the other; `None` if it cannot be run.
pub fn output_of(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    let output = command.args(arguments).stdin(Stdio::null()).output().ok()?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Some(text)
}

/// How processes are put on their CPU: commands that end in running another one.
#[derive(Clone, Debug, Default)]
pub struct Launcher {
    prefix: Vec<String>,
    /// Whether processes run in the real-time class, before all others.
    pub real_time: bool,
    /// Whether the kernel ends them with us even if we are killed.
    pub tied: bool,
}

impl Launcher {
    /// Finds out what this machine permits.
    pub fn new() -> Self {
        let mut launcher = Self::default();
        let tie = ["setpriv", "--pdeathsig", "KILL", "--"];
        let real_time = ["chrt", "-f", "20"];
        launcher.tied = works(&[&tie[..], &["true"]].concat());
        launcher.real_time = works(&[&real_time[..], &["true"]].concat());
        if launcher.tied {
            launcher.prefix.extend(tie.map(str::to_owned));
        }
        if launcher.real_time {
            launcher.prefix.extend(real_time.map(str::to_owned));
        }
        launcher
    }

    /// Starts `command` on `cpu`. Its process id stays the child's own: the prefix replaces itself.
    ///
    /// # Errors
    /// There is no such program, or `directory` cannot be written.
    pub fn start(
        &self,
        cpu: Option<usize>,
        command: &[String],
        directory: &Path,
        name: &str,
    ) -> anyhow::Result<Process> {
        let mut line = self.prefix.clone();
        if let Some(cpu) = cpu {
            line.extend(["taskset".to_owned(), "-c".to_owned(), cpu.to_string()]);
        }
        line.extend_from_slice(command);
        let (program, arguments) = line.split_first().context("an empty command")?;
        let stdout = directory.join(format!("{name}.out"));
        let stderr = directory.join(format!("{name}.err"));
        let child = Command::new(program)
            .args(arguments)
            .env("STATE_DIRECTORY", directory)
            .stdin(Stdio::null())
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?)
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        Ok(Process {
            child,
            stdout,
            stderr,
        })
    }
}

/// A running child; dropping it ends it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end; what it printed, if it ended well.
    ///
    /// # Errors
    /// It failed, took longer than `limit`, or a signal asked for the end.
    pub fn finish(mut self, limit: Duration) -> anyhow::Result<String> {
        let deadline = Clock.now().mono + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Clock.now().mono >= deadline {
                bail!("it did not end within {} s", limit.as_secs());
            }
            nap()?;
        };
        if !status.success() {
            check_interrupted()?;
            bail!("{status}: {}", self.last_words());
        }
        Ok(std::fs::read_to_string(&self.stdout)?)
    }

    /// The last lines that it printed.
    pub fn last_words(&self) -> String {
        let read = |path| std::fs::read(path).unwrap_or_default();
        let bytes = [read(&self.stdout), read(&self.stderr)].concat();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
