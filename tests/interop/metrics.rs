//! Enough of the Prometheus text format to add up the series of one metric.

/// One scrape.
pub struct Metrics {
    series: Vec<Series>,
}

struct Series {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Metrics {
    /// Parses an exposition; a line that is neither a comment nor a series fails the test.
    pub fn parse(text: &str) -> Metrics {
        let lines = text
            .lines()
            .filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        Metrics {
            series: lines.map(parse_line).collect(),
        }
    }

    /// The sum over the series of `name` that carry all of `labels`; 0 where there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|series| series.value).sum()
    }

    /// How many series of `name` carry all of `labels`.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> usize {
        self.matching(name, labels).count()
    }

    /// The different values of `label` in the series of `name`.
    pub fn values(&self, name: &str, label: &str) -> Vec<String> {
        let labels = self
            .matching(name, &[])
            .filter_map(|series| series.label(label));
        let mut values: Vec<String> = labels.map(str::to_owned).collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&str, &str)],
    ) -> impl Iterator<Item = &'a Series> {
        self.series
            .iter()
            .filter(move |series| series.name == name)
            .filter(move |series| {
                labels
                    .iter()
                    .all(|(key, value)| series.label(key) == Some(value))
            })
    }
}

impl Series {
    fn label(&self, key: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }
}

fn parse_line(line: &str) -> Series {
    let name_end = line
        .find(['{', ' '])
        .unwrap_or_else(|| panic!("not a series: {line}"));
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        (labels, rest) = parse_labels(inside, line);
    }
    let value = rest
        .split_whitespace()
        .next()
        .and_then(|value| value.parse().ok());
    Series {
        name: name.to_owned(),
        labels,
        value: value.unwrap_or_else(|| panic!("no value: {line}")),
    }
}

fn parse_labels<'a>(mut rest: &'a str, line: &str) -> (Vec<(String, String)>, &'a str) {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(after) = rest.strip_prefix('}') {
            return (labels, after);
        }
        let (key, quoted) = rest
            .split_once("=\"")
            .unwrap_or_else(|| panic!("bad labels: {line}"));
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        rest = loop {
            match chars.next() {
                Some((at, '"')) => break &quoted[at + 1..],
                Some((_, '\\')) => match chars.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, other)) => value.push(other),
                    None => panic!("bad labels: {line}"),
                },
                Some((_, other)) => value.push(other),
                None => panic!("bad labels: {line}"),
            }
        };
        labels.push((key.to_owned(), value));
    }
}

#[test]
fn series_are_summed_by_label() {
    let metrics = Metrics::parse(
        "# HELP m help\n# TYPE m counter\nm{a=\"x\",b=\"1\"} 2\nm{a=\"x\",b=\"2\"} 3.5\nm{a=\"y, \\\"}\"} 1e3\nplain 7\n",
    );
    assert_eq!(metrics.sum("m", &[("a", "x")]), 5.5);
    assert_eq!(metrics.sum("m", &[("a", "y, \"}")]), 1000.0);
    assert_eq!(metrics.sum("plain", &[]), 7.0);
    assert_eq!(metrics.count("m", &[]), 3);
    assert_eq!(metrics.values("m", "b"), ["1", "2"]);
    assert_eq!(metrics.sum("absent", &[]), 0.0);
}
