//! Choosing among the servers of a service.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use turnix::cluster::{self, Fleet, Location, Node, Wish};

fn node(name: &str, region: &str, location: Option<(f64, f64)>, weight: u32) -> Node {
    Node {
        name: name.to_owned(),
        region: region.to_owned(),
        location: location.map(|(latitude, longitude)| Location {
            latitude,
            longitude,
        }),
        weight,
        urls: vec![format!("turn:{name}.example.org")],
    }
}

const FRANKFURT: (f64, f64) = (50.11, 8.68);
const VIRGINIA: (f64, f64) = (38.95, -77.45);
const SINGAPORE: (f64, f64) = (1.35, 103.82);

fn names<'a>(fleet: &'a Fleet, wish: Wish<'_>, most: usize) -> Vec<&'a str> {
    fleet
        .choose(wish, most)
        .into_iter()
        .map(|node| node.name.as_str())
        .collect()
}

fn anywhere(region: Option<&str>) -> Wish<'_> {
    Wish {
        region,
        client: None,
    }
}

#[test]
fn distances_are_those_of_the_globe() {
    let place = |(latitude, longitude)| Location {
        latitude,
        longitude,
    };
    let km = place(FRANKFURT).distance_km(place(VIRGINIA));
    assert!((6500.0..6650.0).contains(&km), "{km}");
    assert!(place(SINGAPORE).distance_km(place(SINGAPORE)) < 1e-6);
    let antipodes = place((10.0, 20.0)).distance_km(place((-10.0, -160.0)));
    assert!((20_000.0..20_030.0).contains(&antipodes), "{antipodes}");
    for wrong in ["", "50", "91, 0", "0, 181", "a, b", "1,2,3", "NaN, 0"] {
        assert!(wrong.parse::<Location>().is_err(), "{wrong}");
    }
}

#[test]
fn a_region_comes_first_and_another_is_there_to_fall_back_to() {
    let nodes = vec![node("a", "eu", None, 100), node("b", "us", None, 100)];
    let fleet = Fleet::new("a", nodes, None);
    for _ in 0..50 {
        assert_eq!(names(&fleet, anywhere(Some("us")), 2), ["b", "a"]);
        assert_eq!(names(&fleet, anywhere(Some("eu")), 1), ["a"]);
    }
    assert_eq!(names(&fleet, anywhere(Some("mars")), 5).len(), 2);
}

#[test]
fn weights_are_shares() {
    let nodes = vec![
        node("a", "eu", None, 100),
        node("b", "eu", None, 300),
        node("c", "eu", None, 0),
    ];
    let fleet = Fleet::new("", nodes, None);
    let mut firsts: HashMap<&str, u32> = HashMap::new();
    const DRAWS: u32 = 20_000;
    for _ in 0..DRAWS {
        *firsts
            .entry(names(&fleet, anywhere(None), 1)[0])
            .or_default() += 1;
    }
    // A quarter, give or take six standard deviations.
    let share = f64::from(firsts["a"]) / f64::from(DRAWS);
    assert!((share - 0.25).abs() < 0.02, "{firsts:?}");
    assert_eq!(firsts.get("c"), None, "weight 0 is the last resort");
}

#[test]
fn the_dead_are_left_out_unless_all_are() {
    let nodes = vec![node("a", "eu", None, 100), node("b", "us", None, 100)];
    let fleet = Fleet::new("", nodes, None);
    assert!(fleet.set_alive("a", false), "news");
    assert!(!fleet.set_alive("a", false), "no news");
    assert_eq!(names(&fleet, anywhere(Some("eu")), 2), ["b"]);
    fleet.set_alive("b", false);
    assert_eq!(names(&fleet, anywhere(Some("eu")), 2), ["a", "b"]);
    assert!(fleet.set_alive("a", true));
    assert_eq!(names(&fleet, anywhere(None), 2), ["a"]);
    assert!(!fleet.set_alive("nobody", false));
}

#[test]
fn clients_are_sent_to_the_nearest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("places.mmdb");
    std::fs::write(
        &path,
        database(
            "Test-City",
            &[([203, 0, 113], VIRGINIA), ([198, 51, 100], SINGAPORE)],
        ),
    )
    .unwrap();
    let places = cluster::places(&path).unwrap();
    let nodes = vec![
        node("fra", "eu", Some(FRANKFURT), 100),
        node("iad", "us", Some(VIRGINIA), 100),
        node("sin", "ap", Some(SINGAPORE), 100),
        node("somewhere", "??", None, 100),
    ];
    let fleet = Fleet::new("", nodes, Some(places));
    let from = |ip: [u8; 4]| Wish {
        region: None,
        client: Some(IpAddr::from(ip)),
    };
    for _ in 0..20 {
        assert_eq!(
            names(&fleet, from([203, 0, 113, 9]), 4),
            ["iad", "fra", "sin", "somewhere"]
        );
        assert_eq!(names(&fleet, from([198, 51, 100, 9]), 1), ["sin"]);
    }
    let mapped = Ipv4Addr::new(203, 0, 113, 9).to_ipv6_mapped().into();
    let wish = Wish {
        region: None,
        client: Some(mapped),
    };
    assert_eq!(names(&fleet, wish, 1), ["iad"]);
    // Who asks for a region gets it, however far.
    let wish = Wish {
        region: Some("ap"),
        ..from([203, 0, 113, 9])
    };
    assert_eq!(names(&fleet, wish, 2), ["sin", "iad"]);
    // An address that the database does not know goes by weight.
    let firsts: Vec<&str> = (0..200)
        .map(|_| names(&fleet, from([192, 0, 2, 1]), 1)[0])
        .collect();
    for name in ["fra", "iad", "sin", "somewhere"] {
        assert!(firsts.contains(&name), "{name} is never the first");
    }
}

#[test]
fn a_database_without_coordinates_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("places.mmdb");
    assert!(cluster::places(&path).is_err(), "there is none");
    std::fs::write(&path, b"no database").unwrap();
    assert!(cluster::places(&path).is_err());
    std::fs::write(
        &path,
        database("GeoLite2-Country", &[([203, 0, 113], VIRGINIA)]),
    )
    .unwrap();
    let error = cluster::places(&path).unwrap_err().to_string();
    assert!(error.contains("City database"), "{error}");
}

/// A database in MaxMind's format (version 2.0) that knows the /24s `known`.
fn database(kind: &str, known: &[([u8; 3], (f64, f64))]) -> Vec<u8> {
    let text = |text: &str| [&[0x40 | text.len() as u8], text.as_bytes()].concat();
    let double = |value: f64| [&[0x68], &value.to_be_bytes()[..]].concat();
    let mut data = Vec::new();
    let mut offsets = Vec::new();
    for (_, (latitude, longitude)) in known {
        offsets.push(data.len());
        let record = [
            vec![0xE1],
            text("location"),
            vec![0xE2],
            text("latitude"),
            double(*latitude),
            text("longitude"),
            double(*longitude),
        ];
        data.extend(record.concat());
    }
    // A tree over the 24 bits of each network; `None` leads nowhere.
    let mut nodes: Vec<[Option<usize>; 2]> = vec![[None; 2]];
    let mut leaves = Vec::new();
    for (index, (network, _)) in known.iter().enumerate() {
        let bits: Vec<usize> = (0..24)
            .map(|bit| usize::from(network[bit / 8] >> (7 - bit % 8) & 1))
            .collect();
        let mut at = 0;
        for bit in &bits[..23] {
            at = match nodes[at][*bit] {
                Some(next) => next,
                None => {
                    nodes.push([None; 2]);
                    let next = nodes.len() - 1;
                    nodes[at][*bit] = Some(next);
                    next
                }
            };
        }
        leaves.push((at, bits[23], offsets[index]));
    }
    let count = nodes.len();
    let mut tree = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        for (bit, next) in node.iter().enumerate() {
            let leaf = leaves.iter().find(|leaf| (leaf.0, leaf.1) == (index, bit));
            let record = match (leaf, next) {
                (Some((_, _, offset)), _) => count + 16 + offset,
                (None, Some(next)) => *next,
                (None, None) => count,
            };
            tree.extend(&(record as u32).to_be_bytes()[1..]);
        }
    }
    let u16_of = |value: u16| [&[0xA2], &value.to_be_bytes()[..]].concat();
    let u32_of = |value: u32| [&[0xC4], &value.to_be_bytes()[..]].concat();
    let u64_of = |value: u64| [&[0x08, 0x02], &value.to_be_bytes()[..]].concat();
    let metadata = [
        b"\xAB\xCD\xEFMaxMind.com".to_vec(),
        vec![0xE9],
        text("node_count"),
        u32_of(count as u32),
        text("record_size"),
        u16_of(24),
        text("ip_version"),
        u16_of(4),
        text("database_type"),
        text(kind),
        text("languages"),
        vec![0x00, 0x04],
        text("binary_format_major_version"),
        u16_of(2),
        text("binary_format_minor_version"),
        u16_of(0),
        text("build_epoch"),
        u64_of(1_767_225_600),
        text("description"),
        vec![0xE0],
    ];
    [tree, vec![0; 16], data, metadata.concat()].concat()
}
