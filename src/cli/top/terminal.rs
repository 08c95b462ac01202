//! The terminal of `turnix top`: the alternate screen, keys, and an end that leaves it as it was.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Context;
use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::style::{Attribute, Print, SetAttribute};
use crossterm::terminal::{
    BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen,
    disable_raw_mode, enable_raw_mode, size,
};
use crossterm::{cursor, event, execute, queue};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::view::{Key, View};
use super::{Line, poll};
use crate::base::Clock;

/// Lines of a terminal that does not tell.
const LINES: u16 = 24;

/// Shows `view`, asking the server over `line` every `interval`, until a key or a signal ends it.
///
/// # Errors
/// Standard output is no terminal that could be used so.
pub async fn show(view: &mut View, line: Line, interval: Duration) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    // Typed, both are keys; these come from elsewhere.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    let (asks, mut polls) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut pause = interval;
        loop {
            sleep(pause).await;
            let begun = Instant::now();
            if asks.send(poll(&line).await).await.is_err() {
                return;
            }
            // A listing of a hundred thousand is work for the server.
            pause = interval.max(begun.elapsed() * 4);
        }
    });
    let (presses, mut keys) = mpsc::channel(64);
    let _restored = Restored::new()?;
    // It ends with the process: nothing wakes somebody who waits for a key.
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if presses.blocking_send(event).is_err() {
                return;
            }
        }
    });
    loop {
        let height = draw(view)?;
        tokio::select! {
            polled = polls.recv() => match polled {
                Some(Ok(polled)) => view.take(polled, Clock.now()),
                Some(Err(error)) => view.fail(format!("{error:#}")),
                None => return Ok(()),
            },
            event = keys.recv() => match event {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    if !pressed(view, key, height) {
                        return Ok(());
                    }
                }
                Some(_) => {}
                None => return Ok(()),
            },
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = quit.recv() => return Ok(()),
        }
    }
}

fn pressed(view: &mut View, key: KeyEvent, height: u16) -> bool {
    let page = isize::try_from(height.saturating_sub(6).max(1)).unwrap_or(1);
    view.press(match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::Esc => Key::Escape,
        KeyCode::Enter => Key::Enter,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Up => Key::Move(-1),
        KeyCode::Down => Key::Move(1),
        KeyCode::PageUp => Key::Move(-page),
        KeyCode::PageDown => Key::Move(page),
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        _ => return true,
    })
}

/// Draws everything in one write; returns the lines that there are.
fn draw(view: &mut View) -> anyhow::Result<u16> {
    let (width, height) = size().unwrap_or((80, LINES));
    let mut out = Vec::new();
    queue!(out, BeginSynchronizedUpdate)?;
    for (index, row) in view.screen(width.into(), height.into()).iter().enumerate() {
        queue!(
            out,
            cursor::MoveTo(0, u16::try_from(index).unwrap_or(height))
        )?;
        match row.strong {
            true => queue!(
                out,
                SetAttribute(Attribute::Reverse),
                Print(&row.text),
                SetAttribute(Attribute::Reset)
            )?,
            false => queue!(out, Print(&row.text))?,
        }
    }
    queue!(out, EndSynchronizedUpdate)?;
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(&out)
        .and_then(|()| stdout.flush())
        .context("the terminal is gone")?;
    Ok(height)
}

/// A terminal in use, which is as before when this goes.
struct Restored;

impl Restored {
    fn new() -> anyhow::Result<Self> {
        enable_raw_mode().context("this terminal cannot be used; --once prints one listing")?;
        let restored = Self;
        execute!(
            io::stdout(),
            EnterAlternateScreen,
            cursor::Hide,
            crossterm::terminal::DisableLineWrap
        )?;
        Ok(restored)
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = execute!(
            io::stdout(),
            crossterm::terminal::EnableLineWrap,
            cursor::Show,
            LeaveAlternateScreen
        );
        let _ = disable_raw_mode();
    }
}
