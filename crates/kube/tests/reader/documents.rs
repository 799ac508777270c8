use portcullis_kube::{Content, Options, Source, load, read_values};

use crate::{lines, read, says};

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n";

fn names(text: &str) -> String {
    let input = read(text);
    let names = input.cluster.pods.iter().map(|p| p.name.as_str());
    let names: Vec<_> = names.collect();
    lines(&input) + &names.join(" ")
}

#[test]
fn documents_are_cut_at_markers() {
    let text = "\
# a comment
--- # another
apiVersion: v1
kind: Pod
metadata: {name: a}
---
---
{apiVersion: v1, kind: Pod, metadata: {name: b}}
--- {apiVersion: v1, kind: Pod, metadata: {name: c}}
...
%YAML 1.1
# directive
---
apiVersion: v1
kind: Pod
metadata:
  name: d
  annotations:
    text: |
      --- not a marker
     
      ---
---
";
    assert_eq!(names(text), "a b c d");
}

#[test]
fn files_of_tests_beside_manifests_are_passed_over_and_what_looks_like_them_is_not() {
    let tests = "manifests: .\npodCIDRs: 10.0.0.0/8\ntests:\n- allow: {}\n";
    let input = read(&format!("{POD}---\n{tests}"));
    assert_eq!(lines(&input), "");
    assert_eq!(input.passed_over["file of tests"], 1);
    let other = says(&format!("{POD}---\ntests: []\nspec: {{podSelector: {{}}}}\n"));
    insta::assert_snapshot!(other, @"m.yaml:5:1: error: not an object: apiVersion and kind are not set");
}

#[test]
fn values_have_their_places_and_what_cannot_be_read_is_told() {
    let text = "a: 1\na: [x,\n  {b: yes}]\n---\n# nothing\n---\n{\n";
    let source = Source::Text { name: "v.yaml".to_owned(), text: text.to_owned() };
    let (values, diagnostics) = read_values(&[source], &Options::default());
    let told: Vec<_> = diagnostics.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(told.join("\n"), @r#"
    v.yaml:2:1: error: duplicate field "a": key "a" already set in map, on line 1
    v.yaml:8:1: error: while parsing a node, did not find expected node content
    "#);
    let Content::Map(fields) = &values[0].content else { panic!("{values:?}") };
    let Content::List(items) = &fields[1].value.content else { panic!("{fields:?}") };
    let Content::Map(inner) = &items[1].content else { panic!("{items:?}") };
    let place = &inner[0].value.place;
    assert_eq!(
        (place.path.as_str(), place.location.to_string().as_str()),
        ("a[1].b", "v.yaml:3:7")
    );
    assert_eq!(inner[0].value.to_string(), "the boolean yes");
    assert_eq!(values.len(), 1);
}

#[test]
fn windows_line_ends_and_a_byte_order_mark_are_read() {
    let text = format!("\u{feff}{POD}---\n{}", POD.replace("name: a", "name: b, nam: b"));
    let text = text.replace('\n', "\r\n");
    insta::assert_snapshot!(says(&text), @r#"m.yaml:7:21: error: pod default/b: unknown field "metadata.nam", did you mean "name"?"#);
}

#[test]
fn old_mac_line_ends_count_as_lines() {
    let text = format!("{POD}---\n{}", POD.replace("name: a", "name: b, nam: b"));
    insta::assert_snapshot!(says(&text.replace('\n', "\r")), @r#"m.yaml:7:21: error: pod default/b: unknown field "metadata.nam", did you mean "name"?"#);
}

#[test]
fn columns_count_characters_and_not_bytes() {
    let text = "{apiVersion: v1, kind: Pod, metadata: {name: a, annotations: {é: ü}, nam: b}}\n";
    insta::assert_snapshot!(says(text), @r#"m.yaml:1:70: error: pod default/a: unknown field "metadata.nam", did you mean "name"?"#);
    let text = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "annotations": {"é": "ü"}, "nam": "b"}}"#;
    insta::assert_snapshot!(says(text), @r#"m.yaml:1:90: error: pod default/a: unknown field "metadata.nam", did you mean "name"?"#);
}

#[test]
fn a_broken_document_does_not_hide_the_others() {
    let text = format!("{POD}---\na: b: c\n---\n{}", POD.replace("name: a", "name: b"));
    insta::assert_snapshot!(names(&text), @"
    m.yaml:5:5: error: mapping values are not allowed in this context
    a b
    ");
}

#[test]
fn json_is_read_one_value_after_another() {
    let text = r#"
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}
{"apiVersion": "v1", "kind": "Pod",
 "metadata": {"name": "\u0062", "labels": {"x": 1}}}"#;
    insta::assert_snapshot!(names(text), @"
    m.yaml:4:49: error: pod default/b: metadata.labels.x: expected a string, found the number 1: write it in quotes
    a b
    ");
}

#[test]
fn json_with_comments_and_trailing_commas_is_yaml() {
    let text =
        "{\"apiVersion\": \"v1\", \"kind\": \"Pod\", # why\n \"metadata\": {\"name\": \"a\",},}";
    assert_eq!(names(text), "a");
}

#[test]
fn broken_json_is_an_error_where_it_breaks() {
    let texts = [
        r#"{"apiVersion": "v1" "kind": "Pod"}"#,
        r#"{"apiVersion": "v1", "kind": "#,
        "{\"apiVersion\": \"v1\n\"}",
        r#"{"apiVersion": "\x"}}"#,
        r#"{"a": 01}"#,
        r#"{"a": nope}}"#,
    ];
    insta::assert_snapshot!(texts.map(says).concat(), @r#"
    m.yaml:1:21: error: not JSON: expected ',' or '}', found '"'
    m.yaml:1:30: error: not JSON: expected a value, found the end
    m.yaml:1:1: error: not an object: kind is not set
    m.yaml:1:17: error: not JSON: expected one of the escapes of JSON, found '\\'
    m.yaml:1:1: error: not an object: apiVersion and kind are not set
    m.yaml:1:7: error: not JSON: expected a value, found 'n'
    "#);
}

#[test]
fn the_items_of_lists_are_objects() {
    let text = "\
apiVersion: v1
kind: List
metadata: {resourceVersion: ''}
items:
- apiVersion: v1
  kind: Pod
  metadata: {name: a}
- apiVersion: v1
  kind: Pod
  metadata: {name: b, nam: b}
- apiVersion: v1
  kind: ConfigMap
";
    insta::assert_snapshot!(names(text), @r#"
    m.yaml:10:23: error: pod default/b: unknown field "metadata.nam", did you mean "name"?
    a b
    "#);
    assert_eq!(read(text).passed_over["ConfigMap"], 1);
}

#[test]
fn items_of_a_typed_list_have_its_type_wherever_it_says_so() {
    let text =
        "{kind: PodList, apiVersion: v1, items: [{metadata: {name: a}}, {metadata: {name: b}}]}";
    assert_eq!(names(text), "a b");
    let text = "{items: [{metadata: {name: a}}, {kind: Pod, apiVersion: v1, metadata: {name: b}}], kind: PodList, apiVersion: v1}";
    assert_eq!(names(text), "a b");
}

#[test]
fn a_list_that_is_none_is_reported() {
    let texts = [
        "{apiVersion: v1, kind: List, items: {}}",
        "{apiVersion: v1, kind: List, items: []}",
        "{apiVersion: v1, kind: List, items: [1, ~]}",
        "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: List, items: []}]}",
        "{apiVersion: v1, kind: Pod, metadata: {name: a}, items: [{apiVersion: v1, kind: Pod}]}",
    ];
    insta::assert_snapshot!(texts.map(says).concat(), @r#"
    m.yaml:1:30: error: list: items: expected a list, found a map
    m.yaml:1:1: note: list: the list has no items
    error: no objects found in m.yaml
    m.yaml:1:38: error: expected an object with apiVersion and kind, found the number 1
    m.yaml:1:41: error: expected an object with apiVersion and kind, found null
    m.yaml:1:38: error: list: a list within a list: make it a document of its own
    m.yaml:1:50: error: pod default/a: unknown field "items"
    "#);
}

#[test]
fn what_is_no_object_is_an_error() {
    let texts = [
        "hello",
        "[1, 2]",
        "a: b",
        "kind: Pod",
        "apiVersion: v1",
        "{apiVersion: v1, kind: [Pod]}",
        "{apiVersion: 1, kind: Pod}",
        "{apiVersion: v1, kind: ''}",
    ];
    insta::assert_snapshot!(texts.map(says).concat(), @r#"
    m.yaml:1:1: error: expected an object with apiVersion and kind, found the string "hello"
    m.yaml:1:1: error: expected an object with apiVersion and kind, found a list
    m.yaml:1:1: error: not an object: apiVersion and kind are not set
    m.yaml:1:1: error: pod: not an object: apiVersion is not set
    m.yaml:1:1: error: not an object: kind is not set
    m.yaml:1:18: error: kind: expected a name, found a list
    m.yaml:1:14: error: pod: apiVersion: expected a name, found the number 1
    m.yaml:1:24: error: : kind: expected a name, found the string ""
    "#);
}

#[test]
fn an_input_without_objects_is_an_error() {
    insta::assert_snapshot!(says(""), @"
    m.yaml: note: holds no objects
    error: no objects found in m.yaml
    ");
    insta::assert_snapshot!(says("# nothing\n---\n---\n~\n"), @"
    m.yaml: note: holds no objects
    error: no objects found in m.yaml
    ");
    let text = |name: &str, text: &str| Source::Text { name: name.into(), text: text.into() };
    let sources = [text("a.yaml", ""), text("b.yaml", POD)];
    insta::assert_snapshot!(lines(&load(&sources, &Options::default())), @"a.yaml: note: holds no objects");
}

#[test]
fn anchors_aliases_and_merge_keys_work() {
    let text = "\
apiVersion: v1
kind: Pod
metadata:
  name: &n a
  labels: &l {app: web, name: *n}
  annotations:
    <<: [*l, {app: other, more: x}]
    app: own
";
    let input = read(text);
    assert_eq!(lines(&input), "");
    assert_eq!(input.cluster.pods[0].labels.get("name").unwrap(), "a");
    insta::assert_snapshot!(says(&text.replace("*l, ", "*n, ")), @"m.yaml:4:9: error: `<<` takes a map or a list of maps");
    insta::assert_snapshot!(says(&text.replace("*n", "*x")), @"m.yaml:5:31: error: while parsing node, found unknown anchor");
    insta::assert_snapshot!(says("a: &a [*a]"), @"m.yaml:1:8: error: an alias stands inside what it refers to");
}

#[test]
fn tags_are_the_core_ones_or_an_error_where_the_value_is_read() {
    let text = "{apiVersion: !!str v1, kind: ! Pod, metadata: !!map {name: !!str 1, namespace: !!binary aGk=}}";
    insta::assert_snapshot!(says(text), @"m.yaml:1:80: error: pod default/1: metadata.namespace: expected a string, found a value with the tag !!binary");
    insta::assert_snapshot!(says("!mine {apiVersion: v1, kind: Pod}"), @"m.yaml:1:1: error: expected an object with apiVersion and kind, found a value with the tag !mine");
    let text = "{apiVersion: v1, kind: Secret, data: {a: !!binary aGk=}}";
    insta::assert_snapshot!(says(text), @"");
}

#[test]
fn keys_that_are_no_strings_are_errors() {
    insta::assert_snapshot!(says("~: a\n---\n[a]: b\n---\n? {a: b}\n: c\n"), @"
    m.yaml:1:1: error: a key must not be null
    m.yaml:3:1: error: a key must be a string
    m.yaml:5:3: error: a key must be a string
    ");
}

#[test]
fn a_template_that_nobody_rendered_says_how() {
    let text = "kind: Pod\nmetadata:\n  name: {{ .Values.name }}\n---\n{{- if .Values.enabled }}\nkind: Pod\n";
    insta::assert_snapshot!(says(text), @r#"
    m.yaml:3:10: error: a key must be a string: this is a template; render it first, with `helm template CHART | portcullis check -f -` for one
    m.yaml:5:3: error: "-" is only valid inside a block: this is a template; render it first, with `helm template CHART | portcullis check -f -` for one
    "#);
}

#[test]
fn a_kustomization_among_manifests_is_passed_over() {
    let of = |name: &str| {
        let text = "resources: [app.yaml]\n".to_owned();
        load(&[Source::Text { name: name.to_owned(), text }], &Options::default())
    };
    assert_eq!(of("base/kustomization.yaml").passed_over["Kustomization"], 1);
    assert!(of("kustomization.yml").diagnostics.is_empty());
    assert!(of("my-kustomization.yaml").has_errors());
}

#[test]
fn other_kinds_are_passed_over_and_counted() {
    let text = "\
{apiVersion: v1, kind: ConfigMap}
---
{apiVersion: v1, kind: ConfigMap, whatever: [1]}
---
{apiVersion: serving.knative.dev/v1, kind: Service}
---
{apiVersion: v1, kind: Secret, data: {a: b, a: c}}
";
    let input = read(text);
    insta::assert_snapshot!(lines(&input), @r#"m.yaml:7:45: error: secret: duplicate field "data.a": key "a" already set in map, on line 7"#);
    insta::assert_debug_snapshot!(input.passed_over, @r#"
    {
        "ConfigMap": 2,
        "Secret": 1,
        "Service.serving.knative.dev": 1,
    }
    "#);
}
