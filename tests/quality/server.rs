//! Watches inside a server: when there is one, and what goes along to another process.

use std::sync::Arc;
use std::time::Duration;

use turnix::access::Access;
use turnix::base::{FiveTuple, Now};
use turnix::quality::{self, Media, Mode, Quality, Session};
use turnix::turn::{AllocationId, Forward, Server, Settings, Snapshot};

use crate::checks::{REQUEST, SUCCESS, stun};
use crate::common::wire::{Request, Signer, channel_data};
use crate::common::world::{self, World, access_settings, addr, seed, udp};
use crate::link::Rtp;
use crate::{TO_CLIENT, TO_PEER};

const PEER: &str = "8.8.8.8:5000";
const CHANNEL: u16 = 0x4001;

fn settings(mode: Mode) -> Settings {
    Settings {
        quality: quality::Settings {
            mode,
            ..quality::Settings::default()
        },
        ..Settings::default()
    }
}

struct Call {
    world: World,
    client: FiveTuple,
    alice: Signer,
    id: AllocationId,
    /// From the client, and from the peer.
    senders: [Rtp; 2],
}

impl Call {
    fn new(mode: Mode) -> Self {
        let mut world = World::with(settings(mode), &access_settings(), seed());
        let client = udp("192.0.2.7:4000");
        let (alice, id, _) = world.allocate(client);
        let sender = |ssrc| Rtp {
            payload_type: 111,
            ssrc,
            sequence: 60_000,
            timestamp: ssrc << 28,
        };
        Self {
            world,
            client,
            alice,
            id,
            senders: [sender(1), sender(2)],
        }
    }

    fn bind(&mut self) {
        let bind = Request::channel_bind(CHANNEL, addr(PEER)).sign(&self.alice);
        assert_eq!(self.world.ask(self.client, &bind).code(), 0);
    }

    fn quality(&self) -> Option<Quality> {
        let (views, _) = self.world.server.views(self.world.now, 0, 10);
        views[0].quality.as_deref().cloned()
    }

    fn up(&mut self, data: &[u8]) {
        let forward = self.world.input(self.client, &channel_data(CHANNEL, data));
        assert!(matches!(forward, Forward::ToPeer { .. }));
    }

    fn down(&mut self, data: &[u8]) {
        let forward = self.world.peer_input(self.id, addr(PEER), data);
        assert!(matches!(forward, Forward::ToClient { .. }));
    }

    /// Checks and `packets` of Opus both ways, of which each tenth from the peer is lost.
    fn talk(&mut self, packets: u32) {
        self.up(&stun(REQUEST, 1));
        self.world.pass(Duration::from_millis(25));
        self.down(&stun(SUCCESS, 1));
        for nth in 0..packets {
            let [up, down] = &mut self.senders;
            let [a, b] = [up.timestamp, down.timestamp].map(|start| start.wrapping_add(nth * 960));
            let [up, down] = [up.packet(a, false, false), down.packet(b, false, false)];
            self.up(&up);
            if nth % 10 != 5 {
                self.down(&down);
            }
            self.world.pass(Duration::from_millis(20));
        }
    }

    fn handed_over(&mut self, mode: Mode) {
        let now: Now = self.world.now;
        let bytes = self.world.server.snapshot(now, |_| true).encode();
        let snapshot = Snapshot::decode(&bytes).expect("what was encoded");
        let access = Arc::new(Access::new(&access_settings(), world::own_addresses()));
        let families = seed().families;
        self.world.server = Server::restore(now, settings(mode), families, access, snapshot);
    }
}

#[test]
fn a_call_is_watched_from_its_first_permission_on() {
    let mut call = Call::new(Mode::Full);
    assert_eq!(call.quality(), None);
    call.bind();
    assert_eq!(call.quality().unwrap().session, Session::Waiting);
    call.talk(500);
    let quality = call.quality().unwrap();
    assert_eq!(quality.session, Session::Established);
    assert_eq!(quality.rtt[1].unwrap().latest, Duration::from_millis(25));
    assert_eq!(
        (quality.flows[TO_PEER].received, quality.flows[TO_PEER].lost),
        (500, 0)
    );
    assert_eq!(
        (
            quality.flows[TO_CLIENT].received,
            quality.flows[TO_CLIENT].lost
        ),
        (450, 50)
    );
    assert!(
        quality
            .streams
            .iter()
            .all(|stream| stream.media == Media::Audio)
    );
    // Data by Send indications is the same data.
    let packet = call.senders[0].packet(1 << 30, false, false);
    let send = Request::send(addr(PEER), &packet).bytes();
    call.world.input(call.client, &send);
    assert_eq!(call.quality().unwrap().flows[TO_PEER].received, 501);
}

#[test]
fn the_mode_changes_while_the_server_runs() {
    let mut call = Call::new(Mode::Off);
    call.bind();
    call.talk(10);
    assert_eq!(call.quality(), None);
    call.world.server.set_settings(settings(Mode::Sampled));
    call.talk(10);
    assert_eq!(call.quality(), None);
    call.bind();
    call.talk(10);
    assert_eq!(call.quality().unwrap().flows[TO_PEER].received, 10);
    call.bind();
    assert_eq!(call.quality().unwrap().flows[TO_PEER].received, 10);
    call.world.server.set_settings(settings(Mode::Off));
    assert_eq!(call.quality(), None);
}

#[test]
fn another_process_goes_on_with_what_was_counted() {
    let mut call = Call::new(Mode::Full);
    call.bind();
    call.talk(500);
    let before = call.quality().unwrap();
    call.handed_over(Mode::Full);
    let after = call.quality().unwrap();
    assert!(after.streams.is_empty() && !before.streams.is_empty());
    let told = |quality: &Quality| {
        let flows = quality
            .flows
            .map(|flow| (flow.received, flow.lost, flow.reordered));
        let Quality {
            rtt,
            checks,
            first,
            idle,
            dtls,
            media,
            session,
            media_idle,
            ..
        } = quality;
        (
            flows,
            *rtt,
            *checks,
            *first,
            *idle,
            *dtls,
            *media,
            *session,
            *media_idle,
        )
    };
    assert_eq!(told(&after), told(&before));
    // What came in between was not seen, and is no loss.
    for sender in &mut call.senders {
        sender.sequence = sender.sequence.wrapping_add(700);
    }
    call.talk(100);
    let flows = call.quality().unwrap().flows;
    assert_eq!((flows[TO_PEER].received, flows[TO_PEER].lost), (600, 0));
    assert_eq!(
        (flows[TO_CLIENT].received, flows[TO_CLIENT].lost),
        (540, 60)
    );
    // It may look at nothing.
    call.handed_over(Mode::Off);
    assert_eq!(call.quality(), None);
}
