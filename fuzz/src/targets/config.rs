//! The configuration: any text is read or refused, and what is secret is in no message.

use std::sync::OnceLock;

use turnix::config::{Config, Declared, Sources, declared};

use super::Reach;
use super::input::Input;

/// Stand where secrets stand, and nowhere else: a text, and a number where somebody forgot the quotes.
const MARKS: [&str; 2] = ["hUsHhUsH7", "77889912"];

/// Secrets as they are written, in the right form and in wrong ones.
const SECRETS: [&str; 18] = [
    "",
    "[auth]\nsecrets = [\"hUsHhUsH7\"]\n",
    "[auth]\nsecrets = \"hUsHhUsH7\"\n",
    "[auth]\nsecrets = [\"hUsHhUsH7\", 1]\n",
    "[auth]\nsecrets = [[\"hUsHhUsH7\"]]\n",
    "[auth]\nsecrets = [\"hUsHhUsH7\"\n",
    "[auth]\nsecrets = [\"hUsHhUsH7]\n",
    "[auth]\nsecrets = hUsHhUsH7\n",
    "[auth]\nsecret = \"hUsHhUsH7\"\n",
    "[auth]\nusers = { alice = \"hUsHhUsH7\" }\n",
    "[auth]\nusers = { alice = [\"hUsHhUsH7\"] }\n",
    "[auth]\nusers = [\"hUsHhUsH7\"]\n",
    "[auth.users]\nalice = \"hUsHhUsH7\"\n",
    "[auth.users]\nalice = { password = \"hUsHhUsH7\" }\n",
    "[auth]\nsecrets = [77889912]\n",
    "[auth]\nsecrets = 77889912\n",
    "[auth]\nusers = { alice = 77889912.5 }\n",
    "[auth.users]\nalice = 77889912\n",
];

/// The same from outside the file.
const SET: [&str; 8] = [
    "auth.secrets=hUsHhUsH7",
    "auth.secrets=[\"hUsHhUsH7\"]",
    "auth.secrets=[\"hUsHhUsH7",
    "auth.secret=hUsHhUsH7",
    "auth.users.alice=hUsHhUsH7",
    "auth.users=hUsHhUsH7",
    "auth.users={alice=\"hUsHhUsH7\"}",
    "hUsHhUsH7",
];

const ENVIRONMENT: [&str; 5] = [
    "TURNIX_AUTH__SECRETS",
    "TURNIX_AUTH__USERS",
    "TURNIX_AUTH__USERS__ALICE",
    "TURNIX_AUTH__SECRET",
    "TURNIX_AUTH",
];

static KEYS: OnceLock<Vec<Declared>> = OnceLock::new();

pub fn config(data: &[u8]) -> Reach {
    let mut input = Input(data);
    let written = input.below(SECRETS.len());
    let outside = input.below(32);
    let variable = input.below(32);
    let Ok(text) = std::str::from_utf8(input.0) else {
        return Reach::new();
    };
    // Files are not what is tried here, and some that a fuzzer finds never end.
    if text.contains("secret_files")
        || text.contains('\\')
        || MARKS.iter().any(|mark| text.contains(mark))
    {
        return Reach::new();
    }
    let mut sources = Sources {
        base: Some(format!("{}{text}", SECRETS[written])),
        ..Sources::default()
    };
    // Text of the fuzzer stands in front of the secrets as well, where it can end in the middle of something.
    if outside % 2 == 1 {
        sources.base = Some(format!("{text}\n{}", SECRETS[written]));
    }
    if let Some(set) = SET.get(outside / 2) {
        sources.set.push((*set).to_owned());
    }
    if let Some(name) = ENVIRONMENT.get(variable) {
        sources.environment.push((
            (*name).into(),
            MARKS[usize::from(input.0.len() % 2 == 0)].into(),
        ));
    }
    let secret = secret_only(&sources);
    let mut reach = Reach::new();
    match Config::load(&sources) {
        Ok(config) => {
            if secret {
                assert!(!shows(&format!("{config:?}")), "a secret is shown");
            }
            reach.insert("accepted".into());
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            let text = problems.to_string();
            if secret {
                assert!(!shows(&text), "a secret is shown: {text}");
            }
            for problem in problems.iter() {
                assert!(!problem.found.is_empty() && !problem.remedy.is_empty());
                let key: String = (problem.key.chars())
                    .map(|c| if c.is_ascii_digit() { '0' } else { c })
                    .collect();
                if KEYS
                    .get_or_init(declared)
                    .iter()
                    .any(|known| known.name == key)
                {
                    reach.insert(format!("refused {key}"));
                } else if problem.found.starts_with("not TOML") {
                    reach.insert("not TOML".into());
                } else {
                    reach.insert("refused".into());
                }
            }
        }
    }
    reach
}

/// Whether the secret stands where secrets belong: an open quote in front of it makes it a part of another text.
fn secret_only(sources: &Sources) -> bool {
    let base = sources.base.as_deref().unwrap_or_default();
    MARKS.iter().all(|mark| {
        let before = base.split_once(mark).map_or("", |(before, _)| before);
        let open = |quote: &str| before.matches(quote).count() % 2 == 1;
        !open("\"\"\"") && !open("'''")
    })
}

fn shows(text: &str) -> bool {
    MARKS.iter().any(|mark| text.contains(mark))
}
