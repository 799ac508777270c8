//! Which names there are, and what they stand for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use domain::base::iana::Rtype;
use domain::base::name::ToName;
use domain::base::rdata::RecordData;
use domain::rdata::{A, Aaaa, Cname, Ptr, Srv, Txt, ZoneRecordData};

use super::DOMAIN;
use crate::services::{EndpointSlice, Service};

pub(super) type Name = domain::base::Name<Vec<u8>>;
pub(super) type Data = ZoneRecordData<Vec<u8>, Name>;

/// The names of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zone {
    records: BTreeMap<Name, BTreeSet<Data>>,
    /// Names that have nothing themselves, and other names below.
    between: BTreeSet<Name>,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// Records, of any type; none is NODATA.
    Records(BTreeSet<Data>),
    /// The name does not exist.
    Nothing,
}

/// The version of the specification that the names are by; it is served as a name itself.
const SPECIFICATION: &str = "1.1.0";

impl Zone {
    /// The names of Services, and of endpoints of headless ones. As for addresses, only endpoints
    /// that are ready count: a headless Service without any does not exist.
    pub fn new(services: &[Service], slices: &[EndpointSlice]) -> Zone {
        let mut zone = Zone::default();
        if let Ok(text) = Txt::build_from_slice(SPECIFICATION.as_bytes()) {
            zone.add(&format!("dns-version.{DOMAIN}"), Data::Txt(text));
        }
        for service in services {
            let name = format!("{}.{}.svc.{DOMAIN}", service.name, service.namespace);
            if let Some(other) = &service.external_name {
                zone.name(other).into_iter().for_each(|o| zone.add(&name, Cname::new(o).into()));
            } else if service.cluster_ips.is_empty() {
                let is_its = |slice: &&EndpointSlice| {
                    slice.namespace == service.namespace && slice.service == service.name
                };
                slices.iter().filter(is_its).for_each(|slice| zone.add_headless(&name, slice));
            } else {
                service.cluster_ips.iter().for_each(|ip| zone.add_address(&name, &name, *ip));
                for port in &service.ports {
                    zone.add_service(&name, &port.name, port.protocol.as_str(), port.port, &name);
                }
            }
        }
        zone
    }

    /// What the name stands for.
    pub(super) fn find(&self, name: &impl ToName) -> Found {
        let name: Name = name.to_name();
        if let Some(records) = self.records.get(&name) {
            return Found::Records(records.clone());
        }
        if self.between.contains(&name) {
            return Found::Records(BTreeSet::new());
        }
        match pod_address(&name) {
            Some(address) => Found::Records([address_data(address)].into()),
            None => Found::Nothing,
        }
    }

    fn add_headless(&mut self, name: &str, slice: &EndpointSlice) {
        for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.ready) {
            for address in &endpoint.addresses {
                let host = endpoint.hostname.clone().unwrap_or_else(|| dashed(*address));
                let own = format!("{host}.{name}");
                self.add(name, address_data(*address));
                self.add_address(&own, &own, *address);
                for port in &slice.ports {
                    self.add_service(name, &port.name, port.protocol.as_str(), port.port, &own);
                }
            }
        }
    }

    /// An address, and the way back from it.
    fn add_address(&mut self, name: &str, of_address: &str, address: IpAddr) {
        self.add(name, address_data(address));
        if let (Ok(reverse), Some(name)) = (Name::reverse_from_addr(address), self.name(of_address))
        {
            self.insert(reverse, Ptr::new(name).into());
        }
    }

    /// Where a named port is served; ports without a name have none here.
    fn add_service(&mut self, name: &str, port: &str, protocol: &str, number: u16, target: &str) {
        if let Some(target) = self.name(target).filter(|_| !port.is_empty()) {
            let name = format!("_{port}._{}.{name}", protocol.to_ascii_lowercase());
            self.add(&name, Srv::new(0, 100, number, target).into());
        }
    }

    /// A name that is too long for DNS is not there.
    fn name(&self, text: &str) -> Option<Name> {
        Name::vec_from_str(text).ok()
    }

    fn add(&mut self, name: &str, data: Data) {
        self.name(name).into_iter().for_each(|name| self.insert(name, data.clone()));
    }

    fn insert(&mut self, name: Name, data: Data) {
        let mut above = name.parent();
        while let Some(parent) = above.filter(|parent| !parent.is_root()) {
            above = parent.parent();
            self.between.insert(parent.to_name());
        }
        self.records.entry(name).or_default().insert(data);
    }
}

/// The records of a type among some.
pub(super) fn of_type(records: &BTreeSet<Data>, wanted: Rtype) -> impl Iterator<Item = &Data> {
    let fits = move |data: &&Data| wanted == Rtype::ANY || data.rtype() == wanted;
    records.iter().filter(fits)
}

fn address_data(address: IpAddr) -> Data {
    match address {
        IpAddr::V4(address) => A::new(address).into(),
        IpAddr::V6(address) => Aaaa::new(address).into(),
    }
}

/// An address as a label: `10-244-1-5`, `fd00-10-244--5`.
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The address in `10-244-1-5.shop.pod.cluster.local`, whoever has it, and in whatever namespace.
fn pod_address(name: &Name) -> Option<IpAddr> {
    let text = name.to_string().to_ascii_lowercase();
    let (label, namespace) = text.strip_suffix(&format!(".pod.{DOMAIN}"))?.split_once('.')?;
    if namespace.contains('.') {
        return None;
    }
    let v4 = label.replace('-', ".").parse().map(IpAddr::V4).ok();
    v4.or_else(|| label.replace('-', ":").parse().map(IpAddr::V6).ok())
}
