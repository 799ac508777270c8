//! What sets of pods and addresses are called: in few words, and exactly.

use std::collections::BTreeMap;

use portcullis_core::model::Pod;
use portcullis_core::net::{Family, IpNet, IpRange, next_address, previous_address};
use serde::Serialize;

use crate::ends::shown_pod;

/// Which pods go by one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum By {
    /// The pods of a workload
    Workload,
    /// Each pod by itself
    Pod,
    /// All pods of a namespace
    Namespace,
    /// Pods that no policy can tell apart
    Class,
}

/// Pods and addresses. Pods are numbers that mean something to [`Groups`]; both are ascending,
/// and the addresses disjoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Members {
    pub(crate) pods: Vec<usize>,
    pub(crate) addresses: Vec<IpRange>,
}

impl Members {
    /// All that are in any of these lists of pods and addresses.
    pub(crate) fn of<'a>(
        parts: impl Iterator<Item = (&'a Vec<usize>, &'a Vec<IpRange>)>,
    ) -> Members {
        let mut all = Members::default();
        for (pods, addresses) in parts {
            all.pods.extend(pods);
            all.addresses.extend(addresses);
        }
        all.pods.sort_unstable();
        all.addresses.sort_unstable();
        all
    }

    /// The two lists.
    pub(crate) fn lists(&self) -> (&Vec<usize>, &Vec<IpRange>) {
        (&self.pods, &self.addresses)
    }

    /// Whether this is one pod and nothing else.
    pub(crate) fn is_one_pod(&self) -> bool {
        self.pods.len() == 1 && self.addresses.is_empty()
    }
}

/// Pods of one name, or addresses, as programs read them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct EndReport {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) pods: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) addresses: Vec<String>,
}

/// Pods by the names that they share.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    /// The numbers of the pods, ascending.
    numbers: Vec<usize>,
    /// By number, of which some are nobody's: `namespace/name`, and the group.
    pods: Vec<(String, usize)>,
    groups: Vec<Group>,
    namespaces: Vec<Namespace>,
    /// The families in which there are addresses outside.
    families: Vec<Family>,
}

#[derive(Debug)]
struct Group {
    name: String,
    namespace: usize,
    pods: Vec<usize>,
}

#[derive(Debug)]
struct Namespace {
    name: String,
    pods: usize,
    groups: usize,
}

impl Groups {
    /// `pods` are numbers of pods with what they are and the number of their class.
    pub(crate) fn of<'a>(
        pods: impl IntoIterator<Item = (usize, &'a Pod, usize)>,
        families: Vec<Family>,
        by: By,
    ) -> Groups {
        let mut groups = Groups { families, ..Groups::default() };
        let mut known = BTreeMap::new();
        let mut namespaces = BTreeMap::new();
        let mut names: BTreeMap<String, usize> = BTreeMap::new();
        for (number, pod, class) in pods {
            let next = groups.namespaces.len();
            let namespace = *namespaces.entry(pod.namespace.clone()).or_insert(next);
            if namespace == next {
                let name = pod.namespace.clone();
                groups.namespaces.push(Namespace { name, pods: 0, groups: 0 });
            }
            let workload = pod.workload.as_ref();
            // A workload and a pod of the same name are two things, as are workloads of two kinds.
            let (name, kind) = match by {
                By::Workload => match workload {
                    Some(w) => (format!("{}/{}", pod.namespace, w.name), w.kind.to_lowercase()),
                    None => (shown_pod(pod), "pod".to_owned()),
                },
                By::Pod => (shown_pod(pod), String::new()),
                By::Namespace => (format!("{}/*", pod.namespace), String::new()),
                By::Class => (shown_pod(pod), class.to_string()),
            };
            let key = if by == By::Class { (String::new(), kind) } else { (name.clone(), kind) };
            let next = groups.groups.len();
            let group = *known.entry(key).or_insert(next);
            if group == next {
                groups.groups.push(Group { name: name.clone(), namespace, pods: Vec::new() });
                *names.entry(name).or_default() += 1;
                groups.namespaces[namespace].groups += 1;
            }
            groups.groups[group].pods.push(number);
            groups.namespaces[namespace].pods += 1;
            if groups.pods.len() <= number {
                groups.pods.resize(number + 1, (String::new(), 0));
            }
            groups.pods[number] = (shown_pod(pod), group);
            groups.numbers.push(number);
        }
        groups.numbers.sort_unstable();
        for ((name, kind), group) in known {
            let group = &mut groups.groups[group];
            if by == By::Class && group.pods.len() > 1 {
                group.name.push_str(&format!(" and {} alike", group.pods.len() - 1));
            } else if by == By::Workload && names[&name] > 1 {
                group.name = name.replacen('/', &format!("/{kind}/"), 1);
            }
        }
        groups
    }

    /// The pods of a set, those of one group together.
    fn split<'a>(&'a self, pods: &[usize]) -> Vec<(&'a str, Vec<usize>)> {
        let mut by_group: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for pod in pods {
            by_group.entry(self.pods[*pod].1).or_default().push(*pod);
        }
        let named = by_group.into_iter().map(|(g, pods)| (self.groups[g].name.as_str(), pods));
        named.collect()
    }

    /// What is in a set, by name.
    pub(crate) fn ends(&self, set: &Members) -> Vec<EndReport> {
        let names = self.split(&set.pods).into_iter().map(|(name, pods)| EndReport {
            name: name.to_owned(),
            pods: pods.iter().map(|pod| self.pod(*pod).to_owned()).collect(),
            addresses: Vec::new(),
        });
        let outside = (!set.addresses.is_empty()).then(|| EndReport {
            name: "outside".to_owned(),
            pods: Vec::new(),
            addresses: cidrs(&set.addresses),
        });
        names.chain(outside).collect()
    }

    /// `namespace/name` of a pod.
    pub(crate) fn pod(&self, pod: usize) -> &str {
        &self.pods[pod].0
    }

    /// The numbers of the group and of the namespace of a pod.
    pub(crate) fn place(&self, pod: usize) -> (usize, usize) {
        let group = self.pods[pod].1;
        (group, self.groups[group].namespace)
    }

    /// The name of a namespace.
    pub(crate) fn namespace(&self, namespace: usize) -> &str {
        &self.namespaces[namespace].name
    }

    /// The numbers of all pods, ascending.
    pub(crate) fn pods(&self) -> impl Iterator<Item = usize> {
        self.numbers.iter().copied()
    }

    /// How many pods a namespace has, or all together.
    pub(crate) fn pods_in(&self, namespace: Option<usize>) -> usize {
        namespace.map_or(self.numbers.len(), |n| self.namespaces[n].pods)
    }

    /// What pods of one group are called.
    pub(crate) fn part(&self, pods: &[usize]) -> String {
        let Group { name, pods: all, .. } = &self.groups[self.place(pods[0]).0];
        match pods {
            _ if pods.len() == all.len() => name.clone(),
            [pod] => self.pod(*pod).to_owned(),
            _ => format!("{name} ({} of {} pods)", pods.len(), all.len()),
        }
    }

    /// What a set is called, as the items of a list: the shortest of the ways to say it.
    pub(crate) fn describe(&self, set: &Members) -> Vec<String> {
        let (inside, others) = (set.pods.len(), self.numbers.len().saturating_sub(set.pods.len()));
        let other_addresses = self.others(&set.addresses);
        if others == 0 && other_addresses.is_empty() {
            return vec!["everything".to_owned()];
        }
        // What is sure to be the longest is not even written, and large clusters have many sets.
        let far = |many: usize, few: usize| many > MANY && many > 4 * few;
        let outside = self.address_items(&set.addresses);
        let mut ways = Vec::new();
        if others == 0 || !far(inside, others) {
            ways.push([outside.clone(), self.pod_items(&set.pods)].concat());
        }
        if inside > 0 && !far(others, inside) {
            let mut inside = set.pods.iter().peekable();
            let not_inside = |pod: &usize| inside.next_if_eq(&pod).is_none();
            let rest: Vec<usize> = self.pods().filter(not_inside).collect();
            let no_pods = self.pod_items(&rest);
            if !set.addresses.is_empty() {
                let not_outside = self.address_items(&other_addresses);
                ways.push(but("everything", [not_outside, no_pods.clone()].concat()));
            }
            if !no_pods.is_empty() {
                ways.push([outside, but("every pod", no_pods)].concat());
            }
        }
        let length = |items: &Vec<String>| items.iter().map(|i| i.len() + 2).sum::<usize>();
        ways.into_iter().min_by_key(length).unwrap_or_default()
    }

    /// What one side of a pair is called. A pod that is all of the other side may be left out here,
    /// because its traffic to itself is not told.
    pub(crate) fn describe_beside(&self, side: &Members, other: &Members) -> Vec<String> {
        let name = self.describe(side);
        if !other.is_one_pod() || side == other || !side.pods.contains(&other.pods[0]) {
            return name;
        }
        let mut without = side.clone();
        without.pods.retain(|pod| *pod != other.pods[0]);
        let shorter = self.describe(&without);
        if shorter.concat().len() < name.concat().len() { shorter } else { name }
    }

    fn pod_items(&self, pods: &[usize]) -> Vec<String> {
        if !pods.is_empty() && pods.len() == self.numbers.len() {
            return vec!["every pod".to_owned()];
        }
        let mut by_group: Vec<(usize, usize)> =
            pods.iter().map(|pod| (self.pods[*pod].1, *pod)).collect();
        by_group.sort_unstable();
        let mut counts = vec![0; self.namespaces.len()];
        by_group.iter().for_each(|(group, _)| counts[self.groups[*group].namespace] += 1);
        let whole = |namespace: usize| {
            let Namespace { pods, groups, .. } = &self.namespaces[namespace];
            *groups > 1 && counts[namespace] == *pods
        };
        let mut items: Vec<String> = (0..self.namespaces.len())
            .filter(|n| whole(*n))
            .map(|n| format!("{}/*", self.namespaces[n].name))
            .collect();
        for pods in by_group.chunk_by(|a, b| a.0 == b.0) {
            let Group { name, namespace, pods: all } = &self.groups[pods[0].0];
            match pods.len() {
                _ if whole(*namespace) => {}
                n if n == all.len() => items.push(name.clone()),
                n if n > FEW => items.push(format!("{name} ({n} of {} pods)", all.len())),
                _ => items.extend(pods.iter().map(|(_, pod)| self.pod(*pod).to_owned())),
            }
        }
        items.sort_unstable();
        items
    }

    fn address_items(&self, addresses: &[IpRange]) -> Vec<String> {
        if addresses.is_empty() {
            return Vec::new();
        }
        if self.others(addresses).is_empty() {
            return vec!["outside".to_owned()];
        }
        let mut items = Vec::new();
        for family in &self.families {
            let ours: Vec<IpRange> = merged(addresses, *family);
            let listed = cidrs(&ours);
            let around = cover(&ours);
            let holes = around.map_or(Vec::new(), |net| cidrs(&complement(&ours, net.into())));
            match around {
                Some(around) if !holes.is_empty() && holes.len() < listed.len() => {
                    items.push(format!("{around} except {}", holes.join(" and ")));
                }
                _ => items.extend(listed),
            }
        }
        items
    }

    /// The addresses outside that are not among these.
    fn others(&self, addresses: &[IpRange]) -> Vec<IpRange> {
        let families = self.families.iter();
        families.flat_map(|f| complement(&merged(addresses, *f), whole(*f).into())).collect()
    }
}

/// Most pods of a group that are listed by name before they are only counted.
const FEW: usize = 2;
/// More pods than anyone lists.
const MANY: usize = 64;

fn but(all: &str, mut items: Vec<String>) -> Vec<String> {
    if let Some(first) = items.first_mut() {
        *first = format!("{all} but {first}");
    }
    items
}

/// Ranges that are ascending as the fewest CIDRs; a single address without its length.
pub(crate) fn cidrs(ranges: &[IpRange]) -> Vec<String> {
    let ranges = Family::ALL.map(|family| merged(ranges, family)).concat();
    let show = |net: IpNet| match net.prefix_len() == net.max_prefix_len() {
        true => net.addr().to_string(),
        false => net.to_string(),
    };
    ranges.iter().flat_map(IpRange::cidrs).map(show).collect()
}

fn whole(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Default::default()),
        Family::V6 => IpNet::V6(Default::default()),
    }
}

/// The ranges of a family, those that touch as one.
fn merged(ranges: &[IpRange], family: Family) -> Vec<IpRange> {
    let mut merged: Vec<IpRange> = Vec::new();
    for range in ranges.iter().filter(|r| Family::of(r.first) == family) {
        match merged.last_mut() {
            Some(before) if next_address(before.last) == Some(range.first) => {
                before.last = range.last;
            }
            _ => merged.push(*range),
        }
    }
    merged
}

/// The smallest CIDR around ranges that are ascending.
pub(crate) fn cover(ranges: &[IpRange]) -> Option<IpNet> {
    let (first, last) = (ranges.first()?.first, ranges.last()?.last);
    let mut net = IpNet::from(first);
    while !net.contains(&last) {
        net = net.supernet()?;
    }
    Some(net)
}

/// What is left of a range without others that are in it, ascending, and do not touch.
pub(crate) fn complement(ranges: &[IpRange], all: IpRange) -> Vec<IpRange> {
    let mut rest = Vec::new();
    let mut next = Some(all.first);
    for range in ranges {
        if let Some(first) = next.filter(|first| *first < range.first) {
            let last = previous_address(range.first);
            rest.extend(last.map(|last| IpRange { first, last }));
        }
        next = next_address(range.last);
    }
    let next = next.filter(|first| *first <= all.last);
    rest.extend(next.map(|first| IpRange { first, last: all.last }));
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, name: &str) -> Pod {
        Pod { namespace: namespace.to_owned(), name: name.to_owned(), ..Pod::default() }
    }

    fn described(pods: &[usize], blocks: &[&str]) -> String {
        let all = [("shop", "web"), ("shop", "api"), ("shop", "db"), ("ops", "scraper")];
        let all = all.map(|(namespace, name)| pod(namespace, name));
        let numbered = all.iter().enumerate().map(|(i, pod)| (i, pod, i));
        let groups = Groups::of(numbered, vec![Family::V4, Family::V6], By::Workload);
        let range = |text: &&str| IpRange::from(text.parse::<IpNet>().unwrap());
        let addresses = blocks.iter().map(range).collect();
        groups.describe(&Members { pods: pods.to_vec(), addresses }).join(", ")
    }

    #[test]
    fn a_set_is_called_by_the_shortest_name_that_is_exact() {
        let everywhere = ["0.0.0.0/0", "::/0"];
        for (pods, blocks, expected) in [
            (&[2][..], &[][..], "shop/db"),
            (&[0, 1, 2], &[], "shop/*"),
            (&[0, 1, 2, 3], &[], "every pod"),
            (&[0, 1, 3], &[], "every pod but shop/db"),
            (&[0, 1, 2, 3], &everywhere, "everything"),
            (&[0, 1, 3], &everywhere, "everything but shop/db"),
            (&[3], &everywhere, "outside, ops/scraper"),
            (&[], &everywhere, "outside"),
            (&[], &["10.0.0.0/9", "10.128.0.0/9"], "10.0.0.0/8"),
            (&[], &["0.0.0.0/1", "128.0.0.0/2"], "0.0.0.0/0 except 192.0.0.0/2"),
            (&[], &["0.0.0.0/1", "192.0.0.0/2", "::/0"], "0.0.0.0/0 except 128.0.0.0/2, ::/0"),
            (&[], &["10.0.0.0/9", "10.128.0.0/11"], "10.0.0.0/9, 10.128.0.0/11"),
            (
                &[],
                &["10.0.0.0/9", "10.128.0.0/10", "10.224.0.0/11"],
                "10.0.0.0/8 except 10.192.0.0/11",
            ),
            (&[], &["192.168.5.10/32"], "192.168.5.10"),
        ] {
            assert_eq!(described(pods, blocks), expected);
        }
    }
}
