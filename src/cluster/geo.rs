//! Where a client is, from a database in MaxMind's format.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;

use maxminddb::{Reader, geoip2};

/// A place on the globe, in degrees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Location {
    /// North of the equator, -90 to 90.
    pub latitude: f64,
    /// East of Greenwich, -180 to 180.
    pub longitude: f64,
}

impl Location {
    /// The distance along the surface, in kilometres (haversine).
    pub fn distance_km(self, other: Self) -> f64 {
        const RADIUS_KM: f64 = 6371.0;
        let (from, to) = (self.latitude.to_radians(), other.latitude.to_radians());
        let north = (to - from) / 2.0;
        let east = (other.longitude - self.longitude).to_radians() / 2.0;
        let half = north.sin().powi(2) + from.cos() * to.cos() * east.sin().powi(2);
        2.0 * RADIUS_KM * half.clamp(0.0, 1.0).sqrt().asin()
    }
}

impl FromStr for Location {
    type Err = String;

    /// `latitude, longitude` in degrees.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let within = |text: &str, most: f64| {
            let degrees = text.trim().parse::<f64>().ok()?;
            (-most..=most).contains(&degrees).then_some(degrees)
        };
        (text.split_once(','))
            .and_then(|(latitude, longitude)| {
                Some(Self {
                    latitude: within(latitude, 90.0)?,
                    longitude: within(longitude, 180.0)?,
                })
            })
            .ok_or_else(|| "latitude and longitude in degrees, such as \"50.11, 8.68\"".to_owned())
    }
}

/// A database of where addresses are.
pub struct Places(Reader<Vec<u8>>);

/// Why a database cannot be used.
#[derive(Debug)]
pub struct PlacesError(String);

impl fmt::Display for PlacesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PlacesError {}

impl Places {
    pub(super) fn open(path: &Path) -> Result<Self, PlacesError> {
        let reader = Reader::open_readfile(path).map_err(|error| PlacesError(error.to_string()))?;
        let kind = &reader.metadata().database_type;
        if !["City", "Enterprise", "Insights"]
            .iter()
            .any(|known| kind.contains(known))
        {
            return Err(PlacesError(format!(
                "a database of kind {kind:?} has no coordinates; a City database has"
            )));
        }
        Ok(Self(reader))
    }

    /// Where `ip` is, if the database knows.
    pub fn locate(&self, ip: IpAddr) -> Option<Location> {
        let found = self.0.lookup(ip.to_canonical()).ok()?;
        let city: geoip2::City<'_> = found.decode().ok()??;
        Some(Location {
            latitude: city.location.latitude?,
            longitude: city.location.longitude?,
        })
    }
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Places({:?})", self.0.metadata().database_type)
    }
}
