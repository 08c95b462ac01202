//! What `turnix top` shows: a listing in its order, as lines of text. No terminal is named here.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use clap::ValueEnum;
use serde_json::Value;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::base::{Now, Printable};
use crate::cli::quality::Call;
use crate::cli::units::{bytes, rate, span};

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// Bits per second, both ways.
    Rate,
    /// Bits per second to peers.
    #[value(name = "to_peer", alias = "to-peer")]
    ToPeer,
    /// Bits per second to the client.
    #[value(name = "to_client", alias = "to-client")]
    ToClient,
    /// Bytes since the beginning, both ways.
    Bytes,
    /// The oldest.
    Age,
    /// The longest round-trip time to either side.
    Rtt,
    /// The highest loss of late from either side.
    Loss,
    /// Users by name.
    User,
}

impl Sort {
    const ALL: [Self; 8] = [
        Self::Rate,
        Self::ToPeer,
        Self::ToClient,
        Self::Bytes,
        Self::Age,
        Self::Rtt,
        Self::Loss,
        Self::User,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::ToPeer => "rate to peers",
            Self::ToClient => "rate to clients",
            Self::Bytes => "bytes",
            Self::Age => "age",
            Self::Rtt => "round-trip time",
            Self::Loss => "loss",
            Self::User => "user",
        }
    }
}

/// One look at a server.
#[derive(Clone, Debug, Default)]
pub struct Poll {
    health: Value,
    allocations: Vec<Allocation>,
}

#[derive(Clone, Debug)]
struct Allocation {
    id: String,
    user: String,
    transport: String,
    client: String,
    relayed: String,
    created_unix: u64,
    to_peer: u64,
    to_client: u64,
    bytes: u64,
    packets: u64,
    call: Call,
    json: Value,
}

impl Poll {
    /// From the answers of `/health` and `/api/v1/allocations`.
    pub fn new(health: Value, allocations: &Value) -> Self {
        let read = |one: &Value| {
            let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
            let count = |key: &str, way: &str| one[key][way].as_u64().unwrap_or_default();
            let both = |key: &str| count(key, "to_peer").saturating_add(count(key, "to_client"));
            Allocation {
                id: text("id"),
                // A name is whatever its owner chose: nothing in it may speak to the terminal.
                user: Printable(text("user")).to_string(),
                transport: text("transport"),
                client: text("client"),
                relayed: text("relayed"),
                created_unix: one["created"].as_u64().unwrap_or_default(),
                to_peer: count("bits_per_second", "to_peer"),
                to_client: count("bits_per_second", "to_client"),
                bytes: both("bytes"),
                packets: both("packets"),
                call: Call::of(one),
                json: one.clone(),
            }
        };
        Self {
            health,
            allocations: (allocations.as_array().into_iter().flatten())
                .map(read)
                .collect(),
        }
    }
}

/// What the server relays in total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// How many users have allocations.
    pub users: usize,
    /// Bits per second.
    pub to_peer: u64,
    /// Bits per second.
    pub to_client: u64,
}

/// A line of the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Not wider than the screen.
    pub text: String,
    /// Whether it stands out.
    pub strong: bool,
}

/// A key that means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A character.
    Char(char),
    /// Back to what was before.
    Escape,
    /// Done with typing.
    Enter,
    /// One character less.
    Backspace,
    /// Down by so many lines, or up.
    Move(isize),
    /// To the top.
    Home,
    /// To the bottom.
    End,
}

/// The latest listing, and how it is looked at.
pub struct View {
    sort: Sort,
    reversed: bool,
    filter: String,
    typing: bool,
    top: usize,
    now_unix: u64,
    now: Option<Now>,
    poll: Poll,
    packets_per_second: Option<u64>,
    trouble: Option<String>,
}

impl View {
    /// Nothing is known yet.
    pub fn new(sort: Sort, filter: String) -> Self {
        Self {
            sort,
            reversed: false,
            filter,
            typing: false,
            top: 0,
            now_unix: 0,
            now: None,
            poll: Poll::default(),
            packets_per_second: None,
            trouble: None,
        }
    }

    /// Shows `poll` from now on.
    pub fn take(&mut self, poll: Poll, now: Now) {
        self.packets_per_second = self.now.and_then(|before| {
            let known: HashMap<&str, u64> = (self.poll.allocations.iter())
                .map(|one| (one.id.as_str(), one.packets))
                .collect();
            let passed: u64 = (poll.allocations.iter())
                .map(|one| {
                    let before = known.get(one.id.as_str()).copied().unwrap_or_default();
                    one.packets.saturating_sub(before)
                })
                .sum();
            let seconds = now
                .mono
                .saturating_duration_since(before.mono)
                .as_secs_f64();
            (seconds > 0.0).then(|| (passed as f64 / seconds) as u64)
        });
        self.now = Some(now);
        self.now_unix = now.unix_secs();
        self.poll = poll;
        self.trouble = None;
    }

    /// The server could not be asked; what was known stays.
    pub fn fail(&mut self, why: String) {
        self.trouble = Some(why);
    }

    /// Takes a key; false if it means that this is enough.
    pub fn press(&mut self, key: Key) -> bool {
        match (key, self.typing) {
            (Key::Char(c), true) if !c.is_control() => self.filter.push(c),
            (Key::Backspace, true) => {
                self.filter.pop();
            }
            (Key::Enter, true) => self.typing = false,
            (Key::Escape, true) => {
                self.typing = false;
                self.filter.clear();
            }
            (Key::Char('q'), false) => return false,
            (Key::Escape, false) if self.filter.is_empty() => return false,
            (Key::Escape, false) => self.filter.clear(),
            (Key::Char('s'), false) => self.turn(1),
            (Key::Char('S'), false) => self.turn(Sort::ALL.len() - 1),
            (Key::Char('r'), false) => self.reversed = !self.reversed,
            (Key::Char('/'), false) => self.typing = true,
            (Key::Char('j'), false) => self.top = self.top.saturating_add(1),
            (Key::Char('k'), false) => self.top = self.top.saturating_sub(1),
            (Key::Move(by), _) => self.top = self.top.saturating_add_signed(by),
            (Key::Home, _) => self.top = 0,
            (Key::End, _) => self.top = usize::MAX,
            _ => {}
        }
        true
    }

    fn turn(&mut self, by: usize) {
        let at = (Sort::ALL.iter()).position(|one| *one == self.sort);
        let next = (at.unwrap_or_default() + by) % Sort::ALL.len();
        if let Some(sort) = Sort::ALL.get(next) {
            self.sort = *sort;
        }
    }

    /// How the server says it is.
    pub const fn health(&self) -> &Value {
        &self.poll.health
    }

    /// Of all allocations, shown or not.
    pub fn totals(&self) -> Totals {
        let all = &self.poll.allocations;
        let users: HashSet<&str> = all.iter().map(|one| one.user.as_str()).collect();
        Totals {
            users: users.len(),
            to_peer: all.iter().map(|one| one.to_peer).sum(),
            to_client: all.iter().map(|one| one.to_client).sum(),
        }
    }

    /// What is shown, as the server told it.
    pub fn documents(&self) -> Vec<&Value> {
        self.listed().into_iter().map(|one| &one.json).collect()
    }

    /// One listing without a screen: nothing is cut off.
    pub fn plain(&self) -> String {
        let mut text = String::new();
        for line in self.head() {
            text += line.trim_end();
            text.push('\n');
        }
        text.push('\n');
        let columns = self.columns(&self.listed());
        for line in lines(&columns) {
            text += line.trim_end();
            text.push('\n');
        }
        text
    }

    /// A screen of `width` columns and `height` rows.
    pub fn screen(&mut self, width: usize, height: usize) -> Vec<Row> {
        let row = |text: &str, strong| Row {
            text: fit(text, width),
            strong,
        };
        let mut rows: Vec<Row> = self.head().iter().map(|line| row(line, false)).collect();
        // The state and the column heads below, the keys at the bottom.
        let room = height.saturating_sub(rows.len() + 3);
        let count = self.listed().len();
        self.top = self.top.min(count.saturating_sub(room));
        let mut state = self.state();
        if count > room && self.trouble.is_none() {
            let last = (self.top + room).min(count);
            state += &format!("   {} to {last} of {count}", self.top + 1);
        }
        if self.knows_calls() && self.trouble.is_none() {
            state += "   rtt, loss, jitter: client/peer";
        }
        rows.push(row(&state, self.trouble.is_some()));
        let listed = self.listed();
        let shown: Vec<_> = listed.into_iter().skip(self.top).take(room).collect();
        let mut columns = self.columns(&shown);
        // What says least goes first where the screen is narrow.
        let least = [
            "id", "relayed", "client", "over", "age", "total", JITTER, "call", LOSS, RTT,
        ];
        for title in least {
            let all: usize = columns.iter().map(|column| column.width() + 2).sum();
            if all > width + 2 {
                columns.retain(|column| column.title != title);
            }
        }
        for (index, line) in lines(&columns).iter().enumerate() {
            rows.push(row(line.trim_end(), index == 0));
        }
        if shown.is_empty() && room > 0 {
            let none = match self.filter.is_empty() {
                true => "no allocations",
                false => "no allocations of such users",
            };
            rows.push(row(none, false));
        }
        rows.truncate(height.saturating_sub(1));
        rows.resize(height.saturating_sub(1), row("", false));
        let keys = match self.typing {
            true => format!(
                "filter by user: {}_   Enter keeps, Esc clears",
                Printable(&self.filter)
            ),
            false => "q quit   s sort   r reverse   / filter by user   arrows scroll".to_owned(),
        };
        rows.push(row(&keys, true));
        rows
    }

    fn head(&self) -> Vec<String> {
        let text = |key: &str| {
            let text = self.poll.health[key].as_str().unwrap_or_default();
            Printable(text).to_string()
        };
        let (node, region) = (text("node"), text("region"));
        let place = match region.is_empty() {
            true => node,
            false => format!("{node} ({region})"),
        };
        let totals = self.totals();
        let count = self.poll.allocations.len();
        let many = |count: usize| if count == 1 { "" } else { "s" };
        let packets = (self.packets_per_second)
            .map_or_else(String::new, |packets| format!("   {packets} packets/s"));
        vec![
            format!(
                "turnix {} on {place}: {}   {count} allocation{} of {} user{}",
                text("version"),
                text("status"),
                many(count),
                totals.users,
                many(totals.users)
            ),
            format!(
                "to peers {}   to clients {}{packets}",
                rate(totals.to_peer as f64),
                rate(totals.to_client as f64)
            ),
        ]
    }

    /// In which order, and what is not shown.
    fn state(&self) -> String {
        if let Some(trouble) = &self.trouble {
            return Printable(trouble).to_string();
        }
        let order = if self.reversed { ", reversed" } else { "" };
        let mut text = format!("by {}{order}", self.sort.label());
        if !self.filter.is_empty() {
            let shown = self.listed().len();
            text += &format!(
                "   users with {:?}: {shown}",
                Printable(&self.filter).to_string()
            );
        }
        text
    }

    /// What passes the filter, in its order.
    fn listed(&self) -> Vec<&Allocation> {
        let wanted = self.filter.to_lowercase();
        let mut listed: Vec<&Allocation> = (self.poll.allocations.iter())
            .filter(|one| one.user.to_lowercase().contains(&wanted))
            .collect();
        let both = |one: &Allocation| one.to_peer.saturating_add(one.to_client);
        match self.sort {
            Sort::Rate => listed.sort_by_key(|one| Reverse((both(one), one.bytes))),
            Sort::ToPeer => listed.sort_by_key(|one| Reverse((one.to_peer, one.bytes))),
            Sort::ToClient => listed.sort_by_key(|one| Reverse((one.to_client, one.bytes))),
            Sort::Bytes => listed.sort_by_key(|one| Reverse(one.bytes)),
            Sort::Age => listed.sort_by_key(|one| one.created_unix),
            Sort::Rtt => {
                listed.sort_by(|one, other| other.call.slowest.total_cmp(&one.call.slowest));
            }
            Sort::Loss => {
                listed.sort_by(|one, other| other.call.lossiest.total_cmp(&one.call.lossiest));
            }
            Sort::User => listed.sort_by(|one, other| one.user.cmp(&other.user)),
        }
        if self.reversed {
            listed.reverse();
        }
        listed
    }

    fn columns(&self, listed: &[&Allocation]) -> Vec<Column> {
        let column = |title, right, cell: &dyn Fn(&Allocation) -> String| Column {
            title,
            right,
            cells: listed.iter().map(|one| cell(one)).collect(),
        };
        let mut columns = vec![
            column("user", false, &|one| one.user.clone()),
            column("to peer", true, &|one| rate(one.to_peer as f64)),
            column("to client", true, &|one| rate(one.to_client as f64)),
            column("call", false, &|one| one.call.session.clone()),
            column(RTT, true, &|one| one.call.rtt.clone()),
            column(LOSS, true, &|one| one.call.loss.clone()),
            column(JITTER, true, &|one| one.call.jitter.clone()),
            column("total", true, &|one| bytes(one.bytes)),
            column("age", true, &|one| {
                span(self.now_unix.saturating_sub(one.created_unix))
            }),
            column("over", false, &|one| one.transport.clone()),
            column("client", false, &|one| one.client.clone()),
            column("relayed", false, &|one| one.relayed.clone()),
            column("id", false, &|one| one.id.clone()),
        ];
        if !self.knows_calls() {
            columns.retain(|column| !["call", RTT, LOSS, JITTER].contains(&column.title));
        }
        columns
    }

    /// Whether the server tells how calls go.
    fn knows_calls(&self) -> bool {
        let mut all = self.poll.allocations.iter();
        all.any(|one| !one.call.session.is_empty())
    }
}

/// Titles of columns that hold the side of the client, a slash, and that of the peers.
const RTT: &str = "rtt ms";
const LOSS: &str = "loss %";
const JITTER: &str = "jitter ms";

struct Column {
    title: &'static str,
    right: bool,
    cells: Vec<String>,
}

/// The widest a name is shown.
const WIDEST: usize = 32;

/// How narrow a quantity is shown, so that columns stay where they are while it changes.
const NARROWEST: usize = 11;

impl Column {
    fn width(&self) -> usize {
        let widest = self.cells.iter().map(|cell| cell.width()).max();
        let most = if self.title == "user" {
            WIDEST
        } else {
            usize::MAX
        };
        let least = match (self.right, self.title) {
            (_, RTT | LOSS | JITTER) => 7,
            (true, _) => NARROWEST,
            (false, _) => 0,
        };
        let least = self.title.width().max(least);
        widest.unwrap_or(0).min(most).max(least)
    }
}

/// The titles, then the cells.
fn lines(columns: &[Column]) -> Vec<String> {
    let count = columns.first().map_or(0, |column| column.cells.len());
    let widths: Vec<usize> = columns.iter().map(Column::width).collect();
    (0..=count)
        .map(|line| {
            let mut text = String::new();
            for (column, width) in columns.iter().zip(&widths) {
                let cell = match line.checked_sub(1) {
                    None => column.title,
                    Some(index) => column.cells.get(index).map_or("", String::as_str),
                };
                let gap = " ".repeat(width.saturating_sub(cell.width()));
                match column.right {
                    true => text += &format!("{gap}{cell}  "),
                    false => text += &format!("{}  ", fit(cell, *width)),
                }
            }
            text
        })
        .collect()
}

/// `text` in exactly `width` columns of a terminal.
fn fit(text: &str, width: usize) -> String {
    let whole = text.width();
    if whole <= width {
        return text.to_owned() + &" ".repeat(width - whole);
    }
    let (mut cut, mut used) = (String::new(), 0);
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if used + wide + 1 > width {
            break;
        }
        cut.push(c);
        used += wide;
    }
    if width > 0 {
        cut.push('…');
        used += 1;
    }
    cut + &" ".repeat(width - used)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::Clock;

    fn view(sort: Sort, filter: &str) -> View {
        let one = |id: &str, user: &str, to_peer: u64, to_client: u64, created: u64| {
            json!({
                "id": id, "user": user, "transport": "udp", "client": "192.0.2.7:4000",
                "relayed": "198.51.100.1:50000", "created": created, "expires": created + 600,
                "bytes": {"to_peer": to_peer, "to_client": 0}, "packets": {"to_peer": to_peer / 100, "to_client": 0},
                "bits_per_second": {"to_peer": to_peer, "to_client": to_client},
                "quality": {
                    "session": "established",
                    "rtt_ms": {"client": {"smoothed": created}, "peer": {"smoothed": 170.2}},
                    "recent_loss": {"to_peer": to_peer as f64 / 1e5, "to_client": null},
                    "jitter_ms": {"to_peer": 1.5, "to_client": 12.0},
                },
            })
        };
        let all = json!([
            one("a1", "alice", 1000, 5000, 10),
            one("b1", "bob\u{1b}[2J", 4000, 1000, 30),
            one("c1", "carol", 0, 9000, 20),
        ]);
        let health = json!({"status": "ok", "node": "n1", "region": "eu", "version": "1.2.3"});
        let mut view = View::new(sort, filter.to_owned());
        view.take(Poll::new(health, &all), Clock.now());
        view
    }

    fn order(view: &View) -> Vec<&str> {
        view.listed().iter().map(|one| one.id.as_str()).collect()
    }

    #[test]
    fn orders() {
        for (sort, expected) in [
            (Sort::Rate, ["c1", "a1", "b1"]),
            (Sort::ToPeer, ["b1", "a1", "c1"]),
            (Sort::ToClient, ["c1", "a1", "b1"]),
            (Sort::Bytes, ["b1", "a1", "c1"]),
            (Sort::Age, ["a1", "c1", "b1"]),
            (Sort::Loss, ["b1", "a1", "c1"]),
            (Sort::User, ["a1", "b1", "c1"]),
        ] {
            assert_eq!(order(&view(sort, "")), expected, "{sort:?}");
        }
    }

    #[test]
    fn keys() {
        let mut view = view(Sort::Rate, "");
        assert!(view.press(Key::Char('r')));
        assert_eq!(order(&view), ["b1", "a1", "c1"]);
        assert!(view.press(Key::Char('s')) && view.press(Key::Char('r')));
        assert_eq!(
            (view.sort, order(&view)),
            (Sort::ToPeer, vec!["b1", "a1", "c1"])
        );
        assert!(view.press(Key::Char('S')) && view.press(Key::Char('S')));
        assert_eq!(view.sort, Sort::User);
        // While a filter is typed, q is a letter.
        for key in ['/', 'q', 'C', 'a', 'r'] {
            assert!(view.press(Key::Char(key)));
        }
        assert!(order(&view).is_empty());
        view.press(Key::Escape);
        for key in ['/', 'C', 'a', 'x'] {
            assert!(view.press(Key::Char(key)));
        }
        assert!(view.press(Key::Backspace) && view.press(Key::Enter));
        assert_eq!(order(&view), ["c1"]);
        assert!(view.press(Key::Escape), "the filter goes first");
        assert!(!view.press(Key::Escape));
        assert!(!view.press(Key::Char('q')));
    }

    #[test]
    fn every_row_is_as_wide_as_the_screen() {
        let mut view = view(Sort::Rate, "");
        for width in [0, 1, 7, 40, 80, 200] {
            for height in [1, 4, 5, 24] {
                let rows = view.screen(width, height);
                assert_eq!(rows.len(), height, "{width}x{height}");
                assert!(
                    rows.iter().all(|row| row.text.width() == width),
                    "{width}x{height}"
                );
            }
        }
        let text =
            |rows: Vec<Row>| -> Vec<String> { rows.into_iter().map(|row| row.text).collect() };
        let wide = text(view.screen(160, 10)).join("\n");
        assert!(
            wide.contains("turnix 1.2.3 on n1 (eu): ok   3 allocations of 3 users"),
            "{wide}"
        );
        assert!(
            wide.contains("to peers 5 kbit/s   to clients 15 kbit/s"),
            "{wide}"
        );
        assert!(wide.contains("198.51.100.1:50000"), "{wide}");
        assert!(
            !wide.contains('\u{1b}'),
            "names do not speak to the terminal"
        );
        let narrow = text(view.screen(50, 10)).join("\n");
        assert!(
            narrow.contains("alice") && narrow.contains("to client"),
            "{narrow}"
        );
        assert!(!narrow.contains("198.51.100.1"), "{narrow}");
        view.press(Key::End);
        let last = text(view.screen(80, 6));
        assert!(last[4].starts_with("bob"), "scrolled to the end: {last:?}");
        assert!(last[2].contains("by rate   3 to 3 of 3"), "{last:?}");
    }

    #[test]
    fn how_calls_go_stands_where_a_screen_of_80_columns_ends() {
        let mut all = view(Sort::Rate, "");
        let lines = |view: &mut View, width| -> Vec<String> {
            let rows = view.screen(width, 10).into_iter();
            rows.map(|row| row.text.trim_end().to_owned()).collect()
        };
        let shown = lines(&mut all, 80);
        assert!(shown[2].ends_with("rtt, loss, jitter: client/peer"));
        assert!(
            shown[3].ends_with("call          rtt ms   loss %  jitter ms"),
            "{shown:?}"
        );
        assert!(
            shown[5].ends_with("established   10/170    1.0/–     1.5/12"),
            "{shown:?}"
        );
        let wide = lines(&mut all, 120);
        assert!(
            wide[3].contains("jitter ms        total ") && wide[3].ends_with("age  over"),
            "{wide:?}"
        );
        // Nothing is known: the place is for what is.
        for one in &mut all.poll.allocations {
            one.call = Call::default();
        }
        let shown = lines(&mut all, 80);
        assert!(!shown[3].contains("rtt") && shown[3].contains("total"));
        assert!(!shown[2].contains("rtt"));
    }

    #[test]
    fn packets_per_second_are_counted_between_two_looks() {
        let mut view = view(Sort::Rate, "");
        let before = view.now.unwrap();
        let mut next = view.poll.clone();
        next.allocations[0].packets += 300;
        next.allocations.pop();
        view.take(next, before + std::time::Duration::from_secs(2));
        assert_eq!(view.packets_per_second, Some(150));
    }

    #[test]
    fn text_is_cut_by_columns() {
        assert_eq!(fit("abc", 5), "abc  ");
        assert_eq!(fit("abcdef", 4), "abc…");
        assert_eq!(fit("漢字漢字", 4), "漢… ");
        assert_eq!(fit("x", 0), "");
    }
}
