//! TCP allocations under random operations: what is open outside is what the core says there is, and in the end nothing
//! is.

use std::collections::BTreeMap;

use proptest::prelude::*;
use turnix::base::FiveTuple;
use turnix::turn::{AllocationId, ConnectionId, EndReason, Settings};

use crate::common::wire::{Reply, Request, Signer};
use crate::common::world::{World, access_settings, addr, secs, seed, tcp};

const CLIENTS: usize = 3;
const PEERS: [&str; 4] = [
    "203.0.114.9:1000",
    "203.0.114.9:2000",
    "8.8.8.8:80",
    "10.0.0.1:80",
];
const MOST: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    Allocate(usize),
    Permit(usize, usize),
    Connect(usize, usize),
    Made(usize, bool),
    Accept(usize, usize),
    Bind(usize, usize),
    Closed(usize),
    ClientClosed(usize),
    Release(usize),
    End(usize),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let client = 0..CLIENTS;
    let peer = 0..PEERS.len();
    let number = 0..64usize;
    let step = prop_oneof![
        3 => client.clone().prop_map(Step::Allocate),
        2 => (client.clone(), peer.clone()).prop_map(|(c, p)| Step::Permit(c, p)),
        6 => (client.clone(), peer.clone()).prop_map(|(c, p)| Step::Connect(c, p)),
        5 => (number.clone(), any::<bool>()).prop_map(|(n, made)| Step::Made(n, made)),
        5 => (client.clone(), peer).prop_map(|(c, p)| Step::Accept(c, p)),
        5 => (number.clone(), client.clone()).prop_map(|(n, c)| Step::Bind(n, c)),
        3 => number.prop_map(Step::Closed),
        1 => client.clone().prop_map(Step::ClientClosed),
        1 => client.clone().prop_map(Step::Release),
        1 => client.prop_map(Step::End),
        3 => prop_oneof![Just(1), Just(29), Just(30), Just(300), 0..700u64].prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 1..120)
}

/// The outside: one entry for each connection there is, made or to be made.
struct Outside {
    world: World,
    signers: Vec<Signer>,
    open: BTreeMap<ConnectionId, (AllocationId, &'static str)>,
    /// Every id there was.
    ids: Vec<ConnectionId>,
}

fn control(client: usize) -> FiveTuple {
    tcp(&format!("192.0.2.{}:4000", client + 1))
}

fn data(client: usize) -> FiveTuple {
    tcp(&format!("192.0.2.{}:5000", client + 1))
}

impl Outside {
    fn new() -> Self {
        let settings = Settings {
            connections_per_allocation: MOST,
            ..Settings::default()
        };
        let mut world = World::with(settings, &access_settings(), seed());
        let signers = (0..CLIENTS)
            .map(|client| world.alice(control(client)))
            .collect();
        Self {
            world,
            signers,
            open: BTreeMap::new(),
            ids: Vec::new(),
        }
    }

    fn allocation(&self, client: usize) -> Option<AllocationId> {
        let (views, _) = self.world.server.views(self.world.now, 0, 100);
        (views.iter())
            .find(|view| view.client == control(client).client())
            .map(|view| view.id)
    }

    fn ask(&mut self, from: FiveTuple, client: usize, request: Request) -> Option<u16> {
        let request = request.sign(&self.signers[client]);
        let answers = self.world.ask_raw(from, &request.bytes());
        answers.first().map(|answer| Reply::parse(answer).code())
    }

    fn any(&self, which: usize) -> Option<ConnectionId> {
        (!self.ids.is_empty()).then(|| self.ids[which % self.ids.len()])
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Allocate(client) => {
                self.ask(control(client), client, Request::allocate_tcp());
            }
            Step::Permit(client, peer) => {
                let request = Request::create_permission(&[addr(PEERS[peer])]);
                self.ask(control(client), client, request);
            }
            Step::Connect(client, peer) => {
                let before = self.world.connects.len();
                let code = self.ask(control(client), client, Request::connect(addr(PEERS[peer])));
                if let Some((connection, id, _)) = self.world.connects.get(before).copied() {
                    assert_eq!(code, None, "the answer follows");
                    assert_eq!(Some(id), self.allocation(client));
                    self.begin(connection, id, "connecting");
                } else {
                    assert!(code.is_some_and(|code| code >= 400));
                }
            }
            Step::Made(which, made) => {
                if let Some(connection) = self.any(which) {
                    let waits =
                        (self.open.get(&connection)).is_some_and(|(_, is)| *is == "connecting");
                    let replies = self.world.connected(connection, made);
                    let codes: Vec<_> = replies.iter().map(Reply::code).collect();
                    match (waits, made) {
                        (false, _) => assert!(codes.is_empty()),
                        (true, true) => {
                            assert_eq!(codes, [0]);
                            self.open.get_mut(&connection).unwrap().1 = "waiting";
                        }
                        (true, false) => assert_eq!(codes, [447]),
                    }
                }
            }
            Step::Accept(client, peer) => {
                if let Some(id) = self.allocation(client)
                    && let Some(connection) = self.world.accepted(id, addr(PEERS[peer]))
                {
                    assert_ne!(PEERS[peer], "10.0.0.1:80", "policy");
                    self.begin(connection, id, "waiting");
                }
            }
            Step::Bind(which, client) => {
                if let Some(connection) = self.any(which) {
                    let before = self.world.bound.len();
                    let nonce = self.world.nonce(data(client));
                    let signer = self.signers[client].nonce(&nonce);
                    let request = Request::connection_bind(connection.0).sign(&signer);
                    let code = self.world.code(data(client), &request);
                    let waits =
                        (self.open.get(&connection)).is_some_and(|(_, is)| *is == "waiting");
                    assert_eq!(code, if waits { 0 } else { 400 });
                    assert_eq!(self.world.bound.len() - before, usize::from(waits));
                    if waits {
                        self.open.get_mut(&connection).unwrap().1 = "bound";
                    }
                }
            }
            Step::Closed(which) => {
                if let Some(connection) = self.any(which) {
                    let now = self.world.now;
                    (self.world.server).handle_connection_closed(now, connection);
                    self.open.remove(&connection);
                }
            }
            Step::ClientClosed(client) => {
                let now = self.world.now;
                (self.world.server).handle_client_closed(now, control(client));
            }
            Step::Release(client) => {
                self.ask(control(client), client, Request::refresh(0));
            }
            Step::End(client) => {
                if let Some(id) = self.allocation(client) {
                    let now = self.world.now;
                    (self.world.server).end_allocation(now, id, EndReason::Administrative);
                }
            }
            Step::Pass(by) => self.world.pass(secs(by)),
        }
        self.world.drain();
        for closed in std::mem::take(&mut self.world.disconnects) {
            assert!(self.open.remove(&closed).is_some(), "closed once");
        }
        self.balance();
    }

    fn begin(&mut self, connection: ConnectionId, id: AllocationId, state: &'static str) {
        assert!(!self.ids.contains(&connection), "an id is good once");
        self.ids.push(connection);
        self.open.insert(connection, (id, state));
    }

    fn balance(&self) {
        assert_eq!(
            self.world.server.stats().connections,
            self.open.len() as u64
        );
        let (views, _) = self.world.server.views(self.world.now, 0, 100);
        for view in &views {
            let open = self.open.values().filter(|(id, _)| *id == view.id).count();
            assert_eq!(view.connections, open);
            assert!(open <= MOST);
        }
        let of_views: usize = views.iter().map(|view| view.connections).sum();
        assert_eq!(of_views, self.open.len(), "none without an allocation");
    }
}

proptest! {
    #![proptest_config(super::cases(128))]

    #[test]
    fn connections_are_what_the_core_says_and_leave_nothing(steps in steps()) {
        let mut outside = Outside::new();
        for step in &steps {
            outside.step(step);
        }
        outside.step(&Step::Pass(7200));
        assert!(outside.world.server.is_empty());
        assert!(outside.open.is_empty());
        assert_eq!(outside.world.server.poll_timeout(), None);
        assert_eq!(outside.world.opened.len(), outside.world.closed.len());
    }
}
