//! `portcullis reach --potential`: exposure to pods that do not exist yet.

use std::process::ExitCode;

use indexmap::IndexSet;
use portcullis_core::fold::fold;
use portcullis_core::labels::{Operator, Selector};
use portcullis_core::model::{Cluster, Direction};
use portcullis_core::net::Traffic;
use portcullis_core::portset::PortSet;
use portcullis_core::potential::{Description, Exposure, Namespaces, potential};
use portcullis_core::reach::{Reach, SetId, Unit};
use serde::Serialize;

use crate::graph::{self, Picture};
use crate::groups::{EndReport, Groups, Members};
use crate::output::{LabelsReport, json, print, yaml};
use crate::reach::{AllowedReport, Format, Row, lists};
use crate::table::Table;
use crate::trouble::Trouble;

/// Those whose exposure is asked for: who may open what to them, or (for egress) they to whom.
pub(crate) struct Subjects<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) units: &'a [Unit],
    pub(crate) direction: Direction,
    pub(crate) traffic: Option<Traffic>,
}

/// Pods that could exist, and those that do, with what may be opened from the one to the other.
pub(crate) struct Exposed {
    direction: Direction,
    descriptions: Vec<Description>,
    pods: Vec<EndReport>,
    names: Vec<String>,
    set: PortSet,
    named: Vec<String>,
}

/// The answer, as few rows as can be.
pub(crate) fn exposed(
    subjects: &Subjects<'_>,
    reach: &mut Reach<'_>,
    groups: &Groups,
) -> Vec<Exposed> {
    let Subjects { cluster, units, direction, traffic } = subjects;
    let found = potential(cluster, reach, units, *direction);
    let mut values: IndexSet<Exposure> = IndexSet::from_iter([Exposure::default()]);
    let mut number = |mut exposure: Exposure| {
        if let Some(traffic) = traffic
            && !reach.set(exposure.set).contains(*traffic)
        {
            exposure.set = SetId::NOTHING;
        }
        values.insert_full(exposure).0
    };
    let table: Vec<Vec<usize>> =
        found.iter().map(|(_, row)| row.iter().cloned().map(&mut number).collect()).collect();
    let exposed = fold(table).into_iter().map(|product| {
        let members = Members::of(product.destinations.iter().map(|i| lists(&units[*i])));
        let Exposure { set, named } = &values[product.value];
        Exposed {
            direction: *direction,
            descriptions: product.sources.iter().map(|i| found[*i].0.clone()).collect(),
            pods: groups.ends(&members),
            names: groups.describe(&members),
            set: reach.set(*set).clone(),
            named: named.iter().map(|(name, protocol)| format!("{name}/{protocol}")).collect(),
        }
    });
    exposed.collect()
}

/// Prints the answer.
pub(crate) fn page(exposed: &[Exposed], output: Format) -> Result<ExitCode, Trouble> {
    let mut rows: Vec<Row> = exposed.iter().map(Exposed::row).collect();
    rows.sort_by(|a, b| (&a.to, &a.from, &a.ports).cmp(&(&b.to, &b.from, &b.ports)));
    match output {
        Format::Json => json(&exposed.iter().map(Report::of).collect::<Vec<_>>())?,
        Format::Yaml => yaml(&exposed.iter().map(Report::of).collect::<Vec<_>>())?,
        Format::Svg | Format::Dot | Format::Mermaid | Format::Html => {
            let rows = rows.into_iter().map(|row| [row.from, row.to, row.ports]);
            let title = "What pods that do not exist yet may open, or be opened";
            let caption = "Any pod: of those that do not exist yet. Every pod: of those that do.";
            let picture = Picture::of_rows(title, rows);
            let picture = Picture { caption: vec![caption.to_owned()], ..picture };
            graph::print(&picture, output.picture())?;
        }
        Format::Csv | Format::Md | Format::Table | Format::Wide => {
            let cells = rows.into_iter().map(|row| vec![row.from, row.to, row.ports]);
            let table = Table { headers: &["FROM", "TO", "PORTS"], rows: cells.collect() };
            print(&output.written(table))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Exposed {
    fn row(&self) -> Row {
        let described = self.descriptions.iter().map(Description::to_string).collect();
        let (from, to) = match self.direction {
            Direction::Ingress => (described, self.names.clone()),
            Direction::Egress => (self.names.clone(), described),
        };
        let set = (!self.set.is_nothing()).then(|| self.set.to_string());
        let named = self.named.iter().map(|name| format!("its port {name}"));
        Row { from, to, ports: set.into_iter().chain(named).collect(), rules: Vec::new() }
    }
}

#[derive(Serialize)]
struct Report {
    from: Vec<Either>,
    to: Vec<Either>,
    #[serde(flatten)]
    allowed: AllowedReport,
    /// Ports of the pods that do not exist yet, by name.
    #[serde(rename = "namedPorts", skip_serializing_if = "Vec::is_empty")]
    named: Vec<String>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Either {
    Exists(EndReport),
    Could {
        /// In words.
        name: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        #[serde(rename = "namespaceSelector", skip_serializing_if = "Option::is_none")]
        namespace_selector: Option<SelectorReport>,
        #[serde(rename = "podSelector")]
        pods: SelectorReport,
    },
}

/// As in a policy.
#[derive(Serialize)]
struct SelectorReport {
    #[serde(rename = "matchLabels", skip_serializing_if = "LabelsReport::is_empty")]
    match_labels: LabelsReport,
    #[serde(rename = "matchExpressions", skip_serializing_if = "Vec::is_empty")]
    match_expressions: Vec<RequirementReport>,
}

#[derive(Serialize)]
struct RequirementReport {
    key: String,
    operator: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    values: Vec<String>,
}

impl Report {
    fn of(exposed: &Exposed) -> Report {
        let exists = exposed.pods.iter().cloned().map(Either::Exists).collect();
        let could = exposed.descriptions.iter().map(Either::could).collect();
        let (from, to) = match exposed.direction {
            Direction::Ingress => (could, exists),
            Direction::Egress => (exists, could),
        };
        let allowed = AllowedReport::of(&exposed.set);
        Report { from, to, allowed, named: exposed.named.clone() }
    }
}

impl Either {
    fn could(description: &Description) -> Either {
        let (namespace, namespace_selector) = match &description.namespaces {
            Namespaces::Named(name) => (Some(name.clone()), None),
            Namespaces::Selected(selector) => (None, Some(SelectorReport::of(selector))),
        };
        let pods = SelectorReport::of(&description.pods);
        Either::Could { name: description.to_string(), namespace, namespace_selector, pods }
    }
}

impl SelectorReport {
    fn of(selector: &Selector) -> SelectorReport {
        let requirement = |requirement: &portcullis_core::labels::Requirement| {
            let (operator, values) = match &requirement.operator {
                Operator::In(values) => ("In", values.clone()),
                Operator::NotIn(values) => ("NotIn", values.clone()),
                Operator::Exists => ("Exists", Vec::new()),
                Operator::DoesNotExist => ("DoesNotExist", Vec::new()),
            };
            RequirementReport { key: requirement.key.clone(), operator, values }
        };
        SelectorReport {
            match_labels: LabelsReport(selector.match_labels.clone()),
            match_expressions: selector.match_expressions.iter().map(requirement).collect(),
        }
    }
}
