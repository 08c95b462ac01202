//! The servers of a service as the configuration lists them: where they are, which of them answer, and which of them a
//! client should be sent to.
//!
//! Nothing is shared between them but secrets. Each server looks at the others with a canary of its own (`canary.rs`)
//! and draws its own conclusions; at itself it looks as well (`own.rs`).

pub mod canary;
pub mod detective;
mod directory;
mod geo;
mod journal;
pub mod ledger;
pub mod locate;
pub mod own;
mod uri;

use std::cmp::Ordering;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering as Memory};

use rand::RngExt;

pub use directory::{Directory, DirectoryError, Entries, RevokedFile, UsersFile, Version};
pub use geo::{Location, Places, PlacesError};
pub use ledger::Ledger;
pub use uri::{IceUri, Says, TurnUri, UriError};

/// One server of the service.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its name, as its own `cluster.node` says it.
    pub name: String,
    /// The region that clients may ask for.
    pub region: String,
    /// Where it stands, for clients whose place is known.
    pub location: Option<Location>,
    /// Share of the clients among nodes that are as good; 0 takes none unless nothing else is left.
    pub weight: u32,
    /// Its URIs in the order that clients should try them (RFC 7065).
    pub urls: Vec<String>,
}

/// What a client is like, as far as choosing a node is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The region it asks for.
    pub region: Option<&'a str>,
    /// Its address.
    pub client: Option<IpAddr>,
}

/// The nodes and whether they answer.
#[derive(Debug)]
pub struct Fleet {
    /// The name of this server among them; it is never looked at from outside.
    own: String,
    nodes: Box<[(Node, AtomicBool)]>,
    places: Option<Places>,
}

impl Fleet {
    /// `nodes` as configured, `own` the name of this server, all of them taken for alive until a canary says otherwise.
    pub fn new(own: &str, nodes: Vec<Node>, places: Option<Places>) -> Self {
        let alive = |node| (node, AtomicBool::new(true));
        Self {
            own: own.to_owned(),
            nodes: nodes.into_iter().map(alive).collect(),
            places,
        }
    }

    /// Every node, and whether it answers.
    pub fn nodes(&self) -> impl Iterator<Item = (&Node, bool)> {
        (self.nodes.iter()).map(|(node, alive)| (node, alive.load(Memory::Relaxed)))
    }

    /// Whether there is nothing to choose from.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether `node` is this server.
    pub fn is_own(&self, node: &Node) -> bool {
        node.name == self.own
    }

    /// Notes whether the node `name` answers; true if that is news.
    pub fn set_alive(&self, name: &str, alive: bool) -> bool {
        (self.nodes.iter())
            .find(|(node, _)| node.name == name)
            .is_some_and(|(_, known)| known.swap(alive, Memory::Relaxed) != alive)
    }

    /// At most `most` nodes for `wish`, the best first: those of the region asked for, then the nearest, by weight among
    /// those that are as good. Nodes that do not answer are left out, unless none does: an address that may fail is
    /// better than none.
    pub fn choose(&self, wish: Wish<'_>, most: usize) -> Vec<&Node> {
        let answering = self.nodes().any(|(_, alive)| alive);
        let client = self.places.as_ref().zip(wish.client);
        let client = client.and_then(|(places, ip)| places.locate(ip));
        let mut random = rand::rng();
        let mut candidates: Vec<_> = self
            .nodes()
            .filter(|(_, alive)| *alive || !answering)
            .map(|(node, _)| Candidate {
                elsewhere: wish.region.is_some_and(|region| region != node.region),
                last_resort: node.weight == 0,
                distance_km: client.zip(node.location).map(|(a, b)| a.distance_km(b)),
                draw: random
                    .random::<f64>()
                    .powf(1.0 / f64::from(node.weight.max(1))),
                node,
            })
            .collect();
        candidates.sort_by(Candidate::compare);
        candidates.truncate(most);
        candidates.into_iter().map(|one| one.node).collect()
    }
}

struct Candidate<'a> {
    node: &'a Node,
    elsewhere: bool,
    last_resort: bool,
    distance_km: Option<f64>,
    /// Larger wins. Of independent draws u^(1/weight), each is the largest in proportion to its weight.
    draw: f64,
}

/// Nodes whose distances differ by less are as near: what a packet takes there differs less than from day to day.
const AS_NEAR_KM: f64 = 100.0;

impl Candidate<'_> {
    fn compare(&self, other: &Self) -> Ordering {
        let rank = |one: &Self| {
            // An unknown place is farther than any.
            let near = one.distance_km.unwrap_or(40_000.0) / AS_NEAR_KM;
            (one.last_resort, one.elsewhere, near as u32)
        };
        (rank(self).cmp(&rank(other))).then_with(|| other.draw.total_cmp(&self.draw))
    }
}

/// Reads the database of places at `path`.
///
/// # Errors
/// It cannot be read, or holds no coordinates.
pub fn places(path: &Path) -> Result<Places, PlacesError> {
    Places::open(path)
}
