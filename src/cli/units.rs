//! Quantities as people read them.

use std::fmt::Write as _;

/// `17 %`
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        0.0 => "0 %".to_owned(),
        1.0.. => format!("{percent:.0} %"),
        _ => format!("{percent:.1} %"),
    }
}

/// `2.40 Mbit/s`
pub fn rate(bits_per_second: f64) -> String {
    match bits_per_second {
        1e9.. => format!("{:.2} Gbit/s", bits_per_second / 1e9),
        1e6.. => format!("{:.2} Mbit/s", bits_per_second / 1e6),
        _ => format!("{:.0} kbit/s", bits_per_second / 1e3),
    }
}

/// `2 d 3 h`, `90 s`: the two largest units.
pub fn span(secs: u64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let mut text = String::new();
    let (mut rest, mut shown) = (secs, 0);
    for (unit, name) in units {
        let count = rest / unit;
        rest %= unit;
        if count > 0 && shown < 2 {
            let gap = if text.is_empty() { "" } else { " " };
            let _ = write!(text, "{gap}{count} {name}");
        }
        // What is smaller than the next unit of the largest one says nothing.
        shown += u32::from(count > 0 || shown > 0);
    }
    if text.is_empty() {
        text.push_str("0 s");
    }
    text
}

/// `1.50 GB`
pub fn bytes(count: u64) -> String {
    let count = count as f64;
    match count {
        1e12.. => format!("{:.2} TB", count / 1e12),
        1e9.. => format!("{:.2} GB", count / 1e9),
        1e6.. => format!("{:.2} MB", count / 1e6),
        1e3.. => format!("{:.1} kB", count / 1e3),
        _ => format!("{count:.0} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        for (secs, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (90, "1 min 30 s"),
            (3600, "1 h"),
            (3605, "1 h"),
            (90_061, "1 d 1 h"),
            (86_400 * 400, "400 d"),
        ] {
            assert_eq!(span(secs), text, "{secs}");
        }
    }

    #[test]
    fn amounts() {
        assert_eq!(rate(2.4e6), "2.40 Mbit/s");
        assert_eq!(rate(0.0), "0 kbit/s");
        assert_eq!(rate(1.5e9), "1.50 Gbit/s");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_500_000_000), "1.50 GB");
        assert_eq!(percent(0.0), "0 %");
        assert_eq!(percent(0.004), "0.4 %");
        assert_eq!(percent(0.17), "17 %");
    }
}
