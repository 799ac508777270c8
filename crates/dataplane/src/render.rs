//! A plan as the text that `nft -f` reads: for people, for snapshots, and as the oracle of what
//! goes over netlink.

use std::fmt::{self, Write};

use portcullis_core::net::{Family, Protocol};

use crate::encode::SNAP_BYTES;
use crate::plan::{
    ChainId, Expression, Field, Key, Limit, Plan, Rule, Set, SetId, TABLE, Type, Verdict,
};

/// The table as `nft -f` takes it: chains declared, then sets and maps, then the rules.
pub fn render(plan: &Plan) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = table(plan, &mut text);
    text
}

fn table(plan: &Plan, out: &mut String) -> fmt::Result {
    writeln!(out, "table inet {TABLE} {{")?;
    // The elements of maps name chains.
    for id in plan.chains.keys() {
        writeln!(out, "\tchain {id} {{")?;
        if *id == ChainId::Base {
            writeln!(out, "\t\ttype filter hook forward priority filter; policy accept;")?;
        }
        writeln!(out, "\t}}")?;
    }
    for (id, set) in &plan.sets {
        writeln!(out)?;
        self::set(*id, set, out)?;
    }
    for (id, chain) in &plan.chains {
        writeln!(out, "\n\tchain {id} {{")?;
        for rule in &chain.rules {
            writeln!(out, "\t\t{}", self::rule(rule))?;
        }
        writeln!(out, "\t}}")?;
    }
    writeln!(out, "}}")
}

fn set(id: SetId, set: &Set, out: &mut String) -> fmt::Result {
    let parts: Vec<&str> = set.key.iter().map(|part| type_name(*part)).collect();
    let verdict = if set.map { " : verdict" } else { "" };
    writeln!(out, "\t{} {id} {{", if set.map { "map" } else { "set" })?;
    writeln!(out, "\t\ttype {}{verdict}", parts.join(" . "))?;
    if set.interval {
        writeln!(out, "\t\tflags interval")?;
    }
    if set.counted {
        writeln!(out, "\t\tcounter")?;
    }
    if set.dynamic {
        let (size, seconds) = (Set::HEARD, Set::QUIET.as_secs());
        writeln!(out, "\t\tsize {size}\n\t\tflags dynamic,timeout\n\t\ttimeout {seconds}s")?;
        return writeln!(out, "\t}}");
    }
    if set.is_empty() {
        return writeln!(out, "\t}}");
    }
    writeln!(out, "\t\telements = {{")?;
    for element in set.elements() {
        write!(out, "\t\t\t{}", key(element.key))?;
        if let Some(verdict) = element.verdict {
            write!(out, " : {}", self::verdict(verdict))?;
        }
        writeln!(out, ",")?;
    }
    writeln!(out, "\t\t}}\n\t}}")
}

fn type_name(part: Type) -> &'static str {
    match part {
        Type::Address(Family::V4) => "ipv4_addr",
        Type::Address(Family::V6) => "ipv6_addr",
        Type::Protocol => "inet_proto",
        Type::Port => "inet_service",
    }
}

fn key(key: Key) -> String {
    match key {
        Key::Pair(source, destination) => format!("{source} . {destination}"),
        Key::Address(address) => address.to_string(),
        Key::Addresses(range) if range.first == range.last => range.first.to_string(),
        Key::Addresses(range) => format!("{}-{}", range.first, range.last),
        Key::Service(address, protocol, port) => {
            let known = Protocol::ALL.into_iter().find(|known| known.number() == protocol);
            let protocol = known.map_or(protocol.to_string(), protocol_name);
            format!("{address} . {protocol} . {port}")
        }
        Key::Ports(ports) if ports.first == ports.last => {
            format!("{} . {}", ports.first, protocol_name(ports.protocol))
        }
        Key::Ports(ports) => {
            format!("{}-{} . {}", ports.first, ports.last, protocol_name(ports.protocol))
        }
    }
}

fn protocol_name(protocol: Protocol) -> String {
    protocol.as_str().to_ascii_lowercase()
}

fn rule(rule: &Rule) -> String {
    let parts: Vec<String> = rule.0.iter().map(expression).collect();
    parts.join(" ")
}

fn expression(part: &Expression) -> String {
    match part {
        Expression::KnownConnection => "ct state established,related".to_owned(),
        Expression::NeighborDiscovery => "ip6 hoplimit 255 icmpv6 type 133-137".to_owned(),
        Expression::Lookup(fields, set) => format!("{} @{set}", self::fields(fields)),
        Expression::Absent(fields, set) => format!("{} != @{set}", self::fields(fields)),
        Expression::Map(fields, map) => format!("{} vmap @{map}", self::fields(fields)),
        Expression::Count(_) | Expression::Tally(_) => "counter".to_owned(),
        Expression::Exceeds(field, set, limit) => {
            let field = fields(&[*field]);
            format!("update @{set} {{ {field} {} }}", rate("over ", *limit))
        }
        Expression::Tell(prefix, log) => {
            let (group, limit) = (log.group, rate("", Limit::of_all(*log)));
            format!("{limit} log prefix \"{prefix}\" group {group} snaplen {SNAP_BYTES} counter")
        }
        Expression::Verdict(verdict) => self::verdict(*verdict),
    }
}

fn rate(over: &str, Limit { rate, burst }: Limit) -> String {
    format!("limit rate {over}{rate}/second burst {burst} packets")
}

fn fields(fields: &[Field]) -> String {
    let names = fields.iter().map(|field| match field {
        Field::Source(Family::V4) => "ip saddr",
        Field::Source(Family::V6) => "ip6 saddr",
        Field::Destination(Family::V4) => "ip daddr",
        Field::Destination(Family::V6) => "ip6 daddr",
        Field::Protocol => "meta l4proto",
        Field::Port => "th dport",
    });
    names.collect::<Vec<_>>().join(" . ")
}

fn verdict(verdict: Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Return => "return".to_owned(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
    }
}
