//! Buckets against a list of what was admitted.

use std::net::IpAddr;
use std::time::Duration;

use ahash::RandomState;
use proptest::prelude::*;
use turnix::access::AddressRate;

/// Addresses, which of them are one subscriber, and which of these one network.
const SOURCES: [(&str, usize, usize); 10] = [
    ("192.0.2.1", 0, 0),
    ("::ffff:192.0.2.1", 0, 0),
    ("192.0.2.2", 1, 0),
    ("192.0.2.255", 2, 0),
    ("192.0.3.1", 3, 1),
    ("2001:db8:0:1::1", 4, 2),
    ("2001:db8:0:1:ffff:ffff:ffff:ffff", 4, 2),
    ("2001:db8:0:ff::1", 5, 2),
    ("2001:db8:0:100::1", 6, 3),
    ("2001:db8:1:1::1", 7, 4),
];

/// Milliseconds in which a full bucket is used up and filled again.
const DEPTH_MILLIS: u64 = 10_000;

/// A bucket by the book: tokens that come with time, in thousandths, up to as many as it holds.
#[derive(Clone, Copy)]
struct Bucket {
    millis: u64,
    tokens: u64,
}

impl Bucket {
    fn full(rate: u64) -> Self {
        Self {
            millis: 0,
            tokens: rate * DEPTH_MILLIS,
        }
    }

    fn fill(&mut self, rate: u64, millis: u64) {
        self.tokens += (millis - self.millis) * rate;
        self.tokens = self.tokens.min(rate * DEPTH_MILLIS);
        self.millis = millis;
    }
}

proptest! {
    #[test]
    fn buckets_admit_what_they_hold(
        // With these seeds no two of the sources share a bucket.
        // Divisors, so that the time between two tokens is a whole number.
        rate in prop::sample::select(vec![1_u64, 2, 5, 10]),
        steps in prop::collection::vec((0..SOURCES.len(), 0_u64..200, 0..40_usize), 0..200),
    ) {
        let mut limits = AddressRate::new(rate as u32, RandomState::with_seeds(1, 2, 3, 4));
        let mut narrow = [Bucket::full(rate); SOURCES.len()];
        let mut wide = [Bucket::full(4 * rate); SOURCES.len()];
        let mut millis = 0;
        for (source, wait, times) in steps {
            millis += wait;
            let (text, subscriber, network) = SOURCES[source];
            let ip: IpAddr = text.parse().unwrap();
            narrow[subscriber].fill(rate, millis);
            wide[network].fill(4 * rate, millis);
            for _ in 0..times {
                let expected = narrow[subscriber].tokens >= 1000 && wide[network].tokens >= 1000;
                let admitted = limits.admit(Duration::from_millis(millis), ip);
                prop_assert_eq!(admitted, expected, "{} at {} ms", text, millis);
                if admitted {
                    narrow[subscriber].tokens -= 1000;
                    wide[network].tokens -= 1000;
                }
            }
        }
    }

    #[test]
    fn no_rate_is_no_limit(sources in prop::collection::vec(any::<u128>(), 0..50)) {
        let mut limits = AddressRate::new(0, RandomState::with_seeds(1, 2, 3, 4));
        prop_assert_eq!(limits.bytes(), 0);
        for bits in sources {
            let ip = IpAddr::from(std::net::Ipv6Addr::from_bits(bits));
            prop_assert!((0..100).all(|_| limits.admit(Duration::ZERO, ip)));
        }
    }
}
