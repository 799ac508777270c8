//! The network plugins that the input deploys, as far as they matter to policies.

use crate::context::Context;

/// What a network plugin does with policies.
#[derive(Debug)]
pub(crate) struct Plugin {
    /// What people call it.
    pub(crate) name: &'static str,
    /// What its DaemonSet is called, with or without `-ds` at the end.
    daemon_sets: &'static [&'static str],
    pub(crate) enforces: bool,
    pub(crate) sctp: Sctp,
}

/// Whether rules for SCTP have an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sctp {
    Yes,
    No,
    /// Only where it is switched on, by this setting.
    IfSet(&'static str),
}

const PLUGINS: &[Plugin] = &[
    plugin("Flannel", &["kube-flannel"], false, Sctp::No),
    plugin("Calico", &["calico-node", "canal"], true, Sctp::Yes),
    plugin("Cilium", &["cilium"], true, Sctp::IfSet("sctp.enabled")),
    plugin("Antrea", &["antrea-agent"], true, Sctp::Yes),
    plugin("OVN-Kubernetes", &["ovnkube"], true, Sctp::Yes),
    plugin("Weave Net", &["weave-net"], true, Sctp::No),
    plugin("kube-router", &["kube-router"], true, Sctp::Yes),
    plugin("kube-network-policies", &["kube-network-policies"], true, Sctp::Yes),
    plugin("Portcullis", &["portcullis"], true, Sctp::Yes),
];

const fn plugin(
    name: &'static str,
    daemon_sets: &'static [&'static str],
    enforces: bool,
    sctp: Sctp,
) -> Plugin {
    Plugin { name, daemon_sets, enforces, sctp }
}

/// The plugins of the input, each with a pod of it.
pub(crate) fn plugins(context: &Context<'_>) -> Vec<(usize, &'static Plugin)> {
    let pods = context.cluster.pods[..context.known].iter().enumerate();
    let mut found: Vec<(usize, &Plugin)> = Vec::new();
    for (i, pod) in pods {
        let Some(owner) = pod.workload.as_ref().filter(|w| w.kind == "DaemonSet") else { continue };
        // `cilium-envoy` comes with Cilium, but is not it.
        let is = |name: &&&str| owner.name == **name || owner.name == format!("{name}-ds");
        let plugin = PLUGINS.iter().find(|p| p.daemon_sets.iter().any(|name| is(&name)));
        if let Some(plugin) = plugin
            && !found.iter().any(|(_, known)| known.name == plugin.name)
        {
            found.push((i, plugin));
        }
    }
    found
}
