//! Inputs that mean harm, or look like it.

use std::fmt::Write as _;

use crate::{read, says};

#[test]
fn deep_nesting_is_refused() {
    let n = 1_000_000;
    let flow = "[".repeat(n);
    let blocks = "- ".repeat(n);
    let json = "{\"a\":".repeat(n);
    let mut maps = String::new();
    for i in 0..300 {
        let _ = writeln!(maps, "{}a:", " ".repeat(i));
    }
    insta::assert_snapshot!([flow, blocks, json, maps].map(|t| says(&t)).concat(), @"
    m.yaml:1:256: error: more than 100 lists and maps within each other
    m.yaml:1:201: error: more than 100 lists and maps within each other
    m.yaml:1:501: error: more than 100 lists and maps within each other
    m.yaml:101:101: error: more than 100 lists and maps within each other
    ");
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..30 {
        let item = format!("*a{}, ", i - 1);
        let _ = writeln!(text, "a{i}: &a{i} [{}]", item.repeat(10));
    }
    insta::assert_snapshot!(says(&text), @"m.yaml:4:15: error: aliases expand to far more than is written here: write it out");
    let long = format!("a: &a {}\nb: [{}]", "x".repeat(100_000), "*a, ".repeat(100_000));
    insta::assert_snapshot!(says(&long), @"m.yaml:2:801: error: aliases expand to far more than is written here: write it out");
    let deep = format!(
        "a: &a {}1{}\nb: {}*a{}",
        "[".repeat(60),
        "]".repeat(60),
        "[".repeat(60),
        "]".repeat(60)
    );
    insta::assert_snapshot!(says(&deep), @"m.yaml:2:64: error: more than 100 lists and maps within each other");
}

#[test]
fn a_hundred_megabytes_are_read() {
    let text =
        format!("apiVersion: v1\nkind: ConfigMap\ndata:\n  a: \"{}\"\n", "x".repeat(4_000_000));
    let mut all = String::new();
    while all.len() < 100_000_000 {
        all += &text;
        all += "---\n";
    }
    let input = read(&all);
    assert_eq!(crate::lines(&input), "");
    assert_eq!(input.passed_over["ConfigMap"], 25);
}

#[test]
fn a_json_list_of_any_length_is_read() {
    let items: Vec<_> = (0..20_000)
        .map(|i| format!(r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"p{i}"}}}}"#))
        .collect();
    let text = format!(r#"{{"apiVersion":"v1","items":[{}],"kind":"List"}}"#, items.join(","));
    let input = read(&text);
    assert_eq!(crate::lines(&input), "");
    assert_eq!(input.cluster.pods.len(), 20_000);
}

#[test]
fn one_value_of_enormous_length_is_refused_in_yaml() {
    let text = format!("{{a: [{}]}}", "b, ".repeat(2_000_000));
    insta::assert_snapshot!(says(&text), @"m.yaml:2:1: error: while parsing a node, did not find expected node content");
}

#[test]
fn many_keys_in_one_map_are_read_in_time() {
    let mut text = "apiVersion: v1\nkind: ConfigMap\ndata:\n".to_owned();
    for i in 0..200_000 {
        let _ = writeln!(text, "  k{i}: v");
    }
    text += "  k7: v\n";
    insta::assert_snapshot!(says(&text), @r#"m.yaml:200004:3: error: configmap: duplicate field "data.k7": key "k7" already set in map, on line 11"#);
}
