//! Revocations against a plain map, through more changes than are kept apart.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use turnix::access::{Revocations, RevokedKind};

const NOW: u64 = 1_800_000_000;

#[derive(Clone, Debug)]
enum Step {
    /// Until so many seconds from now; none: for good.
    Revoke(RevokedKind, u16, Option<u64>),
    Lift(RevokedKind, u16),
}

fn kind() -> impl Strategy<Value = RevokedKind> {
    prop::sample::select(RevokedKind::ALL.to_vec())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (kind(), 0..400u16, prop::option::of(1..5000u64))
            .prop_map(|(kind, name, secs)| Step::Revoke(kind, name, secs)),
        1 => (kind(), 0..400u16).prop_map(|(kind, name)| Step::Lift(kind, name)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn revocations_are_a_map(steps in prop::collection::vec(step(), 0..2000), later in 0..6000u64) {
        let mut revoked = Revocations::default();
        let mut model = BTreeMap::new();
        for step in &steps {
            let before = revoked.clone();
            match step {
                Step::Revoke(kind, name, secs) => {
                    let until = secs.map(|secs| NOW + secs);
                    revoked.revoke(*kind, &name.to_string(), until, NOW);
                    model.insert((*kind, *name), until.unwrap_or(u64::MAX));
                }
                Step::Lift(kind, name) => {
                    revoked.lift(*kind, &name.to_string(), NOW);
                    model.remove(&(*kind, *name));
                }
            }
            prop_assert!(revoked.is_newer(&before) && !before.is_newer(&revoked));
        }
        for kind in RevokedKind::ALL {
            for name in 0..400u16 {
                let expected = model.get(&(kind, name)).is_some_and(|until| NOW + later < *until);
                let at = Duration::from_secs(NOW + later);
                prop_assert_eq!(revoked.has(kind, name.to_string().as_bytes(), at), expected);
            }
        }
    }
}
