//! What the metadata services of clouds say about public addresses. Asked without proxies, over plain HTTP on a
//! link-local address, which is all they offer; no redirect is followed.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;

use super::{Trouble, is_credible};
use crate::base::{Family, Printable};
use crate::net::host;

/// What is read of an answer.
const ANSWER_BYTES: usize = 256 << 10;

/// How many network interfaces, and addresses of each, are asked about one by one.
const MOST: usize = 32;

/// A cloud with a metadata service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloud {
    /// Amazon EC2, by IMDSv2.
    Aws,
    /// Google Compute Engine.
    Gcp,
    /// Microsoft Azure.
    Azure,
    /// DigitalOcean.
    DigitalOcean,
    /// Hetzner Cloud.
    Hetzner,
    /// Oracle Cloud Infrastructure, which does not tell the public address of every machine.
    Oracle,
}

impl Cloud {
    /// Every cloud, by the name that the configuration knows it by.
    pub const ALL: [(&'static str, Self); 6] = [
        ("aws", Self::Aws),
        ("gcp", Self::Gcp),
        ("azure", Self::Azure),
        ("digitalocean", Self::DigitalOcean),
        ("hetzner", Self::Hetzner),
        ("oracle", Self::Oracle),
    ];

    /// Its name in the configuration, in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::Gcp => "gcp",
            Self::Azure => "azure",
            Self::DigitalOcean => "digitalocean",
            Self::Hetzner => "hetzner",
            Self::Oracle => "oracle",
        }
    }

    /// Who tells, for people.
    pub const fn described(self) -> &'static str {
        match self {
            Self::Aws => "by the metadata of AWS",
            Self::Gcp => "by the metadata of Google Cloud",
            Self::Azure => "by the metadata of Azure",
            Self::DigitalOcean => "by the metadata of DigitalOcean",
            Self::Hetzner => "by the metadata of Hetzner",
            Self::Oracle => "by the metadata of Oracle Cloud",
        }
    }

    /// The cloud that this host says it runs in, as its firmware has it (SMBIOS). Sends nothing.
    pub fn of_this_host() -> Option<Self> {
        let is = |field: &str, text: &str| host::firmware(field).is_some_and(|it| it == text);
        [
            (Self::Aws, is("sys_vendor", "Amazon EC2")),
            (Self::Gcp, is("product_name", "Google Compute Engine")),
            (
                Self::Azure,
                is("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77"),
            ),
            (Self::DigitalOcean, is("sys_vendor", "DigitalOcean")),
            (Self::Hetzner, is("sys_vendor", "Hetzner")),
            (Self::Oracle, is("chassis_asset_tag", "OracleCloud.com")),
        ]
        .into_iter()
        .find_map(|(cloud, here)| here.then_some(cloud))
    }
}

/// A public address, and the local one that it leads to, where the service says that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub local: Option<IpAddr>,
    pub external: IpAddr,
}

/// How `local` looks from outside by what was told on a host that has `interfaces`.
pub(super) fn external(told: &[Told], local: IpAddr, interfaces: &[IpAddr]) -> Option<IpAddr> {
    let credible = |told: &&Told| is_credible(told.external, local);
    if let Some(told) = (told.iter().filter(credible)).find(|told| told.local == Some(local)) {
        return Some(told.external);
    }
    // In a container the service speaks of addresses that are the machine's around it, whose ports are forwarded. Which
    // of several it would be nobody knows; and what an interface has itself leads there.
    let of_another_host =
        (told.iter()).all(|told| told.local.is_none_or(|told| !interfaces.contains(&told)));
    let mut externals: Vec<IpAddr> = (told.iter().filter(credible))
        .map(|told| told.external)
        .collect();
    externals.dedup();
    match externals[..] {
        [external] if of_another_host && !interfaces.contains(&external) => Some(external),
        _ => None,
    }
}

/// Asks the services of `clouds` at `address` all at once, in their order.
///
/// # Errors
/// For each, why it told nothing.
pub(super) async fn ask_all(
    clouds: &[Cloud],
    address: SocketAddr,
    patience: Duration,
) -> Vec<(Cloud, Result<Vec<Told>, Trouble>)> {
    let mut asked = tokio::task::JoinSet::new();
    for (index, &cloud) in clouds.iter().enumerate() {
        asked.spawn(async move {
            let service = Service::new(address);
            let told = timeout(patience, service.ask(cloud)).await;
            let told = told
                .unwrap_or_else(|_| Err(format!("no answer within {} s", patience.as_secs_f64())));
            let told = told.map_err(|why| Trouble {
                key: "relay.metadata",
                found: format!("the service of {} at {address}: {why}", cloud.label()),
                remedy: way_out(cloud).to_owned(),
            });
            (index, cloud, told)
        });
    }
    let mut answers = asked.join_all().await;
    answers.sort_unstable_by_key(|(index, ..)| *index);
    (answers.into_iter())
        .map(|(_, cloud, told)| (cloud, told))
        .collect()
}

const fn way_out(cloud: Cloud) -> &'static str {
    match cloud {
        // Its answer with the token lives for one hop unless told otherwise.
        Cloud::Aws => {
            "turn it on for this machine; in a container it takes a hop limit of 2 (aws ec2 \
             modify-instance-metadata-options --http-put-response-hop-limit 2)"
        }
        // Its machines usually do not know.
        Cloud::Oracle => {
            "name two servers in relay.stun_servers, or the address in relay.external_address"
        }
        _ => "if this is no machine of it, write what it is, or \"off\"",
    }
}

/// An answer: what it says, or that there is no such thing.
type Answer = Option<(HeaderMap, String)>;

/// One conversation.
struct Service {
    client: Client<HttpConnector, Empty<Bytes>>,
    authority: String,
}

impl Service {
    fn new(address: SocketAddr) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build(HttpConnector::new()),
            authority: match address {
                SocketAddr::V4(address) if address.port() == 80 => address.ip().to_string(),
                _ => address.to_string(),
            },
        }
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Answer, String> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.authority))
            .header(
                header::USER_AGENT,
                concat!("turnix/", env!("CARGO_PKG_VERSION")),
            );
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Empty::new())
            .map_err(|error| error.to_string())?;
        let answer = (self.client.request(request).await).map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            cause.unwrap_or_else(|| error.to_string())
        })?;
        let (head, body) = answer.into_parts();
        match head.status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            status => return Err(format!("{path} is answered {}", status.as_u16())),
        }
        let body = (Limited::new(body, ANSWER_BYTES).collect().await)
            .map_err(|error| format!("{path}: {error}"))?;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        Ok(Some((head.headers, text)))
    }

    async fn get(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Option<String>, String> {
        let answer = self.request(Method::GET, path, headers).await?;
        Ok(answer.map(|(_, text)| text))
    }

    async fn json(&self, path: &str, headers: &[(&'static str, &str)]) -> Result<Value, String> {
        let text = self.get(path, headers).await?;
        let text = text.ok_or_else(|| format!("it has no {path}"))?;
        serde_json::from_str(&text).map_err(|error| format!("{path} is no JSON: {error}"))
    }

    async fn ask(&self, cloud: Cloud) -> Result<Vec<Told>, String> {
        match cloud {
            Cloud::Aws => self.aws().await,
            Cloud::Gcp => self.gcp().await,
            Cloud::Azure => self.azure().await,
            Cloud::DigitalOcean => self.digitalocean().await,
            Cloud::Hetzner => self.hetzner().await,
            Cloud::Oracle => self.oracle().await,
        }
    }

    /// A token first (IMDSv2), then each interface's associations of public addresses with its own.
    async fn aws(&self) -> Result<Vec<Told>, String> {
        const MACS: &str = "/latest/meta-data/network/interfaces/macs/";
        let ttl = [("x-aws-ec2-metadata-token-ttl-seconds", "60")];
        let token = self.request(Method::PUT, "/latest/api/token", &ttl).await?;
        let (_, token) = token.ok_or("it gives no token: it is no service of AWS")?;
        let token = [("x-aws-ec2-metadata-token", token.trim())];
        let mut told = Vec::new();
        for mac in lines(self.get(MACS, &token).await?).iter().take(MOST) {
            let associations = format!("{MACS}{}/ipv4-associations/", mac.trim_end_matches('/'));
            // There are none where the interface has no public address.
            for external in lines(self.get(&associations, &token).await?)
                .iter()
                .take(MOST)
            {
                let locals = self
                    .get(&format!("{associations}{external}"), &token)
                    .await?;
                let external: IpAddr = address(external)?;
                for local in lines(locals) {
                    told.push(Told {
                        local: Some(address(&local)?),
                        external,
                    });
                }
            }
        }
        Ok(told)
    }

    async fn gcp(&self) -> Result<Vec<Told>, String> {
        const PATH: &str = "/computeMetadata/v1/instance/network-interfaces/?recursive=true";
        let asked = [("metadata-flavor", "Google")];
        let answer = self.request(Method::GET, PATH, &asked).await?;
        let (headers, text) = answer.ok_or("it knows no interfaces")?;
        // A service of another cloud may answer anything.
        if headers
            .get("metadata-flavor")
            .is_none_or(|flavor| flavor != "Google")
        {
            return Err("it is no service of Google".into());
        }
        let interfaces: Value =
            serde_json::from_str(&text).map_err(|error| format!("{PATH} is no JSON: {error}"))?;
        let mut told = Vec::new();
        for interface in array(&interfaces) {
            let configs = [
                (&interface["ip"], &interface["accessConfigs"], "externalIp"),
                (
                    &interface["ipv6s"][0],
                    &interface["ipv6AccessConfigs"],
                    "externalIpv6",
                ),
            ];
            for (local, configs, key) in configs {
                for config in array(configs) {
                    told.extend(pair(local, &config[key])?);
                }
            }
        }
        Ok(told)
    }

    /// Basic addresses stand beside the private ones, standard ones with the load balancer's.
    async fn azure(&self) -> Result<Vec<Told>, String> {
        const INTERFACES: &str = "/metadata/instance/network/interface?api-version=2021-02-01";
        const STANDARD: &str = "/metadata/loadbalancer?api-version=2020-10-01";
        let asked = [("metadata", "true")];
        let mut told = Vec::new();
        for interface in array(&self.json(INTERFACES, &asked).await?) {
            for family in ["ipv4", "ipv6"] {
                for address in array(&interface[family]["ipAddress"]) {
                    told.extend(pair(
                        &address["privateIpAddress"],
                        &address["publicIpAddress"],
                    )?);
                }
            }
        }
        if let Some(text) = self.get(STANDARD, &asked).await? {
            let standard: Value = serde_json::from_str(&text)
                .map_err(|error| format!("{STANDARD} is no JSON: {error}"))?;
            for address in array(&standard["loadbalancer"]["publicIpAddresses"]) {
                told.extend(pair(
                    &address["privateIpAddress"],
                    &address["frontendIpAddress"],
                )?);
            }
        }
        Ok(told)
    }

    /// A droplet's own address is on its interface; a reserved one leads to the anchor address.
    async fn digitalocean(&self) -> Result<Vec<Told>, String> {
        let all = self.json("/metadata/v1.json", &[]).await?;
        let public = &all["interfaces"]["public"][0];
        let mut told = Vec::new();
        for reserved in ["reserved_ip", "floating_ip"] {
            let reserved = &all[reserved]["ipv4"];
            if reserved["active"] == true {
                told.extend(pair(
                    &public["anchor_ipv4"]["ip_address"],
                    &reserved["ip_address"],
                )?);
            }
        }
        let own = &public["ipv4"]["ip_address"];
        told.extend(pair(own, own)?);
        Ok(told)
    }

    /// It knows the machine's address, which is on its interface; but not on that of a container.
    async fn hetzner(&self) -> Result<Vec<Told>, String> {
        let text = self.get("/hetzner/v1/metadata/public-ipv4", &[]).await?;
        match text.as_deref().map(str::trim) {
            None | Some("") => Ok(Vec::new()),
            Some(external) => Ok(vec![Told {
                local: None,
                external: address(external)?,
            }]),
        }
    }

    async fn oracle(&self) -> Result<Vec<Told>, String> {
        let asked = [(header::AUTHORIZATION.as_str(), "Bearer Oracle")];
        let interfaces = self.json("/opc/v2/vnics/", &asked).await?;
        let mut told = Vec::new();
        for interface in array(&interfaces) {
            told.extend(pair(&interface["privateIp"], &interface["publicIp"])?);
        }
        if told.is_empty() {
            return Err("it tells no public address".into());
        }
        Ok(told)
    }
}

fn lines(text: Option<String>) -> Vec<String> {
    let text = text.unwrap_or_default();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(str::to_owned).collect()
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// What `local` and `external` say together; nothing where either is missing or empty.
fn pair(local: &Value, external: &Value) -> Result<Option<Told>, String> {
    let text = |value: &Value| value.as_str().map(str::trim).unwrap_or_default().to_owned();
    let (local, external) = (text(local), text(external));
    if local.is_empty() || external.is_empty() {
        return Ok(None);
    }
    let (local, external) = (address(&local)?, address(&external)?);
    Ok((Family::of(local) == Family::of(external)).then_some(Told {
        local: Some(local),
        external,
    }))
}

/// An address as a service writes it: IPv6 may stand in brackets.
fn address(text: &str) -> Result<IpAddr, String> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let ip = bare.parse::<IpAddr>().map(|ip| ip.to_canonical());
    ip.map_err(|_| format!("{} is no address", Printable(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn told(local: Option<&str>, external: &str) -> Told {
        Told {
            local: local.map(ip),
            external: ip(external),
        }
    }

    #[test]
    fn each_local_address_has_its_own() {
        let told = [
            told(Some("10.0.0.5"), "203.0.113.7"),
            told(Some("10.0.0.6"), "203.0.113.8"),
        ];
        let interfaces = [ip("10.0.0.5"), ip("10.0.0.6"), ip("10.0.0.9")];
        let of = |local| external(&told, ip(local), &interfaces);
        assert_eq!(of("10.0.0.5"), Some(ip("203.0.113.7")));
        assert_eq!(of("10.0.0.6"), Some(ip("203.0.113.8")));
        assert_eq!(of("10.0.0.9"), None, "of this host, and without one");
        assert_eq!(of("fd00::9"), None);
    }

    #[test]
    fn a_container_has_the_machines_if_there_is_one() {
        let one = [told(Some("10.0.0.5"), "203.0.113.7")];
        let two = [one[0], told(Some("10.0.0.6"), "203.0.113.8")];
        let inside = [ip("172.17.0.2")];
        assert_eq!(external(&one, inside[0], &inside), Some(ip("203.0.113.7")));
        assert_eq!(external(&two, inside[0], &inside), None, "which of them?");
        let wild = [told(None, "203.0.113.7")];
        assert_eq!(external(&wild, inside[0], &inside), Some(ip("203.0.113.7")));
        let own = [ip("10.0.0.2"), ip("203.0.113.7")];
        assert_eq!(
            external(&wild, own[0], &own),
            None,
            "it leads to the interface"
        );
        let nonsense = [told(Some("172.17.0.2"), "10.0.0.1")];
        assert_eq!(external(&nonsense, inside[0], &inside), None, "private");
    }

    #[test]
    fn addresses_are_read_as_services_write_them() {
        assert_eq!(address("[2001:db8::7]"), Ok(ip("2001:db8::7")));
        assert_eq!(address("203.0.113.7"), Ok(ip("203.0.113.7")));
        assert!(address("<html>").is_err());
    }
}
