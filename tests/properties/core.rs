//! The core in virtual time against a naive model, and the laws every input has to keep.

mod connections;
mod harness;
mod hostile;
mod model;
mod operations;
mod snapshot;
mod strategies;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRng, TestRunner};

use harness::{Harness, Reach};
use operations::World;
use strategies::{operations, world};

/// `default` cases, or as many as PROPTEST_CASES says.
pub fn cases(default: u32) -> Config {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => Config::default(),
        None => Config::with_cases(default),
    }
}

fn run(world: &World) -> Reach {
    let mut harness = Harness::new(world.strict_expiry);
    for step in &world.steps {
        harness.step(step);
    }
    harness.reach
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn the_core_does_what_the_model_does(world in world(operations(), 1..120)) {
        run(&world);
    }
}

/// The test above proves little if its operations get nowhere: they have to reach every verdict and answer.
#[test]
fn the_operations_reach_every_verdict_and_answer() {
    let rng = TestRng::deterministic_rng(Config::default().rng_algorithm);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = world(operations(), 60..120);
    let mut reach = Reach::default();
    for _ in 0..400 {
        let tree = strategy.new_tree(&mut runner).expect("no filter rejects");
        reach.merge(run(&tree.current()));
    }
    for expected in [
        "allocate 0",
        "allocate 400",
        "allocate 401",
        "allocate 420",
        "allocate 437",
        "allocate 438",
        "allocate 440",
        "allocate 442",
        "allocate 486",
        "allocate 508",
        "refresh 0",
        "refresh 401",
        "refresh 437",
        "refresh 438",
        "refresh 441",
        "refresh 443",
        "create_permission 0",
        "create_permission 400",
        "create_permission 403",
        "create_permission 437",
        "create_permission 441",
        "create_permission 443",
        "create_permission 508",
        "channel_bind 0",
        "channel_bind 400",
        "channel_bind 403",
        "channel_bind 437",
        "channel_bind 443",
        "channel_bind 508",
        "binding 0",
        "to peer from channel",
        "to peer from send",
        "to client on channel",
        "to client as indication",
        "drop NoAllocation",
        "drop NoChannel",
        "drop NoPermission",
        "drop PeerDenied",
        "drop Family",
        "ended Released",
        "ended Expired",
        "ended ClientClosed",
        "ended Administrative",
        "ended RelayFailed",
        "late open closed",
        "drop NoPermission when late",
        "drop NoChannel when late",
        "retransmitted allocate",
        "handed over",
        "allocated in both families",
        "allocated in one family of two",
        "reserved",
    ] {
        assert!(
            reach.0.contains(expected),
            "never reached: {expected}; reached: {:#?}",
            reach.0
        );
    }
}
