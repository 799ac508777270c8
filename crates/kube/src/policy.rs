//! NetworkPolicy from a document.

use portcullis_core::api::{IpBlock, NetworkPolicy, NetworkPolicySpec, Peer, Port, Rule};

use crate::decode::{Cursor, Fields, Problems};
use crate::fields::OBJECT_META;
use crate::metadata;

const ROOT: Fields = Fields {
    names: &["apiVersion", "kind", "metadata", "spec", "status"],
    nearby: &[("spec", SPEC.names), ("metadata", OBJECT_META)],
};
const SPEC: Fields = Fields {
    names: &["podSelector", "policyTypes", "ingress", "egress"],
    nearby: &[("ingress[].from[]", PEER), ("ingress[]", &["from", "ports"]), ("egress[]", &["to"])],
};
const INGRESS: Fields = Fields {
    names: &["from", "ports"],
    nearby: &[("from[]", PEER), ("ports[]", PORT), ("egress[]", &["to"])],
};
const EGRESS: Fields = Fields {
    names: &["to", "ports"],
    nearby: &[("to[]", PEER), ("ports[]", PORT), ("ingress[]", &["from"])],
};
const PEER: &[&str] = &["podSelector", "namespaceSelector", "ipBlock"];
const PORT: &[&str] = &["protocol", "port", "endPort"];
const BLOCK: &[&str] = &["cidr", "except"];

/// Decodes a NetworkPolicy. Nothing of it is validated.
pub(crate) fn decode(root: &Cursor<'_, '_>, namespace: &str, out: &mut Problems) -> NetworkPolicy {
    root.fields(ROOT, out);
    let metadata = metadata::decode(root, namespace, out);
    NetworkPolicy {
        name: metadata.name,
        namespace: metadata.namespace,
        labels: metadata.labels,
        mode: metadata.mode,
        spec: root.get("spec").map(|c| spec(&c, out)).unwrap_or_default(),
    }
}

fn spec(at: &Cursor<'_, '_>, out: &mut Problems) -> NetworkPolicySpec {
    at.fields(SPEC, out);
    NetworkPolicySpec {
        pod_selector: at.get("podSelector").map(|c| c.selector(out)).unwrap_or_default(),
        ingress: at.get("ingress").map(|c| c.objects(out, |c, out| rule(c, INGRESS, out))),
        egress: at.get("egress").map(|c| c.objects(out, |c, out| rule(c, EGRESS, out))),
        policy_types: at.get("policyTypes").map(|c| c.strings(out)),
    }
}

fn rule(at: &Cursor<'_, '_>, fields: Fields, out: &mut Problems) -> Rule {
    at.fields(fields, out);
    let peers = fields.names[0];
    Rule {
        peers: at.get(peers).map(|c| c.objects(out, peer)),
        ports: at.get("ports").map(|c| c.objects(out, port)),
    }
}

fn peer(at: &Cursor<'_, '_>, out: &mut Problems) -> Peer {
    at.fields(Fields { names: PEER, nearby: &[("ipBlock", BLOCK)] }, out);
    Peer {
        pod_selector: at.get("podSelector").map(|c| c.selector(out)),
        namespace_selector: at.get("namespaceSelector").map(|c| c.selector(out)),
        ip_block: at.get("ipBlock").map(|c| ip_block(&c, out)),
    }
}

fn ip_block(at: &Cursor<'_, '_>, out: &mut Problems) -> IpBlock {
    at.fields(Fields { names: BLOCK, nearby: &[] }, out);
    IpBlock {
        cidr: at.get("cidr").map(|c| c.string(out)).unwrap_or_default(),
        except: at.get("except").map(|c| c.strings(out)).unwrap_or_default(),
    }
}

fn port(at: &Cursor<'_, '_>, out: &mut Problems) -> Port {
    at.fields(Fields { names: PORT, nearby: &[] }, out);
    Port {
        protocol: at.get("protocol").map(|c| c.string(out)),
        port: at.get("port").and_then(|c| c.int_or_string(out)),
        end_port: at.get("endPort").and_then(|c| c.int(out)),
    }
}
