//! From a question to its answer: bytes to bytes, without sockets.

use std::collections::BTreeSet;

use domain::base::iana::{Class, Opcode, Rcode, Rtype};
use domain::base::message_builder::{AnswerBuilder, PushError};
use domain::base::name::ToName;
use domain::base::rdata::RecordData;
use domain::base::{Message, MessageBuilder, Serial, StaticCompressor, Ttl};
use domain::rdata::Soa;

use super::DOMAIN;
use super::zone::{Data, Found, Name, Zone, of_type};

/// How a question came, which limits what fits into its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// 512 bytes, or what the asker says that it takes.
    Udp,
    /// All that a message can have.
    Tcp,
}

/// Seconds for which an answer may be kept. The names of a lab change quickly.
const TTL: u32 = 5;
const LEAST_LIMIT: u16 = 512;
/// A larger datagram might be cut into fragments on its way.
const MOST_LIMIT: u16 = 1232;
/// How many names an alias may lead through.
const ALIASES: usize = 8;

/// Answers a message. `None` for what is no question, and gets no answer.
pub fn answer(zone: &Zone, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let message = Message::from_octets(question).ok()?;
    if message.header().qr() {
        return None;
    }
    let limit = match (transport, message.opt()) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, None) => LEAST_LIMIT,
        (Transport::Udp, Some(opt)) => opt.udp_payload_size().clamp(LEAST_LIMIT, MOST_LIMIT),
    };
    let full = write(zone, &message, Some(limit)).or_else(|_| write(zone, &message, None));
    full.ok()
}

/// With no limit, the answer is only that there is more than fits.
fn write(zone: &Zone, message: &Message<&[u8]>, limit: Option<u16>) -> Result<Vec<u8>, PushError> {
    let target = StaticCompressor::new(Vec::new());
    let Ok(mut builder) = MessageBuilder::from_target(target);
    // The limit itself is one more than what fits.
    builder.set_push_limit(usize::from(limit.unwrap_or(LEAST_LIMIT)) + 1);
    let question = match message.sole_question() {
        Ok(question) if message.header().opcode() == Opcode::QUERY => question,
        Ok(_) => return finish(builder.start_answer(message, Rcode::NOTIMP)?, message),
        Err(_) => {
            let mut builder = builder.answer();
            let header = builder.header_mut();
            header.set_id(message.header().id());
            header.set_qr(true);
            header.set_opcode(message.header().opcode());
            header.set_rcode(Rcode::FORMERR);
            return Ok(builder.finish().into_target());
        }
    };
    if question.qclass() != Class::IN {
        return finish(builder.start_answer(message, Rcode::REFUSED)?, message);
    }
    let mut builder = builder.start_answer(message, Rcode::NOERROR)?;
    let ours: Option<Name> = Name::vec_from_str(DOMAIN).ok();
    let ours = ours.filter(|domain| question.qname().ends_with(domain));
    builder.header_mut().set_aa(ours.is_some());
    if limit.is_none() {
        builder.header_mut().set_tc(true);
        return finish(builder, message);
    }

    let mut name: Name = question.qname().to_name();
    let mut targets = BTreeSet::new();
    for _ in 0..ALIASES {
        let Found::Records(records) = zone.find(&name) else {
            // Of an alias, only the name that was asked for has to be there.
            if name == question.qname() {
                builder.header_mut().set_rcode(Rcode::NXDOMAIN);
            }
            break;
        };
        for data in of_type(&records, question.qtype()) {
            builder.push((&name, TTL, data))?;
            if let Data::Srv(service) = data {
                targets.insert(service.target().clone());
            }
        }
        match of_type(&records, Rtype::CNAME).next() {
            Some(alias @ Data::Cname(other)) if question.qtype() != alias.rtype() => {
                if question.qtype() != Rtype::ANY {
                    builder.push((&name, TTL, alias))?;
                }
                name = other.cname().clone();
            }
            _ => break,
        }
    }
    let nothing = builder.counts().ancount() == 0;
    let mut builder = builder.authority();
    if let Some(domain) = ours.filter(|_| nothing) {
        builder.push((&domain, TTL, authority(&domain)))?;
    }
    let mut builder = builder.additional();
    for target in targets {
        let Found::Records(records) = zone.find(&target) else { continue };
        for data in records.iter().filter(|data| matches!(data, Data::A(_) | Data::Aaaa(_))) {
            builder.push((&target, TTL, data))?;
        }
    }
    if message.opt().is_some() {
        builder.opt(|opt| {
            opt.set_udp_payload_size(MOST_LIMIT);
            Ok(())
        })?;
    }
    Ok(builder.finish().into_target())
}

fn finish(
    builder: AnswerBuilder<StaticCompressor<Vec<u8>>>,
    message: &Message<&[u8]>,
) -> Result<Vec<u8>, PushError> {
    let mut builder = builder.additional();
    if message.opt().is_some() {
        builder.opt(|opt| {
            opt.set_udp_payload_size(MOST_LIMIT);
            Ok(())
        })?;
    }
    Ok(builder.finish().into_target())
}

/// Says for how long it may be kept that a name is not there.
fn authority(domain: &Name) -> Soa<Name> {
    let below = |label| Name::vec_from_str(&format!("{label}.{DOMAIN}")).ok();
    let name = |label| below(label).unwrap_or_else(|| domain.clone());
    let seconds = Ttl::from_secs;
    Soa::new(
        name("ns.dns"),
        name("hostmaster"),
        Serial(1),
        seconds(7200),
        seconds(1800),
        seconds(86400),
        seconds(TTL),
    )
}

#[cfg(test)]
mod tests {
    use domain::base::ParsedRecord;
    use domain::base::header::Flags;
    use domain::rdata::AllRecordData;
    use portcullis_core::net::Protocol;
    use proptest::prelude::{any, proptest};

    use super::*;
    use crate::services::{Endpoint, EndpointPort, EndpointSlice, Service, ServicePort};

    /// A Service of both families, one of IPv4 only, a headless one with a named pod and one that is
    /// not ready, one without endpoints, and an alias.
    fn zone() -> Zone {
        let ip = |text: &str| text.parse().unwrap();
        let service = |name: &str, cluster_ips: &[&str]| Service {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            cluster_ips: cluster_ips.iter().map(|text| ip(text)).collect(),
            ports: vec![ServicePort {
                name: "http".to_owned(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
            }],
            ..Service::default()
        };
        let endpoint = |address: &str, ready, hostname: Option<&str>| Endpoint {
            addresses: vec![ip(address)],
            ready,
            hostname: hostname.map(str::to_owned),
            ..Endpoint::default()
        };
        let slice = EndpointSlice {
            namespace: "shop".to_owned(),
            service: "db".to_owned(),
            ports: vec![EndpointPort {
                name: "sql".to_owned(),
                protocol: Protocol::Tcp,
                port: 5432,
            }],
            endpoints: vec![
                endpoint("10.244.1.5", true, Some("db-0")),
                endpoint("10.244.1.6", true, None),
                endpoint("10.244.1.7", false, Some("db-2")),
            ],
        };
        let services = [
            service("web", &["10.96.0.7", "fd00:10:96::7"]),
            service("api", &["10.96.0.8"]),
            service("db", &[]),
            service("empty", &[]),
            Service {
                external_name: Some("web.shop.svc.cluster.local".to_owned()),
                ..service("shop", &[])
            },
            Service { external_name: Some("www.example.com".to_owned()), ..service("away", &[]) },
        ];
        Zone::new(&services, &[slice])
    }

    fn question(name: &str, rtype: Rtype) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec();
        builder.header_mut().set_id(7);
        builder.header_mut().set_rd(true);
        let mut builder = builder.question();
        builder.push((Name::vec_from_str(name).unwrap(), rtype)).unwrap();
        builder.finish()
    }

    /// The answer as `NXDOMAIN`, `NODATA`, or what the records say.
    fn ask(name: &str, rtype: Rtype) -> String {
        let answer = answer(&zone(), &question(name, rtype), Transport::Udp).unwrap();
        let message = Message::from_octets(answer).unwrap();
        assert_eq!(message.header().id(), 7);
        assert!(message.header().qr());
        let records: Vec<String> = message.answer().unwrap().map(|r| text(r.unwrap())).collect();
        let soa = message.authority().unwrap().count();
        let ours = name.to_ascii_lowercase().ends_with(DOMAIN);
        assert_eq!(
            message.header().flags(),
            Flags { qr: true, rd: true, aa: ours, ..Flags::default() }
        );
        assert_eq!(
            soa,
            usize::from(ours && records.is_empty()),
            "an empty answer says for how long"
        );
        match message.header().rcode() {
            Rcode::NOERROR if records.is_empty() => "NODATA".to_owned(),
            Rcode::NOERROR => records.join(", "),
            other => format!("{other}"),
        }
    }

    fn text(record: ParsedRecord<'_, Vec<u8>>) -> String {
        let record = record.to_any_record::<AllRecordData<_, _>>().unwrap();
        format!("{} {}", record.rtype(), record.data())
    }

    #[test]
    fn a_service_has_its_addresses() {
        assert_eq!(ask("web.shop.svc.cluster.local", Rtype::A), "A 10.96.0.7");
        assert_eq!(ask("web.shop.svc.cluster.local", Rtype::AAAA), "AAAA fd00:10:96::7");
        assert_eq!(ask("WEB.Shop.svc.CLUSTER.local", Rtype::A), "A 10.96.0.7");
        let srv = "SRV 0 100 80 web.shop.svc.cluster.local";
        assert_eq!(ask("_http._tcp.web.shop.svc.cluster.local", Rtype::SRV), srv);
        let ptr = "PTR web.shop.svc.cluster.local.";
        assert_eq!(ask("7.0.96.10.in-addr.arpa", Rtype::PTR), ptr);
    }

    #[test]
    fn a_headless_service_has_those_of_its_ready_endpoints() {
        assert_eq!(ask("db.shop.svc.cluster.local", Rtype::A), "A 10.244.1.5, A 10.244.1.6");
        assert_eq!(ask("db-0.db.shop.svc.cluster.local", Rtype::A), "A 10.244.1.5");
        assert_eq!(ask("10-244-1-6.db.shop.svc.cluster.local", Rtype::A), "A 10.244.1.6");
        assert_eq!(ask("db-2.db.shop.svc.cluster.local", Rtype::A), "NXDOMAIN");
        assert_eq!(
            ask("_sql._tcp.db.shop.svc.cluster.local", Rtype::SRV),
            "SRV 0 100 5432 10-244-1-6.db.shop.svc.cluster.local, \
             SRV 0 100 5432 db-0.db.shop.svc.cluster.local"
        );
        let ptr = "PTR db-0.db.shop.svc.cluster.local.";
        assert_eq!(ask("5.1.244.10.in-addr.arpa", Rtype::PTR), ptr);
    }

    #[test]
    fn a_name_that_exists_without_such_records_is_told_from_one_that_does_not() {
        assert_eq!(ask("api.shop.svc.cluster.local", Rtype::AAAA), "NODATA");
        assert_eq!(ask("shop.svc.cluster.local", Rtype::A), "NODATA");
        assert_eq!(ask("_tcp.web.shop.svc.cluster.local", Rtype::A), "NODATA");
        assert_eq!(ask("web.other.svc.cluster.local", Rtype::A), "NXDOMAIN");
        assert_eq!(ask("empty.shop.svc.cluster.local", Rtype::A), "NXDOMAIN");
        assert_eq!(ask("web.shop.svc.cluster.local.shop.svc.cluster.local", Rtype::A), "NXDOMAIN");
    }

    #[test]
    fn nothing_else_exists() {
        assert_eq!(ask("www.example.com", Rtype::A), "NXDOMAIN");
        assert_eq!(ask("9.9.9.9.in-addr.arpa", Rtype::PTR), "NXDOMAIN");
        assert_eq!(ask("com", Rtype::A), "NXDOMAIN");
    }

    #[test]
    fn an_alias_leads_on_as_far_as_the_cluster_goes() {
        let alias = "CNAME web.shop.svc.cluster.local.";
        assert_eq!(ask("shop.shop.svc.cluster.local", Rtype::A), format!("{alias}, A 10.96.0.7"));
        assert_eq!(ask("shop.shop.svc.cluster.local", Rtype::CNAME), alias);
        assert_eq!(ask("away.shop.svc.cluster.local", Rtype::A), "CNAME www.example.com.");
    }

    #[test]
    fn a_pod_has_a_name_by_its_address() {
        assert_eq!(ask("10-244-1-5.shop.pod.cluster.local", Rtype::A), "A 10.244.1.5");
        assert_eq!(
            ask("fd00-10-244--5.shop.pod.cluster.local", Rtype::AAAA),
            "AAAA fd00:10:244::5"
        );
        assert_eq!(ask("10-244-1-5.shop.pod.cluster.local", Rtype::AAAA), "NODATA");
        assert_eq!(ask("10-244-1.shop.pod.cluster.local", Rtype::A), "NXDOMAIN");
    }

    #[test]
    fn what_does_not_fit_is_asked_again_over_tcp() {
        let endpoint = |n: u8| Endpoint {
            addresses: vec![[10, 244, 1, n].into()],
            ready: true,
            ..Endpoint::default()
        };
        let headless =
            Service { namespace: "shop".to_owned(), name: "many".to_owned(), ..Service::default() };
        let slice = EndpointSlice {
            namespace: "shop".to_owned(),
            service: "many".to_owned(),
            endpoints: (1..=100).map(endpoint).collect(),
            ..EndpointSlice::default()
        };
        let zone = Zone::new(&[headless], &[slice]);
        let question = question("many.shop.svc.cluster.local", Rtype::A);
        let asked = |transport| {
            let answer = answer(&zone, &question, transport).unwrap();
            let message = Message::from_octets(answer).unwrap();
            (message.header().tc(), message.header_counts().ancount(), message.as_slice().len())
        };
        let (cut, records, bytes) = asked(Transport::Udp);
        assert!(cut && records == 0 && bytes <= 512, "{records} records, {bytes} bytes");
        let (cut, records, _) = asked(Transport::Tcp);
        assert_eq!((cut, records), (false, 100));
    }

    #[test]
    fn an_asker_that_takes_more_is_told_more() {
        let mut builder = MessageBuilder::new_vec().question();
        let name = Name::vec_from_str("web.shop.svc.cluster.local").unwrap();
        builder.push((name, Rtype::A)).unwrap();
        let mut builder = builder.additional();
        builder
            .opt(|opt| {
                opt.set_udp_payload_size(4096);
                Ok(())
            })
            .unwrap();
        let answer = answer(&zone(), &builder.finish(), Transport::Udp).unwrap();
        let message = Message::from_octets(answer).unwrap();
        assert_eq!(message.opt().unwrap().udp_payload_size(), MOST_LIMIT);
        assert_eq!(message.header_counts().ancount(), 1);
    }

    #[test]
    fn what_is_no_question_for_this_server_is_told_so() {
        let rcode = |bytes: &[u8]| {
            let answer = answer(&zone(), bytes, Transport::Udp).unwrap();
            Message::from_octets(answer).unwrap().header().rcode()
        };
        let good = question("web.shop.svc.cluster.local", Rtype::A);
        let mut update = good.clone();
        update[2] |= 5 << 3;
        assert_eq!(rcode(&update), Rcode::NOTIMP);
        let mut chaos = good.clone();
        let last = chaos.len() - 1;
        chaos[last] = 3;
        assert_eq!(rcode(&chaos), Rcode::REFUSED);
        let mut none = good[..12].to_vec();
        none[5] = 0;
        assert_eq!(rcode(&none), Rcode::FORMERR);
        assert_eq!(rcode(&good[..20]), Rcode::FORMERR);
        let mut response = good.clone();
        response[2] |= 0x80;
        assert_eq!(answer(&zone(), &response, Transport::Udp), None);
        assert_eq!(answer(&zone(), &good[..11], Transport::Udp), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fail(bytes: Vec<u8>, at in any::<proptest::sample::Index>(), byte: u8) {
            let zone = zone();
            let _ = answer(&zone, &bytes, Transport::Udp);
            let mut nearly = question("_http._tcp.web.shop.svc.cluster.local", Rtype::SRV);
            let at = at.index(nearly.len());
            nearly[at] = byte;
            for transport in [Transport::Udp, Transport::Tcp] {
                if let Some(answer) = answer(&zone, &nearly, transport) {
                    assert!(Message::from_octets(answer).is_ok());
                }
            }
        }
    }
}
