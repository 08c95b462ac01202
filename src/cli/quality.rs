//! How a call goes, in a few columns: the side of the client before that of the peers.

use serde_json::Value;

/// What a table shows of `quality` in an allocation's JSON. Empty where nothing is known at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Call {
    /// The session in a word or three.
    pub session: String,
    /// Round-trip times of both sides in milliseconds.
    pub rtt: String,
    /// What was lost of late on the way from either side, in percent.
    pub loss: String,
    /// The jitter of what comes from either side, in milliseconds.
    pub jitter: String,
    /// The longer round-trip time in milliseconds, for an order.
    pub slowest: f64,
    /// The higher loss, for an order.
    pub lossiest: f64,
}

impl Call {
    /// From the JSON of one allocation.
    pub fn of(allocation: &Value) -> Self {
        let quality = &allocation["quality"];
        let rtt = ["client", "peer"].map(|leg| quality["rtt_ms"][leg]["smoothed"].as_f64());
        // What goes to peers comes from the client.
        let ways = |key: &str| ["to_peer", "to_client"].map(|way| quality[key][way].as_f64());
        let loss = ways("recent_loss");
        let most = |values: [Option<f64>; 2]| values.into_iter().flatten().fold(0.0, f64::max);
        Self {
            session: (quality["session"].as_str().unwrap_or_default()).replace('_', " "),
            rtt: both(rtt),
            loss: both(loss.map(|loss| loss.map(|ratio| ratio * 100.0))),
            jitter: both(ways("jitter_ms")),
            slowest: most(rtt),
            lossiest: most(loss),
        }
    }
}

/// `23/170`; what is not known is a dash.
fn both(values: [Option<f64>; 2]) -> String {
    match values {
        [None, None] => String::new(),
        [client, peer] => format!("{}/{}", short(client), short(peer)),
    }
}

fn short(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(0.0) => "0".to_owned(),
        // Never rounded down to none.
        Some(small) if small < 0.05 => "<0.1".to_owned(),
        Some(value) if value < 9.95 => format!("{value:.1}"),
        Some(value) => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_call_in_a_few_columns() {
        let call = Call::of(&json!({"quality": {
            "session": "to_client_only",
            "rtt_ms": {"client": {"smoothed": 9.96, "least": 3.0}, "peer": null},
            "recent_loss": {"to_peer": 0.0001, "to_client": 0.125},
            "jitter_ms": {"to_peer": 0.0, "to_client": 1.25},
        }}));
        assert_eq!(
            (&*call.session, &*call.rtt, &*call.loss, &*call.jitter),
            ("to client only", "10/–", "<0.1/12", "0/1.2")
        );
        assert_eq!((call.slowest, call.lossiest), (9.96, 0.125));
        assert_eq!(Call::of(&json!({"quality": null})), Call::default());
        assert_eq!(Call::of(&json!({})), Call::default());
    }
}
