//! The rules, a file each. The table is what everything else is made from.

mod allows_everything;
mod annotation_without_effect;
mod block_covers_cluster;
mod cni_does_not_enforce;
mod default_deny_missing;
mod dns_missing;
mod dns_node_local;
mod dns_over_udp_only;
mod egress_stays_open;
mod except_reopened;
mod extra_dash;
mod host_network_subject;
mod ingress_isolated_too;
mod named_port;
mod namespace_missing;
mod namespace_name_label;
mod one_sided;
mod open_workload;
mod peer_selects_nothing;
mod pod_label_on_namespace;
mod policy_types_omitted;
mod redundant_rule;
mod route_refused;
mod rules_without_effect;
mod scrape_refused;
mod sctp_unsupported;
mod service_port;
mod split_rule;
mod subject_selects_nothing;
mod unknown_namespace_label;
mod version_label;
mod webhook_refused;
mod wrong_protocol;

pub(crate) use pod_label_on_namespace::pod_label;

use crate::rule::Rule;

/// Every rule, by id.
pub(crate) const ALL: &[&Rule] = &[
    &allows_everything::RULE,
    &annotation_without_effect::RULE,
    &block_covers_cluster::RULE,
    &cni_does_not_enforce::RULE,
    &default_deny_missing::RULE,
    &dns_missing::RULE,
    &dns_node_local::RULE,
    &dns_over_udp_only::RULE,
    &egress_stays_open::RULE,
    &except_reopened::RULE,
    &extra_dash::RULE,
    &host_network_subject::RULE,
    &ingress_isolated_too::RULE,
    &named_port::RULE,
    &namespace_missing::RULE,
    &namespace_name_label::RULE,
    &one_sided::RULE,
    &open_workload::RULE,
    &peer_selects_nothing::RULE,
    &pod_label_on_namespace::RULE,
    &policy_types_omitted::RULE,
    &redundant_rule::RULE,
    &route_refused::RULE,
    &rules_without_effect::RULE,
    &scrape_refused::RULE,
    &sctp_unsupported::RULE,
    &service_port::RULE,
    &split_rule::RULE,
    &subject_selects_nothing::RULE,
    &unknown_namespace_label::RULE,
    &version_label::RULE,
    &webhook_refused::RULE,
    &wrong_protocol::RULE,
];

#[cfg(test)]
mod tests {
    use portcullis_kube::{Options, Severity, Source, load};

    use super::*;
    use crate::testing::policy;

    #[test]
    fn ids_are_sorted_and_each_is_there_once() {
        assert!(ALL.is_sorted_by(|a, b| a.id < b.id));
    }

    #[test]
    fn every_rule_is_documented_with_an_example_and_a_fix() {
        for rule in ALL {
            let kebab = |c: char| c.is_ascii_lowercase() || c == '-';
            assert!(rule.id.chars().all(kebab), "{}", rule.id);
            for text in [rule.what, rule.why, rule.example, rule.fix] {
                assert!(text.len() > 20, "{}: {text:?}", rule.id);
            }
            assert!(rule.what.ends_with('.') && rule.why.ends_with('.') && rule.fix.ends_with('.'));
        }
    }

    #[test]
    fn the_page_of_the_rules_is_what_the_rules_say() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/rules.md");
        let mut page = "# Rules of the lint\n\nWhat `portcullis check` finds in policies that are valid. This page is made from \
                        the rules;\n`portcullis check --explain RULE` prints a part of it. How to use them: [check.md](check.md).\n"
            .to_owned();
        for rule in ALL {
            page += &format!("\n{}", rule.page());
        }
        if std::env::var_os("PORTCULLIS_WRITE_DOCS").is_some() {
            std::fs::write(file, &page).unwrap();
        }
        let written = std::fs::read_to_string(file).unwrap();
        assert!(written == page, "docs/rules.md: write it again with PORTCULLIS_WRITE_DOCS=1");
    }

    /// The reasons of the errors in a text.
    fn errors(text: &str) -> Vec<&'static str> {
        let source = Source::Text { name: "test.yaml".to_owned(), text: text.to_owned() };
        let input = load(&[source], &Options::default());
        let errors = input.diagnostics.iter().filter(|d| d.severity == Severity::Error);
        errors.map(|d| d.reason.id()).collect()
    }

    #[test]
    fn known_mistake_an_end_port_without_a_port() {
        let spec =
            "  podSelector: {}\n  ingress:\n  - ports:\n    - protocol: TCP\n      endPort: 10000";
        assert_eq!(errors(&policy("ports", spec)), ["invalid"]);
    }

    #[test]
    fn known_mistake_a_document_that_is_a_policy_only_in_name() {
        let flat: String = policy("db", "  podSelector:\n    matchLabels:\n      role: db")
            .lines()
            .map(|line| format!("{}\n", line.trim_start()))
            .collect();
        assert!(!errors(&flat).is_empty());
    }
}
