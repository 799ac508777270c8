//! The addresses and ports of Services: address families, cluster IPs, node ports.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portcullis_core::labels::Labels;
use serde_json::{Value, json};

use crate::meta;
use crate::refusal::{Cause, Refusal};
use crate::resource::Resource;
use crate::store::State;

/// The ports of Services on nodes.
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30000..=32767;

/// The families of a cluster, the first one for who does not ask.
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// The range of a family, as text.
fn range(family: &str) -> &'static str {
    if family == "IPv6" { "fd00:10:96::/112" } else { "10.96.0.0/16" }
}

/// An address of the range of a family.
fn nth(family: &str, number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    match family {
        "IPv6" => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number).into(),
        _ => Ipv4Addr::new(10, 96, high, low).into(),
    }
}

fn family_of(address: &str) -> Option<&'static str> {
    match address.parse().ok()? {
        IpAddr::V4(_) => Some("IPv4"),
        IpAddr::V6(_) => Some("IPv6"),
    }
}

fn texts(list: &Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

fn is_headless(spec: &Value) -> bool {
    spec["clusterIP"] == "None" || spec["clusterIPs"][0] == "None"
}

/// What an update leaves out stays, and a Service that changes its type or its families loses what
/// only the old ones have, unless its author changed it.
pub(crate) fn keep(old: &Value, new: &mut Value) {
    if !new["spec"].is_object() {
        return;
    }
    drop_what_the_type_has_not(old, new);
    let before = &old["spec"];
    let spec = &mut new["spec"];
    if spec["type"] == "ExternalName" {
        return;
    }
    // Of the two fields that say the same one is often written alone.
    if spec.get("clusterIPs").is_none() || spec["clusterIPs"] == before["clusterIPs"] {
        match spec["clusterIP"].as_str().map(str::to_owned) {
            Some(address) if before["clusterIP"] != *address => {
                spec["clusterIPs"] = json!([address]);
            }
            _ => {
                for field in ["clusterIP", "clusterIPs"] {
                    if let Some(value) = before.get(field) {
                        spec[field] = value.clone();
                    }
                }
            }
        }
    }
    for field in ["ipFamilies", "ipFamilyPolicy"] {
        if spec.get(field).is_none()
            && let Some(value) = before.get(field)
        {
            spec[field] = value.clone();
        }
    }
    let single = "SingleStack";
    if spec["ipFamilyPolicy"] == single && before["ipFamilyPolicy"] != single {
        for field in ["ipFamilies", "clusterIPs"] {
            if spec[field] == before[field]
                && let Some(list) = spec.get_mut(field).and_then(Value::as_array_mut)
            {
                list.truncate(1);
            }
        }
    }
    let on_nodes = has_node_ports(&spec["type"]);
    let known = meta::list(old, "/spec/ports");
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let same = known.iter().find(|old| old["port"] == port["port"]);
        if let Some(number) = same.and_then(|old| old.get("nodePort"))
            && on_nodes
            && port.get("nodePort").is_none()
        {
            port["nodePort"] = number.clone();
        }
    }
}

fn has_node_ports(kind: &Value) -> bool {
    *kind == "NodePort" || *kind == "LoadBalancer"
}

fn drop_what_the_type_has_not(old: &Value, new: &mut Value) {
    let (before, now) = (&old["spec"]["type"], new["spec"]["type"].clone());
    let mut fields: Vec<&str> = Vec::new();
    if has_node_ports(before) && !has_node_ports(&now) {
        fields.extend(["externalTrafficPolicy", "allocateLoadBalancerNodePorts"]);
        let ports = meta::list(old, "/spec/ports").to_vec();
        for port in new["spec"].get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten()
        {
            let kept = ports.iter().any(|old| old["nodePort"] == port["nodePort"]);
            if let Some(port) = port.as_object_mut().filter(|_| kept) {
                port.shift_remove("nodePort");
            }
        }
    }
    if now == "ExternalName" && *before != "ExternalName" {
        fields.extend([
            "clusterIP",
            "clusterIPs",
            "ipFamilies",
            "ipFamilyPolicy",
            "internalTrafficPolicy",
        ]);
    }
    for field in fields {
        if new["spec"].get(field) == old["spec"].get(field)
            && let Some(spec) = new["spec"].as_object_mut()
        {
            spec.shift_remove(field);
        }
    }
}

/// What whoever runs the pods does not do of what a Service asks for.
pub(crate) fn warning(resource: &Resource, object: &Value) -> Option<String> {
    const DEFAULT: i64 = 10800;
    let path = "/spec/sessionAffinityConfig/clientIP/timeoutSeconds";
    let asked = object.pointer(path).and_then(Value::as_i64);
    let told = resource.kind == "Service" && asked.is_some_and(|seconds| seconds != DEFAULT);
    told.then(|| {
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds: there is no timeout here: a client stays \
         with its endpoint for as long as the endpoints stay the same"
            .to_owned()
    })
}

/// Fills in the families of a Service, and says what is wrong with what it asks for.
pub(crate) fn families(object: &mut Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let spec = &mut object["spec"];
    if !spec.is_object() || spec["type"] == "ExternalName" {
        return causes;
    }
    if let Some(address) = spec["clusterIP"].as_str().map(str::to_owned)
        && !address.is_empty()
        && spec.get("clusterIPs").is_none()
    {
        spec["clusterIPs"] = json!([address]);
    }
    let headless = is_headless(spec);
    let addresses = if headless { Vec::new() } else { texts(&spec["clusterIPs"]) };
    let mut families = texts(&spec["ipFamilies"]);
    for (i, family) in families.iter().enumerate() {
        let field = format!("spec.ipFamilies[{i}]");
        if !FAMILIES.contains(&&**family) {
            causes.push(Cause::unsupported(&field, &json!(family), &FAMILIES));
        } else if families[..i].contains(family) {
            let message = format!("Duplicate value: {family:?}");
            causes.push(Cause { field, reason: "FieldValueDuplicate", message });
        }
    }
    for (i, address) in addresses.iter().enumerate() {
        let field = format!("spec.clusterIPs[{i}]");
        match (family_of(address), families.get(i)) {
            (None, _) => {
                let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                causes.push(Cause::invalid(&field, &json!(address), detail));
            }
            (Some(found), Some(wanted)) if found != wanted => {
                let detail = format!(
                    "expected an {wanted} value as indicated by `ipFamilies[{i}]`, got {address}"
                );
                causes.push(Cause::invalid(&field, &json!(address), &detail));
            }
            (Some(found), None) => families.push(found.to_owned()),
            _ => {}
        }
    }
    let policy = meta::text(spec, "/ipFamilyPolicy").to_owned();
    let selects = !meta::strings::<Labels>(spec.get("selector")).is_empty();
    let policy = match &*policy {
        "" if families.len() > 1 || (headless && !selects) => "RequireDualStack".to_owned(),
        "" => "SingleStack".to_owned(),
        _ => policy,
    };
    match &*policy {
        "SingleStack" if families.len() > 1 => {
            let list = if addresses.len() > 1 { "clusterIPs" } else { "ipFamilies" };
            let detail = format!(
                "must be \"RequireDualStack\" or \"PreferDualStack\" when multiple {list} are \
                 specified"
            );
            causes.push(Cause::invalid("spec.ipFamilyPolicy", &json!(policy), &detail));
        }
        "SingleStack" | "PreferDualStack" | "RequireDualStack" => {}
        _ => {
            let known = ["PreferDualStack", "RequireDualStack", "SingleStack"];
            causes.push(Cause::unsupported("spec.ipFamilyPolicy", &json!(policy), &known));
        }
    }
    let wanted = if policy == "SingleStack" { 1 } else { 2 };
    for family in FAMILIES {
        if families.len() < wanted && !families.iter().any(|known| known == family) {
            families.push(family.to_owned());
        }
    }
    spec["ipFamilies"] = json!(families);
    spec["ipFamilyPolicy"] = json!(policy);
    causes
}

/// What an update may not change.
pub(crate) fn update(old: &Value, new: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let (before, now) = (&old["spec"], &new["spec"]);
    let had = before["clusterIPs"].get(0).is_some();
    if now["type"] == "ExternalName" || !had {
        return causes;
    }
    for field in ["clusterIPs", "ipFamilies"] {
        if before[field][0] != now[field][0] {
            let path = format!("spec.{field}[0]");
            causes.push(Cause::invalid(&path, &now[field], "may not change once set"));
        }
    }
    causes
}

/// Gives a Service its addresses and its node ports.
pub(crate) fn allocate(state: &State, object: &mut Value) -> Result<(), Refusal> {
    let Some(resource) = Resource::of_kind("Service") else { return Ok(()) };
    let name = meta::name(object).to_owned();
    let invalid = |cause| Refusal::invalid(resource, &name, &[cause]);
    let others = || {
        state.list(resource, None).map(|(_, service)| service).filter(|service| {
            (meta::name(service), meta::namespace(service)) != (&*name, meta::namespace(object))
        })
    };
    let mut taken: HashSet<i64> = others()
        .flat_map(|service| meta::list(service, "/spec/ports"))
        .filter_map(|port| port["nodePort"].as_i64())
        .collect();
    let kind = object["spec"]["type"].clone();
    if kind != "ExternalName" {
        let addresses = match is_headless(&object["spec"]) {
            true => vec!["None".to_owned()],
            false => {
                let used: HashSet<String> =
                    others().flat_map(|service| texts(&service["spec"]["clusterIPs"])).collect();
                let given = texts(&object["spec"]["clusterIPs"]);
                let families = texts(&object["spec"]["ipFamilies"]);
                let each = families.iter().enumerate();
                let each = each.map(|(i, family)| address(family, given.get(i), i, &used));
                each.collect::<Result<_, _>>().map_err(invalid)?
            }
        };
        if !addresses.is_empty() {
            object["spec"]["clusterIP"] = json!(addresses[0]);
            object["spec"]["clusterIPs"] = json!(addresses);
        }
    }
    let ports = object["spec"].get_mut("ports").and_then(Value::as_array_mut);
    for (i, port) in ports.into_iter().flatten().enumerate().filter(|_| has_node_ports(&kind)) {
        let field = format!("spec.ports[{i}].nodePort");
        let number = node_port(port["nodePort"].as_i64(), &field, &taken).map_err(invalid)?;
        taken.insert(number);
        port["nodePort"] = json!(number);
    }
    if let Some(map) = object.as_object_mut() {
        map.entry("status").or_insert_with(|| json!({"loadBalancer": {}}));
    }
    Ok(())
}

/// The address that is asked for, or one that is free.
fn address(
    family: &str,
    given: Option<&String>,
    at: usize,
    used: &HashSet<String>,
) -> Result<String, Cause> {
    let Some(given) = given.filter(|given| !given.is_empty()) else {
        let mut free = (10..u16::MAX).map(|number| nth(family, number).to_string());
        return free.find(|free| !used.contains(free)).ok_or_else(|| {
            let field = format!("spec.clusterIPs[{at}]");
            Cause::forbidden(&field, "failed to allocate IP: range is full")
        });
    };
    let inside = given.parse().is_ok_and(|address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets()[..2] == [10, 96],
        IpAddr::V6(v6) => v6.segments()[..7] == [0xfd00, 0x10, 0x96, 0, 0, 0, 0],
    });
    let edge = [0, u16::MAX].map(|number| nth(family, number).to_string()).contains(given);
    let detail = if !inside || edge {
        let range = range(family);
        format!(
            "failed to allocate IP {given}: the provided network does not match the current range \
             {range}"
        )
    } else if used.contains(given) {
        format!("failed to allocate IP {given}: provided IP is already allocated")
    } else {
        return Ok(given.clone());
    };
    Err(Cause::invalid("spec.clusterIPs", &json!([given]), &detail))
}

fn node_port(given: Option<i64>, field: &str, taken: &HashSet<i64>) -> Result<i64, Cause> {
    let detail = match given {
        None | Some(0) => {
            return NODE_PORTS.clone().find(|number| !taken.contains(number)).ok_or_else(|| {
                Cause::forbidden(field, "failed to allocate a nodePort: range is full")
            });
        }
        Some(number) if !NODE_PORTS.contains(&number) => {
            "provided port is not in the valid range. The range of valid ports is 30000-32767"
        }
        Some(number) if taken.contains(&number) => "provided port is already allocated",
        Some(number) => return Ok(number),
    };
    Err(Cause::invalid(field, &json!(given), detail))
}
