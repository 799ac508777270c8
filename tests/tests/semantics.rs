//! What a policy means: every scenario file, on every back end. Those whose names begin with a number
//! are about that line of the semantics; the others are stories, and say which lines they touch.
#![allow(clippy::panic, reason = "the checks that tests share fail by panicking, too")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use portcullis_core::Program;
use portcullis_tests::generate::Flow;
use portcullis_tests::nodes::Nodes;
use portcullis_tests::scenario::{Expected, Scenario, View};
use portcullis_tests::{engine, oracle};

#[test]
fn semantics_01_a_pod_that_no_policy_selects_is_open() {
    hold("01-");
}

#[test]
fn semantics_02_absent_policy_types_mean_ingress_and_egress_only_with_egress_rules() {
    hold("02-");
}

#[test]
fn semantics_03_policies_only_add_in_any_order() {
    hold("03-");
}

#[test]
fn semantics_04_a_connection_needs_egress_at_one_end_and_ingress_at_the_other() {
    hold("04-");
}

#[test]
fn semantics_05_policies_are_about_who_opens_the_connection() {
    hold("05-");
}

#[test]
fn semantics_06_a_pod_reaches_itself() {
    hold("06-");
}

#[test]
fn semantics_07_a_pod_and_its_own_node_reach_each_other() {
    hold("07-");
}

#[test]
fn semantics_08_empty_selectors_select_all() {
    hold("08-");
}

#[test]
fn semantics_09_both_selectors_in_one_peer_mean_and_two_peers_mean_or() {
    hold("09-");
}

#[test]
fn semantics_10_negative_operators_match_where_the_key_is_absent() {
    hold("10-");
}

#[test]
fn semantics_11_every_namespace_carries_the_label_of_its_name() {
    hold("11-");
}

#[test]
fn semantics_12_host_network_pods_are_matched_by_ip_blocks_alone() {
    hold("12-");
}

#[test]
fn semantics_13_finished_pods_are_nobody_and_pods_without_an_address_are_isolated() {
    hold("13-");
}

#[test]
fn semantics_14_no_rules_allow_nothing_and_an_empty_rule_everything() {
    hold("14-");
}

#[test]
fn semantics_15_rules_with_ports_do_not_allow_icmp() {
    hold("15-");
}

#[test]
fn semantics_16_protocol_defaults_to_tcp_and_end_port_is_included() {
    hold("16-");
}

#[test]
fn semantics_17_named_ports_are_resolved_at_the_destination_pod() {
    hold("17-");
}

#[test]
fn semantics_18_ip_blocks_match_addresses_whoever_owns_them() {
    hold("18-");
}

#[test]
fn semantics_19_services_are_judged_as_their_endpoints() {
    hold("19-");
}

#[test]
fn semantics_20_each_address_family_is_judged_by_itself() {
    hold("20-");
}

#[test]
fn semantics_28_what_is_in_audit_passes_unless_a_policy_that_is_not_refuses_it() {
    hold("28-");
    for scenario in scenarios("scenarios", "28-") {
        let mut expected = scenario.expectations.iter().flat_map(|e| e.verdicts.values());
        assert!(expected.any(|v| *v == Expected::Audit), "{}: never audit", scenario.name);
    }
}

#[test]
fn stories_that_users_could_have_written_end_as_told() {
    assert!(stories().count() >= 60);
    for scenario in stories() {
        expects_both_verdicts(&scenario);
        check(&scenario);
    }
}

#[test]
fn every_line_is_told_from_several_sides() {
    let mut told = BTreeMap::<u32, Vec<String>>::new();
    for story in stories() {
        let path = directory("scenarios").join(format!("{}.yaml", story.name));
        let text = fs::read_to_string(path).unwrap();
        let (_, rest) = text.split_once("(SEMANTICS ").unwrap_or_else(|| panic!("{}", story.name));
        let (numbers, _) = rest.split_once(')').unwrap();
        for number in numbers.split(',') {
            told.entry(number.trim().parse().unwrap()).or_default().push(story.name.clone());
        }
    }
    for line in 1..=20 {
        let stories = told.get(&line).map_or(&[][..], Vec::as_slice);
        assert!(stories.len() >= 3, "only {stories:?} are about line {line}");
    }
}

#[test]
fn differences_that_were_found_once_stay_away() {
    for scenario in scenarios("cases", "") {
        check(&scenario);
    }
}

/// Runs the scenarios of a line.
#[track_caller]
fn hold(line: &str) {
    for scenario in scenarios("scenarios", line) {
        expects_both_verdicts(&scenario);
        check(&scenario);
    }
}

/// A scenario that could hold where everything is open, or everything closed, shows nothing.
#[track_caller]
fn expects_both_verdicts(scenario: &Scenario) {
    for verdict in [Expected::Allow, Expected::Deny] {
        let mut expected = scenario.expectations.iter().flat_map(|e| e.verdicts.values());
        assert!(expected.any(|v| *v == verdict), "{}: never {verdict:?}", scenario.name);
    }
}

#[track_caller]
fn check(scenario: &Scenario) {
    let world = &scenario.world;
    let report = |back_end: &str, differences: Vec<String>| {
        assert!(differences.is_empty(), "{back_end}:\n{}", differences.join("\n"));
    };
    let oracle = |f: &Flow| Some(oracle::allowed(world, f.source, f.destination, f.traffic));
    report("the oracle", scenario.differences(View::Policies, oracle));
    let oracle = |f: &Flow| Some(oracle::forwarded(world, f.source, f.destination, f.traffic));
    report("the oracle's packets", scenario.differences(View::Packets, oracle));

    let program = Program::compile(&engine::cluster(world));
    let engine = |flow: &Flow| Some(engine::allowed(&program, flow));
    report("the engine", scenario.differences(View::Policies, engine));
    let engine = |flow: &Flow| Some(engine::forwarded(&program, flow));
    report("the engine's packets", scenario.differences(View::Packets, engine));

    let mut nodes = Nodes::program(world).unwrap_or_else(|error| panic!("{error}"));
    report("the fake nodes", scenario.differences(View::Packets, |flow| nodes.allowed(flow)));
}

fn stories() -> impl Iterator<Item = Scenario> {
    let scenarios = scenarios("scenarios", "").into_iter();
    scenarios.filter(|scenario| !scenario.name.starts_with(|c: char| c.is_ascii_digit()))
}

fn scenarios(name: &str, prefix: &str) -> Vec<Scenario> {
    Scenario::all(&directory(name), prefix).unwrap_or_else(|error| panic!("{error}"))
}

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}
