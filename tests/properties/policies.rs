//! Policies that change under live allocations: nothing that the one in force refuses ever moves, and nothing that every
//! policy since permitted is lost.

use std::sync::Arc;

use proptest::prelude::*;
use turnix::access::Access;
use turnix::turn::Forward;

use crate::common::wire::{Request, Signer, channel_data};
use crate::common::world::{World, access_settings, addr, own_addresses, udp};

const PEERS: usize = 6;
const CLIENTS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// Refuse the peers whose bits are set; of those of `by_port`, their own port only.
    Policy {
        refused: u8,
        by_port: u8,
    },
    Bind {
        client: usize,
        peer: usize,
    },
    Permit {
        client: usize,
        peer: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (any::<u8>(), any::<u8>()).prop_map(|(refused, by_port)| Step::Policy { refused, by_port }),
        (0..CLIENTS, 0..PEERS).prop_map(|(client, peer)| Step::Bind { client, peer }),
        (0..CLIENTS, 0..PEERS).prop_map(|(client, peer)| Step::Permit { client, peer }),
    ]
}

fn peer(number: usize) -> String {
    format!("203.0.114.{}:1000", number + 1)
}

fn rules(refused: u8, by_port: u8) -> Vec<String> {
    (0..PEERS)
        .filter(|number| refused >> number & 1 == 1)
        .map(|number| match by_port >> number & 1 {
            1 => peer(number),
            _ => format!("203.0.114.{}", number + 1),
        })
        .collect()
}

proptest! {
    #![proptest_config(crate::core::cases(64))]

    #[test]
    fn a_refused_peer_is_out_of_reach_whatever_was_before(
        steps in prop::collection::vec(step(), 1..40)
    ) {
        let mut world = World::new();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let five_tuple = udp(&format!("192.0.2.{}:4000", number + 1));
                let (signer, id, _) = world.allocate(five_tuple);
                (five_tuple, signer, id)
            })
            .collect();
        let mut refused = 0;
        // What each client has, as far as no policy took it since.
        let mut bound = [[false; PEERS]; CLIENTS];
        let mut permitted = [[false; PEERS]; CLIENTS];
        for step in steps {
            match step {
                Step::Policy { refused: next, by_port } => {
                    let mut settings = access_settings();
                    settings.peers.deny =
                        rules(next, by_port).iter().map(|rule| rule.parse().unwrap()).collect();
                    let access = Arc::new(Access::new(&settings, own_addresses()));
                    world.server.set_access(world.now, access);
                    world.drain();
                    refused = next;
                    for number in (0..PEERS).filter(|number| next >> number & 1 == 1) {
                        for client in 0..CLIENTS {
                            bound[client][number] = false;
                            // Where one port is refused, others of the IP are not, and its permission lives.
                            permitted[client][number] &= by_port >> number & 1 == 1;
                        }
                    }
                }
                Step::Bind { client, peer: number } => {
                    let (five_tuple, signer, _): &(_, Signer, _) = &clients[client];
                    let channel = 0x4000 + number as u16;
                    let request = Request::channel_bind(channel, addr(&peer(number)));
                    let code = world.code(*five_tuple, &request.sign(signer));
                    let forbidden = refused >> number & 1 == 1;
                    prop_assert_eq!(code, if forbidden { 403 } else { 0 });
                    bound[client][number] |= !forbidden;
                    permitted[client][number] |= !forbidden;
                }
                Step::Permit { client, peer: number } => {
                    let (five_tuple, signer, _) = &clients[client];
                    let request = Request::create_permission(&[addr(&peer(number))]);
                    permitted[client][number] |=
                        world.code(*five_tuple, &request.sign(signer)) == 0;
                }
            }
            for (client, (five_tuple, _, id)) in clients.iter().enumerate() {
                for number in 0..PEERS {
                    let to = addr(&peer(number));
                    let allowed = refused >> number & 1 == 0;
                    let data = channel_data(0x4000 + number as u16, b"x");
                    let by_channel =
                        matches!(world.input(*five_tuple, &data), Forward::ToPeer { .. });
                    prop_assert_eq!(by_channel, bound[client][number]);
                    let send = Request::send(to, b"x").bytes();
                    let by_send =
                        matches!(world.input(*five_tuple, &send), Forward::ToPeer { .. });
                    prop_assert_eq!(by_send, allowed && permitted[client][number]);
                    let back =
                        matches!(world.peer_input(*id, to, b"x"), Forward::ToClient { .. });
                    prop_assert_eq!(back, allowed && permitted[client][number]);
                }
            }
        }
    }
}
