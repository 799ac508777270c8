//! `portcullis observe hits`: how often rules let connections pass.

use std::collections::BTreeMap;
use std::process::ExitCode;

use portcullis_cni::flow::{RuleHits, RuleName};
use portcullis_cni::protocol::{Answer, Request};

use super::{Asked, lines, unheard};
use crate::output::{Output, json, print, terminal_width};
use crate::table::Table;
use crate::trouble::Trouble;

/// How often each rule let a connection pass, and which never did
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Counted are new connections at the pods of the nodes that are asked, from when the \
                  agent first enforced the rule. A rule of a policy that selects no pod there is not \
                  among them."
)]
pub(crate) struct Hits {
    #[command(flatten)]
    asked: Asked,
    /// Only rules of policies of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Vec<String>,
    /// Only rules that never let anything pass
    #[arg(long)]
    never: bool,
    /// Format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

impl Hits {
    pub(crate) fn run(&self) -> Result<ExitCode, Trouble> {
        let reach = self.asked.reach()?;
        let mut all = BTreeMap::<RuleName, (u64, String)>::new();
        for (agent, mut line) in lines(&reach)? {
            let heard = line.ask(&Request::Hits, |answer| {
                let Answer::Hits { rules } = answer else { return Ok(()) };
                for RuleHits { rule, hits, since } in rules {
                    // What one agent has not counted, nobody has: the last of them says since when.
                    let known = all.entry(rule).or_insert((0, since.clone()));
                    known.0 += hits;
                    if known.1 < since {
                        known.1 = since;
                    }
                }
                Ok(())
            });
            heard.map_err(|why| unheard(&agent, why))?;
        }
        let wanted = |(rule, (hits, _)): &(RuleName, (u64, String))| {
            let namespace = rule.policy.split('/').next().unwrap_or_default();
            (self.namespace.is_empty() || self.namespace.iter().any(|wanted| wanted == namespace))
                && (!self.never || *hits == 0)
        };
        let rules = all.into_iter().filter(wanted);
        let rules = rules.map(|(rule, (hits, since))| RuleHits { rule, hits, since });
        let rules: Vec<RuleHits> = rules.collect();
        if self.output == Output::Json {
            json(&rules)?;
        } else if rules.is_empty() {
            anstream::eprintln!("no such rule is enforced");
        } else {
            let rows = rules.iter().map(|RuleHits { rule, hits, since }| {
                let cells =
                    [rule.policy.clone(), rule.short().to_owned(), hits.to_string(), since.clone()];
                cells.map(|cell| vec![cell]).to_vec()
            });
            let table =
                Table { headers: &["POLICY", "RULE", "HITS", "SINCE"], rows: rows.collect() };
            print(&table.text(terminal_width()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
