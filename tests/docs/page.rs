//! A page's blocks, as Markdown has them and as `README.md`'s and `docs/`'s readers run them.
//!
//! What stands behind the language of a fenced block says what the test does with it; readers do not see it:
//! `file=PATH` writes the block there, `background` leaves its commands running, `skip="REASON"` leaves it out. An HTML
//! comment that begins with `run` is a block that readers do not see at all.

use std::collections::HashMap;

/// What to do with a block.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Commands, and what each prints where the page shows it: `…` stands for anything.
    Run(Vec<(String, Option<String>)>),
    /// Commands that go on while the rest of the page runs.
    Background(String),
    /// Text that goes into a file.
    Write { path: String, text: String },
    /// Commands that cannot run here, and why.
    Skip { text: String, why: String },
    /// Something that no shell runs.
    Show { language: String },
}

/// A block and the line that it begins at.
#[derive(Debug)]
pub struct Block {
    pub line: usize,
    pub action: Action,
}

/// The blocks of `page`, in their order.
pub fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let (end, info) = if let Some(info) = line.trim_start().strip_prefix("```") {
            ("```", info)
        } else if line == "<!-- run" {
            ("-->", "sh")
        } else {
            continue;
        };
        let indent = line.len() - line.trim_start().len();
        let body: Vec<&str> = (lines.by_ref().map(|(_, line)| line))
            .take_while(|line| line.trim() != end)
            .map(|line| line.get(indent..).unwrap_or_default())
            .collect();
        blocks.push(Block {
            line: at + 1,
            action: action(info, &body),
        });
    }
    blocks
}

fn action(info: &str, body: &[&str]) -> Action {
    let (language, attributes) = info.split_once(' ').unwrap_or((info, ""));
    let attributes = attributes_of(attributes);
    let text = body.join("\n") + "\n";
    if let Some(why) = attributes.get("skip") {
        let why = why.clone();
        return Action::Skip { text, why };
    }
    if let Some(path) = attributes.get("file") {
        let path = path.clone();
        return Action::Write { path, text };
    }
    match language {
        "sh" if attributes.contains_key("background") => Action::Background(text),
        "sh" => Action::Run(vec![(text, None)]),
        "console" => Action::Run(console(body)),
        language => Action::Show {
            language: language.to_owned(),
        },
    }
}

/// Commands begin with `$ ` and go on behind a backslash; what follows is their output.
fn console(body: &[&str]) -> Vec<(String, Option<String>)> {
    let mut commands: Vec<(String, Option<String>)> = Vec::new();
    let mut goes_on = false;
    for line in body {
        let begins = line.strip_prefix("$ ");
        if let Some(command) = begins {
            commands.push((command.to_owned(), None));
        } else if goes_on {
            let (command, _) = commands.last_mut().expect("a command before it");
            *command += "\n";
            *command += line;
        } else {
            let (_, output) = commands.last_mut().expect("a command before its output");
            let output = output.get_or_insert_default();
            *output += line;
            *output += "\n";
        }
        goes_on = (begins.is_some() || goes_on) && line.ends_with('\\');
    }
    commands
}

/// `name`, `name=word` and `name="words"`.
fn attributes_of(mut text: &str) -> HashMap<&str, String> {
    let mut attributes = HashMap::new();
    loop {
        text = text.trim_start();
        if text.is_empty() {
            return attributes;
        }
        let end = text.find([' ', '=']).unwrap_or(text.len());
        let name = &text[..end];
        text = &text[end..];
        let value = if let Some(quoted) = text.strip_prefix("=\"") {
            let (value, rest) = quoted.split_once('"').expect("a closing quote");
            text = rest;
            value
        } else if let Some(word) = text.strip_prefix('=') {
            let (value, rest) = word.split_at(word.find(' ').unwrap_or(word.len()));
            text = rest;
            value
        } else {
            ""
        };
        attributes.insert(name, value.to_owned());
    }
}

/// Whether `printed` is what the page shows: `…` stands for anything, on a line of its own for any lines.
pub fn matches(shown: &str, printed: &str) -> bool {
    let shown: Vec<&str> = shown.trim_end().lines().map(str::trim_end).collect();
    let printed: Vec<&str> = printed.trim_end().lines().map(str::trim_end).collect();
    lines_match(&shown, &printed)
}

fn lines_match(shown: &[&str], printed: &[&str]) -> bool {
    let Some((first, rest)) = shown.split_first() else {
        return printed.is_empty();
    };
    if first.trim() == "…" {
        return (0..=printed.len()).any(|from| lines_match(rest, &printed[from..]));
    }
    match printed.split_first() {
        Some((line, others)) => line_matches(first, line) && lines_match(rest, others),
        None => false,
    }
}

fn line_matches(shown: &str, printed: &str) -> bool {
    let mut parts = shown.split('…');
    let Some(mut rest) = printed.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let mut open = false;
    for part in parts {
        open = part.is_empty();
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    open || rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# Page

```toml file=/etc/x.toml
a = 1
```

- first

  ```console
  $ echo one \\
      two
  one …
  $ true
  ```

```sh background
sleep 9
```

<!-- run
hidden
-->

```sh skip=\"needs the internet\"
git clone
```
```js
1
```
";

    #[test]
    fn a_page_is_its_blocks() {
        let actions: Vec<Action> = blocks(PAGE).into_iter().map(|block| block.action).collect();
        let text = |text: &str| text.to_owned();
        let expected = [
            Action::Write {
                path: text("/etc/x.toml"),
                text: text("a = 1\n"),
            },
            Action::Run(vec![
                (text("echo one \\\n    two"), Some(text("one …\n"))),
                (text("true"), None),
            ]),
            Action::Background(text("sleep 9\n")),
            Action::Run(vec![(text("hidden\n"), None)]),
            Action::Skip {
                text: text("git clone\n"),
                why: text("needs the internet"),
            },
            Action::Show {
                language: text("js"),
            },
        ];
        assert_eq!(actions, expected);
    }

    #[test]
    fn an_ellipsis_stands_for_anything() {
        assert!(matches("a … c\n", "a b b c\n"));
        assert!(matches("a\n…\nz", "a\nb\nc\nz\n"));
        assert!(matches("…\n", ""));
        assert!(matches("a…", "a, and so on"));
        assert!(!matches("a … c\n", "a b b d\n"));
        assert!(!matches("a\n", "a\nb\n"));
        assert!(!matches("a\nb\n", "a\n"));
    }
}
