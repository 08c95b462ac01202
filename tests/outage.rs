//! Whose fault an outage is: timelines in virtual time, through the detective and the status page, and what the core lets
//! them know of attempts.

#[path = "common/mod.rs"]
mod common;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use common::wire::{Request, Signer};
use common::world::{SECRET, VISITS, World, tcp, udp};
use turnix::access::{Visit, rest};
use turnix::base::{Clock, Family, FiveTuple, Now, Secret, Transport};
use turnix::cluster::detective::{Cause, Detective, Others, Own, State, Verdict};
use turnix::cluster::own::{Fault, Seen};
use turnix::http::status::{Board, Circumstances, Report, Way};
use turnix::turn::{Attempts, Client, Fate, OpenError};

/// Seconds between two rounds, in most of them.
const ROUND: u64 = 20;

/// 2026-03-01, 00:00 UTC.
const MIDNIGHT: u64 = 20_513 * 86_400;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// Users who call now and then, in four networks of every ten.
const USERS: u32 = 120;

/// What a round finds: the server's own way, the other nodes, and what becomes of each client.
struct Around {
    own: Result<(), Fault>,
    others: Others,
}

/// Time that passes, with a board and a detective who are told the same.
struct Replay {
    now: Now,
    /// Only where the test is about the page: a timeline of days takes long enough.
    board: Option<Board>,
    detective: Detective,
    verdict: Verdict,
    rounds: u64,
    /// Seconds between two rounds.
    step: u64,
    around: Around,
    /// Every change of the status, by the wall clock, with the causes that were known.
    changes: Vec<(u64, State, Vec<&'static str>)>,
    begun: Vec<(u64, Cause)>,
    over: Vec<(u64, Cause, u64)>,
}

fn user(number: u32) -> Client {
    // Thirty networks of four users each.
    let ip = Ipv4Addr::new(100, (64 + number % 30) as u8, 7, (number / 30 + 1) as u8);
    Client::new(ip.into(), Some(&format!("user{number}")))
}

/// The same people as far as wrong credentials tell.
fn nobody(number: u32) -> Client {
    Client::new(user(number).address, None)
}

impl Replay {
    fn new(unix: u64) -> Self {
        let now = Now {
            unix: Duration::from_secs(unix),
            ..Clock.now()
        };
        Self {
            now,
            board: Some(Board::new(now, true, true)),
            detective: Detective::new(now),
            verdict: Verdict::default(),
            rounds: 0,
            step: ROUND,
            around: Around {
                own: Ok(()),
                others: Others {
                    nodes: 2,
                    answering: 2,
                },
            },
            changes: Vec::new(),
            begun: Vec::new(),
            over: Vec::new(),
        }
    }

    fn unix(&self) -> u64 {
        self.now.unix_secs()
    }

    /// One round, with these attempts since the one before.
    fn round(&mut self, attempts: &[(Client, Fate)]) {
        self.now = self.now + Duration::from_secs(self.step);
        self.rounds += 1;
        let mut heard = Attempts::default();
        for (client, fate) in attempts {
            heard.add(*client, Transport::Udp, *fate);
        }
        let found = match self.around.own {
            Ok(()) => Ok(Seen {
                echo: Duration::from_millis(1),
                whole: Duration::from_millis(3),
            }),
            Err(fault) => Err(fault),
        };
        let way = Way {
            transport: Transport::Udp,
            port: 3478,
            family: Family::V4,
        };
        let circumstances = Circumstances {
            alive: true,
            draining: false,
            capacity_ratio: 0.3,
            certificate_expiry_unix: None,
            private: false,
        };
        if let Some(board) = &self.board {
            board.heard(self.now, &heard);
            board.met(self.now, self.around.others);
            board.record(self.now, vec![(way, found)], circumstances);
        }
        self.detective.heard(self.now, &heard);
        self.detective.met(self.now, self.around.others);
        self.detective.looked(Own {
            ways: 1,
            closed: usize::from(self.around.own.is_err()),
            stuck: false,
        });
        self.verdict = self.detective.judge(self.now);
        let at = self.unix();
        self.begun
            .extend(self.verdict.begun.iter().map(|cause| (at, *cause)));
        self.over
            .extend((self.verdict.over.iter()).map(|(cause, secs)| (at, *cause, *secs)));
        let Some(report) = self.report() else {
            return;
        };
        let codes = report.reasons.iter().map(|reason| reason.code).collect();
        if self.changes.last().map(|(_, state, _)| *state) != Some(report.state) {
            self.changes.push((at, report.state, codes));
        }
    }

    fn report(&self) -> Option<Report> {
        self.board.as_ref()?.report(self.now)
    }

    fn state(&self) -> State {
        self.report().unwrap().state
    }

    fn codes(&self) -> Vec<&'static str> {
        let report = self.report().unwrap();
        report.reasons.iter().map(|reason| reason.code).collect()
    }

    fn causes(&self) -> Vec<Cause> {
        let findings = self.verdict.findings.iter();
        findings.map(|finding| finding.cause).collect()
    }

    /// Lets `secs` pass while two users a round call, for whom `fate` says what becomes of it.
    fn pass(&mut self, secs: u64, fate: impl Fn(u32) -> Option<(Client, Fate)>) {
        let until = self.unix() + secs;
        while self.unix() < until {
            let first = (self.rounds * 2 % u64::from(USERS)) as u32;
            let attempts: Vec<_> = [first, first + 1].into_iter().filter_map(&fate).collect();
            self.round(&attempts);
        }
    }

    fn well(&mut self, secs: u64) {
        self.pass(secs, |number| Some((user(number), Fate::Allocated)));
    }

    fn quiet(&mut self, secs: u64) {
        self.pass(secs, |_| None);
    }

    /// The status by name at each change since `from`, in minutes since then.
    fn since(&self, from: u64) -> Vec<(u64, State)> {
        (self.changes.iter())
            .filter(|(at, ..)| *at > from)
            .map(|(at, state, _)| ((at - from) / 60, *state))
            .collect()
    }
}

/// A server with an hour of ordinary calls behind it.
fn served(unix: u64) -> Replay {
    let mut replay = Replay::new(unix - HOUR);
    replay.well(HOUR);
    assert_eq!(replay.state(), State::Online);
    assert_eq!(replay.causes(), []);
    replay
}

#[test]
fn this_node_down_while_others_answer() {
    let mut replay = served(MIDNIGHT + 10 * HOUR);
    replay.around.own = Err(Fault::Silent);
    replay.quiet(60);
    assert_eq!(replay.state(), State::Offline);
    assert_eq!(replay.codes(), ["silent", "node"]);
    let told = replay.verdict.finding(Cause::Node).unwrap();
    assert!(told.text.contains("Other servers"), "{}", told.text);
    assert!(replay.codes().iter().all(|code| *code != "network"));
    replay.around.own = Ok(());
    replay.well(2 * ROUND);
    assert_eq!((replay.state(), replay.causes()), (State::Online, vec![]));
}

#[test]
fn a_node_that_is_alone_in_the_world_blames_itself_and_says_no_more() {
    let mut replay = served(MIDNIGHT);
    replay.around.others = Others::default();
    replay.around.own = Err(Fault::Closed);
    replay.quiet(60);
    assert_eq!(replay.codes(), ["closed"]);
    assert_eq!(replay.causes(), [Cause::Node]);
}

#[test]
fn its_network_down() {
    let mut replay = served(MIDNIGHT + 10 * HOUR);
    replay.around.others.answering = 0;
    let from = replay.unix();
    replay.quiet(HOUR);
    let changes = replay.since(from);
    assert_eq!((changes.len(), changes[0].1), (1, State::Offline));
    assert!((1..=3).contains(&changes[0].0), "{changes:?}");
    assert_eq!(replay.codes(), ["network"]);
    assert_eq!(replay.causes(), [Cause::Network]);
    let since = replay.verdict.finding(Cause::Network).unwrap().since_unix;
    assert!(since.abs_diff(from) <= ROUND, "{since} {from}");
    // It comes back by itself.
    replay.around.others.answering = 2;
    replay.well(3 * 60);
    assert_eq!((replay.state(), replay.causes()), (State::Online, vec![]));
}

#[test]
fn other_nodes_down_are_not_this_network_while_clients_come() {
    let mut replay = served(MIDNIGHT + 10 * HOUR);
    replay.around.others.answering = 0;
    replay.well(HOUR);
    assert_eq!((replay.state(), replay.causes()), (State::Online, vec![]));
    // Of two servers at night nobody can say which is cut off.
    let mut replay = Replay::new(MIDNIGHT);
    replay.around.others = Others {
        nodes: 1,
        answering: 0,
    };
    replay.quiet(6 * HOUR);
    assert_eq!((replay.state(), replay.causes()), (State::Online, vec![]));
}

#[test]
fn one_client_network() {
    let mut replay = served(MIDNIGHT + 10 * HOUR);
    let from = replay.unix();
    // 100.71.7.0/24 has four of the 120 users, who try again and again, and some colleagues of theirs.
    for _ in 0..90 {
        let first = (replay.rounds * 2 % u64::from(USERS)) as u32;
        let mut attempts: Vec<_> = [first, first + 1]
            .into_iter()
            .filter(|number| number % 30 != 7)
            .map(|number| (user(number), Fate::Allocated))
            .collect();
        let ip = IpAddr::from([100, 71, 7, (replay.rounds % 6 + 1) as u8]);
        let colleague = format!("colleague{}", replay.rounds % 6);
        attempts.push((Client::new(ip, Some(&colleague)), Fate::Quota));
        replay.round(&attempts);
    }
    assert_eq!(replay.causes(), [Cause::ClientNetwork]);
    assert_eq!(
        (replay.state(), replay.codes()),
        (State::Online, vec!["client_network"])
    );
    assert_eq!(replay.since(from), [], "for others all is well");
    let found = replay.verdict.finding(Cause::ClientNetwork).unwrap();
    let (network, failed, _) = found.networks[0];
    assert_eq!(network.prefix(), (IpAddr::from([100, 71, 7, 0]), 24));
    assert_eq!(failed, 6);
    assert!(!found.text.contains("100.71"), "everybody reads it");
    replay.well(30 * 60);
    assert_eq!(replay.causes(), []);
}

#[test]
fn an_applications_secret_is_another_one() {
    let mut replay = served(MIDNIGHT + 10 * HOUR);
    let from = replay.unix();
    replay.pass(45 * 60, |number| Some((nobody(number), Fate::Credentials)));
    assert_eq!(replay.causes(), [Cause::Credentials]);
    assert_eq!(
        (replay.state(), replay.codes()),
        (State::Degraded, vec!["credentials"])
    );
    let changes = replay.since(from);
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert!((1..=4).contains(&changes[0].0), "{changes:?}");
    let found = replay.verdict.finding(Cause::Credentials).unwrap();
    assert!(
        found.since_unix.abs_diff(from) <= 60,
        "{}",
        found.since_unix
    );
    assert!(found.networks.len() > 1);
    // One of two applications: half of the clients.
    replay.well(HOUR);
    assert_eq!(replay.causes(), []);
    replay.pass(HOUR / 2, |number| {
        Some(match number % 2 {
            0 => (user(number), Fate::Allocated),
            _ => (nobody(number), Fate::Credentials),
        })
    });
    assert_eq!(replay.causes(), [Cause::Credentials]);
}

#[test]
fn credentials_that_were_wrong_from_the_first_day() {
    let mut replay = Replay::new(MIDNIGHT);
    replay.pass(HOUR, |number| Some((nobody(number), Fate::Credentials)));
    assert_eq!(
        (replay.state(), replay.causes()),
        (State::Degraded, vec![Cause::Credentials])
    );
}

#[test]
fn a_quota_and_no_room() {
    for (fate, cause) in [
        (Fate::Quota, Cause::Quota),
        (Fate::Capacity, Cause::Capacity),
        (Fate::ServerError, Cause::ServerError),
    ] {
        let mut replay = served(MIDNIGHT + 10 * HOUR);
        // A third fails: degraded, however long.
        replay.pass(HOUR, |number| {
            let fate = if number % 3 == 0 {
                fate
            } else {
                Fate::Allocated
            };
            Some((user(number), fate))
        });
        assert_eq!(
            (replay.state(), replay.causes()),
            (State::Degraded, vec![cause])
        );
        // All: offline.
        let from = replay.unix();
        replay.pass(HOUR, |number| Some((user(number), fate)));
        assert_eq!(
            (replay.state(), replay.causes()),
            (State::Offline, vec![cause])
        );
        let changes = replay.since(from);
        assert_eq!(changes.len(), 1, "{changes:?}");
        assert!((15..=30).contains(&changes[0].0), "{changes:?}");
        let back = replay.unix();
        replay.well(HOUR);
        assert_eq!((replay.state(), replay.causes()), (State::Online, vec![]));
        let changes = replay.since(back);
        assert!(changes.last().unwrap().0 <= 16, "{changes:?}");
    }
}

#[test]
fn more_than_ten_users_at_once() {
    // A busy server: twenty calls a round, of which every tenth fails.
    let busy = |replay: &mut Replay, every: u32| {
        for _ in 0..30 {
            let attempts: Vec<_> = (0..20)
                .map(|index| {
                    let number = (replay.rounds as u32 * 20 + index) % 600;
                    let fate = if number.is_multiple_of(every) {
                        Fate::Quota
                    } else {
                        Fate::Allocated
                    };
                    (user(number), fate)
                })
                .collect();
            replay.round(&attempts);
        }
    };
    let mut replay = Replay::new(MIDNIGHT);
    busy(&mut replay, 61);
    assert_eq!(replay.causes(), [], "ten are none too many");
    busy(&mut replay, 20);
    assert_eq!(
        (replay.state(), replay.causes()),
        (State::Degraded, vec![Cause::Quota])
    );
    let users = replay.verdict.finding(Cause::Quota).unwrap().users;
    assert!((25..=30).contains(&users), "{users}");
}

#[test]
fn nine_hours_from_midnight_on_with_automatic_recovery() {
    let mut replay = served(MIDNIGHT);
    let start = replay.unix();
    assert_eq!(start, MIDNIGHT);
    replay.pass(9 * HOUR, |number| Some((user(number), Fate::ServerError)));
    let changes = replay.since(start);
    assert_eq!(
        changes.iter().map(|(_, state)| *state).collect::<Vec<_>>(),
        [State::Degraded, State::Offline],
        "{changes:?}"
    );
    assert!(changes[0].0 <= 3, "{changes:?}");
    assert!((15..=30).contains(&changes[1].0), "{changes:?}");
    let found = replay.verdict.finding(Cause::ServerError).unwrap();
    assert!(
        found.since_unix.abs_diff(start) <= 60,
        "{}",
        found.since_unix
    );
    let report = replay.report().unwrap();
    assert!(
        report.since_unix <= start + 30 * 60,
        "offline since {}",
        report.since_unix
    );
    assert_eq!(report.reasons[0].since_unix, found.since_unix);

    let end = replay.unix();
    replay.well(3 * HOUR);
    let changes = replay.since(end);
    assert_eq!(changes.last().unwrap().1, State::Online);
    assert!((5..=15).contains(&changes.last().unwrap().0), "{changes:?}");
    assert!(
        changes.windows(2).all(|pair| pair[0].1 > pair[1].1),
        "it only gets better: {changes:?}"
    );
    let (at, cause, seconds) = replay.over[0];
    assert_eq!((replay.over.len(), cause), (1, Cause::ServerError));
    assert!(
        (9 * HOUR..9 * HOUR + 20 * 60).contains(&seconds),
        "{seconds} at {at}"
    );
    // A good hour before, eighteen bad half hours and the one in which it ended, then good ones.
    let slots: Vec<_> = replay.detective.history().collect();
    let bad: Vec<_> = (0..slots.len()).filter(|index| slots[*index].bad).collect();
    assert_eq!(bad.first(), Some(&2));
    assert!((18..=19).contains(&bad.len()), "{bad:?}");
    assert!(slots.iter().all(|slot| slot.tried));
}

#[test]
fn credentials_that_end_at_midnight_are_named_after_the_third_day() {
    let mut replay = served(MIDNIGHT);
    replay.step = 120;
    replay.board = None;
    let mut named = Vec::new();
    for day in 1..=5 {
        // Until somebody deploys the application in the morning.
        replay.pass(9 * HOUR, |number| Some((nobody(number), Fate::Expired)));
        assert!(replay.causes().contains(&Cause::Expired), "day {day}");
        replay.well(15 * HOUR);
        if let Some(found) = replay.verdict.finding(Cause::TimeOfDay) {
            assert!(found.text.contains("about 00:00 UTC"), "{}", found.text);
            assert!(
                found.text.contains(&format!("on {day} of the last 7 days")),
                "{}",
                found.text
            );
            assert_eq!(found.state, State::Online);
            named.push(day);
        }
    }
    assert_eq!(named, [3, 4, 5]);
    assert_eq!(replay.causes(), [Cause::TimeOfDay]);
    assert_eq!(replay.verdict.state(), State::Online);
    let (at, _) = (replay.begun.iter())
        .find(|(_, cause)| *cause == Cause::TimeOfDay)
        .unwrap();
    assert!(
        (at - MIDNIGHT - 2 * DAY) / 60 <= 5,
        "on the third night, not the morning after"
    );
    // A week without.
    replay.step = 600;
    replay.well(6 * DAY);
    assert_eq!(replay.causes(), []);
}

#[test]
fn what_flaps_does_not_make_the_status_flap() {
    let mut replay = served(MIDNIGHT + 10 * HOUR);
    let from = replay.unix();
    // Four minutes of nothing but failures, four without any, for two hours.
    for _ in 0..15 {
        replay.pass(4 * 60, |number| Some((user(number), Fate::Capacity)));
        replay.well(4 * 60);
    }
    let changes = replay.since(from);
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!(replay.begun.len(), 1, "{:?}", replay.begun);
    // The server's own way: twice is what happens, the third time in ten minutes is unsteady.
    let mut replay = served(MIDNIGHT + 10 * HOUR);
    let from = replay.unix();
    for _ in 0..20 {
        replay.around.own = Err(Fault::Silent);
        replay.well(2 * ROUND);
        replay.around.own = Ok(());
        replay.well(2 * ROUND);
    }
    let changes = replay.since(from);
    let online = (changes.iter()).filter(|(_, state)| *state == State::Online);
    assert!(online.count() <= 2, "{changes:?}");
    assert_eq!(
        (replay.state(), replay.codes()),
        (State::Offline, vec!["node"])
    );
    replay.well(6 * 60);
    assert_eq!((replay.state(), replay.causes()), (State::Online, vec![]));
}

#[test]
fn quiet_nights_are_no_outage() {
    let mut replay = served(MIDNIGHT);
    let from = replay.unix();
    replay.quiet(9 * HOUR);
    // One who has the wrong password, and nobody else.
    replay.pass(HOUR, |_| Some((nobody(5), Fate::Credentials)));
    replay.quiet(HOUR);
    replay.well(HOUR);
    assert_eq!(replay.since(from), []);
    assert_eq!(replay.begun, []);
    assert!(replay.detective.history().any(|slot| !slot.tried));
}

/// Nobody knows when one's clients go to bed.
#[test]
fn another_server_that_goes_away_at_night_takes_no_clients_along() {
    let other = |answering| Others {
        nodes: 1,
        answering,
    };
    let mut replay = served(MIDNIGHT);
    replay.around.others = other(1);
    let from = replay.unix();
    replay.quiet(2 * HOUR);
    replay.around.others = other(0);
    replay.quiet(HOUR);
    assert_eq!(replay.since(from), []);
    assert_eq!(replay.causes(), []);
    // Nor one that had gone long before they did.
    let mut replay = served(MIDNIGHT);
    let from = replay.unix();
    replay.around.others = other(0);
    replay.well(HOUR);
    replay.quiet(HOUR);
    assert_eq!(replay.since(from), []);
    // Clients and the other server at once.
    let mut replay = served(MIDNIGHT);
    replay.quiet(ROUND);
    replay.around.others = other(0);
    replay.quiet(5 * 60);
    assert_eq!(
        (replay.state(), replay.causes()),
        (State::Offline, vec![Cause::Network])
    );
}

/// Twenty clients a second whom nobody has seen before, and `retriers` who are over their quota and never stop asking.
fn crowded(retriers: u32) -> (Replay, impl FnMut(&mut Replay, u64, Fate)) {
    let mut replay = Replay::new(MIDNIGHT);
    replay.board = None;
    let mut seen = 0;
    let pass = move |replay: &mut Replay, secs: u64, fate: Fate| {
        let until = replay.unix() + secs;
        while replay.unix() < until {
            let retriers = (0..retriers).map(|number| (user(number), Fate::Quota));
            let fresh = (1000 + seen..1400 + seen).map(|number| (user(number), fate));
            let attempts: Vec<_> = retriers.chain(fresh).collect();
            seen += 400;
            replay.round(&attempts);
        }
    };
    (replay, pass)
}

#[test]
fn a_few_who_try_for_ever_do_not_outlast_the_crowd_of_a_busy_server() {
    let (mut replay, mut pass) = crowded(3);
    pass(&mut replay, HOUR, Fate::Allocated);
    assert_eq!(replay.begun, []);
}

#[test]
fn a_busy_server_sees_an_outage_whenever_it_comes() {
    let (mut replay, mut pass) = crowded(0);
    pass(&mut replay, 15 * 60, Fate::Allocated);
    assert_eq!(replay.begun, []);
    let from = replay.unix();
    pass(&mut replay, 5 * 60, Fate::ServerError);
    assert_eq!(replay.causes(), [Cause::ServerError]);
    let (at, _) = replay.begun[0];
    assert!(at - from <= 3 * 60, "{} s", at - from);
    let end = replay.unix();
    pass(&mut replay, 15 * 60, Fate::Allocated);
    let (at, cause, _) = replay.over[0];
    assert_eq!((replay.over.len(), cause), (1, Cause::ServerError));
    assert!(at - end <= 12 * 60, "{} s", at - end);
    assert_eq!(replay.begun.len(), 1, "{:?}", replay.begun);
}

#[test]
fn a_user_over_its_quota_is_one_wherever_it_is() {
    let at = |number: u64| {
        let ip = std::net::Ipv6Addr::from_bits((0x2001_0db8 << 96) | u128::from(number) << 72);
        Client::new(ip.into(), Some("greedy"))
    };
    for well in [true, false] {
        let mut replay = served(MIDNIGHT);
        let from = replay.unix();
        for round in 0..150 {
            let mut attempts: Vec<_> = (0..10)
                .map(|index| (at((round * 10 + index) % 300), Fate::Quota))
                .collect();
            if well {
                attempts.push((user((round % 120) as u32), Fate::Allocated));
            }
            replay.round(&attempts);
        }
        assert_eq!(replay.since(from), [], "others {well}");
        assert_eq!(replay.begun, [], "others {well}");
    }
    // Of users who are each over theirs, each counts.
    let mut replay = served(MIDNIGHT);
    replay.pass(HOUR, |number| Some((user(number), Fate::Quota)));
    assert_eq!(replay.state(), State::Offline);
}

/// Each of these attacks a server with few users at night, when hardly anybody would outweigh them.
#[test]
fn attackers_with_wrong_passwords_do_not_turn_it_red() {
    let far = |number: u64| {
        let [.., a, b, c] = (number * 7919).to_be_bytes();
        Client::new(
            Ipv4Addr::new(1 + (number % 200) as u8, a, b, c).into(),
            None,
        )
    };
    let near = Client::new([100, 64, 7, 200].into(), None);
    let site = |number: u64| Client::new([100, 64, 7, (number % 8) as u8].into(), None);
    let six = |number: u64| {
        let ip = std::net::Ipv6Addr::from_bits((0x2001_0db8 << 96) | u128::from(number) << 64);
        Client::new(ip.into(), None)
    };
    type Attack<'a> = (&'a str, &'a dyn Fn(u64) -> Client);
    let attacks: [Attack<'_>; 4] = [
        ("one address of a user's network", &|_| near),
        ("eight addresses there", &site),
        ("masses of addresses everywhere", &far),
        ("a whole IPv6 /32", &six),
    ];
    for (name, attack) in attacks {
        for well in [true, false] {
            let mut replay = served(MIDNIGHT);
            let from = replay.unix();
            for round in 0..150 {
                let mut attempts: Vec<_> = (0..20)
                    .map(|index| (attack(round * 20 + index), Fate::Credentials))
                    .collect();
                if well {
                    attempts.push((user((round % 120) as u32), Fate::Allocated));
                }
                replay.round(&attempts);
            }
            assert_eq!(replay.since(from), [], "{name}, others {well}");
        }
    }
    // Nor a server that has never had a call, by one owner's addresses.
    let mut replay = Replay::new(MIDNIGHT);
    for round in 0..60 {
        let attempts = (0..20).map(|index| (six(round * 20 + index), Fate::Credentials));
        replay.round(&attempts.collect::<Vec<_>>());
    }
    assert_eq!(replay.state(), State::Online);
}

/// What the worst attacker brings about that anybody can think of: it is in the networks of all users.
#[test]
fn nothing_that_strangers_do_makes_it_offline() {
    let mut replay = served(MIDNIGHT);
    for fate in [Fate::Credentials, Fate::Expired, Fate::Request] {
        replay.pass(2 * HOUR, |number| Some((nobody(number), fate)));
        assert_eq!(replay.state(), State::Degraded);
    }
}

#[test]
fn the_clock_on_the_wall_may_be_set() {
    let mut replay = served(MIDNIGHT);
    replay.pass(HOUR, |number| Some((user(number), Fate::Capacity)));
    replay.now.unix += Duration::from_secs(3 * HOUR);
    replay.pass(60, |number| Some((user(number), Fate::Capacity)));
    let found = replay.verdict.finding(Cause::Capacity).unwrap();
    let age = replay.unix() - found.since_unix;
    assert!((HOUR - 60..=HOUR + 180).contains(&age), "{age}");
    replay.well(HOUR);
    assert_eq!(replay.causes(), []);
}

/// What the core tells.
mod core {
    use super::*;

    fn names(attempts: &Attempts) -> Vec<(IpAddr, bool, Fate, u32)> {
        let mut all = Vec::new();
        for (client, fates) in &attempts.clients {
            for fate in Fate::ALL {
                if fates[fate as usize] > 0 {
                    let is_user = client.user.is_some();
                    all.push((client.address, is_user, fate, fates[fate as usize]));
                }
            }
        }
        all.sort();
        all
    }

    fn mint(name: &str, expires: u64) -> (String, String) {
        rest::mint(&Secret::new(SECRET.into()), Some(name), expires)
    }

    fn try_as(world: &mut World, from: FiveTuple, (name, password): (String, String)) -> u16 {
        let nonce = world.nonce(from);
        let signer = Signer::new(&name, &password, &nonce);
        world.code(from, &Request::allocate().sign(&signer))
    }

    #[test]
    fn outcomes_are_told_once_with_who_met_them() {
        let mut world = World::new();
        let [a, b, c, d]: [IpAddr; 4] = [1, 2, 3, 4].map(|last| IpAddr::from([198, 51, 100, last]));
        let at = |ip: IpAddr| udp(&format!("{ip}:4000"));
        let good = mint("carol", 4_000_000_000);
        assert_eq!(try_as(&mut world, at(a), good.clone()), 0);
        let wrong = (good.0.clone(), "wrong".to_owned());
        assert_eq!(try_as(&mut world, at(b), wrong), 401);
        assert_eq!(try_as(&mut world, at(b), mint("carol", 1)), 401);
        world.open = Some(Err(OpenError::Capacity));
        assert_eq!(try_as(&mut world, at(c), good.clone()), 508);
        world.open = Some(Err(OpenError::Quota));
        assert_eq!(try_as(&mut world, at(d), good.clone()), 486);
        let told = world.server.take_attempts();
        assert_eq!(
            names(&told),
            [
                (a, true, Fate::Allocated, 1),
                (b, false, Fate::Credentials, 1),
                (b, false, Fate::Expired, 1),
                (c, true, Fate::Capacity, 1),
                (d, true, Fate::Quota, 1),
            ]
        );
        assert_eq!(told.totals[Transport::Udp as usize], [1, 1, 1, 1, 1, 0, 0]);
        assert_eq!(world.server.take_attempts(), Attempts::default(), "once");
    }

    /// Anybody who has credentials can make one up, and it says nothing of how full the server is.
    #[test]
    fn a_reservation_that_is_not_there_is_no_want_of_room() {
        let on = turnix::turn::Settings::default();
        let mut off = turnix::turn::Settings::default();
        off.protocol.reservations = false;
        let good = mint("carol", 4_000_000_000);
        let from = udp("198.51.100.7:4000");
        let claiming = || Request::allocate().attr(0x0022, &[7; 8]);
        let reserving = || Request::allocate().attr(0x0018, &[0x80]);
        for (settings, requests) in [(on, vec![claiming()]), (off, vec![claiming(), reserving()])] {
            let access = common::world::access_settings();
            let mut world = World::with(settings, &access, common::world::seed());
            world.open = Some(Err(OpenError::Capacity));
            for request in requests {
                let signer = Signer::new(&good.0, &good.1, &world.nonce(from));
                assert_eq!(world.code(from, &request.sign(&signer)), 508);
            }
            assert_eq!(world.server.take_attempts(), Attempts::default());
        }
        // A quota is one, and so is a port when no token is shown.
        let mut world = World::new();
        world.open = Some(Err(OpenError::Quota));
        let signer = Signer::new(&good.0, &good.1, &world.nonce(from));
        assert_eq!(world.code(from, &claiming().sign(&signer)), 486);
        world.open = Some(Err(OpenError::Capacity));
        let signer = Signer::new(&good.0, &good.1, &world.nonce(from));
        assert_eq!(world.code(from, &reserving().sign(&signer)), 508);
        let told = world.server.take_attempts();
        assert_eq!(told.totals[Transport::Udp as usize], [0, 0, 0, 1, 1, 0, 0]);
    }

    #[test]
    fn steps_on_the_way_and_retransmissions_are_no_attempts() {
        let mut world = World::new();
        let from = udp("198.51.100.7:4000");
        let nonce = world.nonce(from);
        let (name, password) = mint("carol", 4_000_000_000);
        let signer = Signer::new(&name, &password, &nonce);
        let request = Request::allocate().sign(&signer);
        assert_eq!(world.code(from, &request), 0);
        assert_eq!(world.code(from, &request), 0, "said again");
        let again = Request::allocate().sign(&signer);
        assert_eq!(world.code(from, &again), 437);
        let told = world.server.take_attempts();
        assert_eq!(told.totals[Transport::Udp as usize].iter().sum::<u32>(), 1);
    }

    /// A forged address never sees its nonce.
    #[test]
    fn forged_addresses_count_for_nothing() {
        let mut world = World::new();
        let nonce = world.nonce(udp("198.51.100.7:4000"));
        let wrong = Signer::new("4000000000:carol", "wrong", &nonce);
        for last in 1..=200 {
            let forged = udp(&format!("203.0.113.{last}:4000"));
            world.input(forged, &Request::allocate().sign(&wrong).bytes());
        }
        assert_eq!(world.server.take_attempts(), Attempts::default());
    }

    #[test]
    fn nobody_hears_of_the_canary_or_of_visitors_of_the_test_page() {
        let mut world = World::new();
        let visits = Secret::new(VISITS.to_owned());
        let from = tcp("198.51.100.7:4000");
        let visitor = "turnix-test:visitor";
        for name in [Visit::CANARY_USER, visitor] {
            let expires = world.now.unix_secs() + 60;
            let credential = rest::mint(&visits, Some(name), expires);
            assert_eq!(try_as(&mut world, from, credential), 0);
            let id = *world.opened.last().unwrap();
            let now = world.now;
            let ended = turnix::turn::EndReason::Administrative;
            assert!(world.server.end_allocation(now, id, ended));
            world.drain();
        }
        assert_eq!(world.server.take_attempts(), Attempts::default());
    }
}
