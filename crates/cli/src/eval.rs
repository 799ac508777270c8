//! `portcullis eval`: the verdicts of many connections, JSON lines in and JSON lines out.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::num::NonZero;
use std::panic;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use portcullis_core::Program;
use portcullis_core::model::{Cluster, Direction};
use portcullis_core::net::{Family, Protocol};
use portcullis_core::program::{Exemption, Judgement, Verdict};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::ends::{Flow, Names, PortName};
use crate::input::{InputArgs, is_stdin};
use crate::trouble::Trouble;

/// The verdicts of many connections: JSON lines in, JSON lines out
#[derive(Debug, clap::Args)]
#[command(after_help = "Each input line is a connection:\n  \
    {\"from\":\"shop/web-0\",\"to\":\"192.168.5.10\",\"port\":80,\"protocol\":\"TCP\"}\n\
    The output has the same fields, in the same order, with \"verdict\" (allow, deny, or mixed\n\
    where the address families differ, then also \"families\") and \"reason\". protocol may be\n\
    left out (TCP), and is ICMP, without port, for what has no ports. Where the input lacks a fact\n\
    that the answer depends on, \"missing\" names it, and the verdict is that of what is known.")]
pub(crate) struct Eval {
    /// File of connections; - for standard input
    #[arg(long, value_name = "FILE")]
    flows: PathBuf,
    #[command(flatten)]
    input: InputArgs,
    /// Give the verdict "undetermined" where a fact is missing
    #[arg(long)]
    undetermined: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Json)]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// JSON lines; the shape is stable
    Json,
    /// Columns for people
    Table,
}

/// How many bytes are judged at a time, on all cores.
const BLOCK: u64 = 1 << 20;

/// A line that has the fields of the contract and no others: by far the most common.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    from: Cow<'a, str>,
    #[serde(borrow)]
    to: Cow<'a, str>,
    port: Option<u16>,
    #[serde(borrow)]
    protocol: Option<Cow<'a, str>>,
}

impl Eval {
    pub(crate) fn run(self) -> Result<ExitCode, Trouble> {
        if is_stdin(&self.flows) && self.input.reads_stdin() {
            return Err(Trouble::StdinTwice);
        }
        let (name, reader): (String, Box<dyn BufRead>) = match self.flows.to_str() {
            Some("-") => ("<stdin>".to_owned(), Box::new(io::stdin().lock())),
            _ => {
                let name = self.flows.display().to_string();
                let what = format!("cannot read the connections in {name}");
                let file =
                    File::open(&self.flows).map_err(|source| Trouble::Io { what, source })?;
                (name, Box::new(BufReader::with_capacity(1 << 16, file)))
            }
        };
        let input = self.input.read_sound()?;
        let program = Program::compile(&input.cluster);
        let judge = Judge {
            cluster: &input.cluster,
            program: &program,
            names: Names::of(&input.cluster),
            namespace: &input.namespace,
            undetermined: self.undetermined,
        };
        judge.all(&name, reader, self.output, &mut io::stdout().lock())?;
        Ok(ExitCode::SUCCESS)
    }
}

struct Judge<'a> {
    cluster: &'a Cluster,
    program: &'a Program,
    names: Names<'a>,
    namespace: &'a str,
    undetermined: bool,
}

/// What is said of a line.
struct Answer {
    verdict: Verdict,
    /// What it depends on and the input does not tell.
    missing: Vec<String>,
}

impl Judge<'_> {
    fn all(
        &self,
        name: &str,
        mut lines: impl BufRead,
        format: Format,
        out: &mut impl Write,
    ) -> Result<(), Trouble> {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let mut block = Vec::new();
        let mut next = 1;
        loop {
            block.clear();
            lines
                .by_ref()
                .take(BLOCK)
                .read_to_end(&mut block)
                .and_then(|_| lines.read_until(b'\n', &mut block))
                .map_err(|source| Trouble::Io { what: format!("cannot read {name}"), source })?;
            if block.is_empty() {
                return out.flush().map_err(Trouble::output);
            }
            let all: Vec<&[u8]> = block.split_inclusive(|byte| *byte == b'\n').collect();
            let size = all.len().div_ceil(threads);
            let answers: Vec<_> = thread::scope(|scope| {
                let parts = all.chunks(size).zip((next..).step_by(size));
                let judge =
                    |(part, first)| scope.spawn(move || self.part(name, part, first, format));
                let running: Vec<_> = parts.map(judge).collect();
                let each = running.into_iter().map(|thread| thread.join());
                each.map(|part| part.unwrap_or_else(|payload| panic::resume_unwind(payload)))
                    .collect()
            });
            for (text, outcome) in answers {
                // What was answered before an error is still an answer.
                out.write_all(&text).and_then(|()| out.flush()).map_err(Trouble::output)?;
                outcome?;
            }
            next += all.len();
        }
    }

    /// The answers to lines of which the first has this number, up to one that is wrong.
    fn part(
        &self,
        name: &str,
        lines: &[&[u8]],
        first: usize,
        format: Format,
    ) -> (Vec<u8>, Result<(), Trouble>) {
        let (mut out, mut reason) = (Vec::new(), String::new());
        let outcome = (first..).zip(lines).try_for_each(|(number, line)| {
            let answer = self.line(line, format, &mut reason, &mut out);
            answer.map_err(|why| Trouble::Flow { place: format!("{name}:{number}"), why })
        });
        (out, outcome)
    }

    fn line(
        &self,
        line: &[u8],
        format: Format,
        reason: &mut String,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        let text = str::from_utf8(line).map_err(|e| format!("expected UTF-8: {e}"))?.trim();
        if text.is_empty() {
            return Ok(());
        }
        reason.clear();
        let (flow, others) = read_line(text)?;
        let answer = self.judge(&flow, reason)?;
        let written = match format {
            Format::Json => write_json(out, text, others, &answer, reason),
            Format::Table => {
                let (from, to) = (&flow.from, &flow.to);
                let port = flow.port.map_or(String::new(), |p| format!("{p}/"));
                let protocol = flow.protocol.as_deref().unwrap_or("TCP");
                let on = format!("{port}{protocol}");
                writeln!(out, "{:<6} {from} -> {to} on {on}  ({reason})", word(answer.verdict))
            }
        };
        written.map_err(|e| e.to_string())
    }

    fn judge(&self, line: &Line<'_>, reason: &mut String) -> Result<Answer, String> {
        let end = |text: &str| self.names.find(text, self.namespace).map_err(|e| e.to_string());
        let (from, to) = (end(&line.from)?, end(&line.to)?);
        let flows = self.names.flows(&from, &to, &port(line)?).map_err(|e| e.to_string())?;
        let known = |flow: &Flow| self.program.verdict(flow.source, flow.destination, flow.traffic);
        let judge = |flow: &Flow| match known(flow) {
            Verdict::Undetermined if !self.undetermined => {
                self.program.closed_verdict(flow.source, flow.destination, flow.traffic)
            }
            verdict => verdict,
        };
        let [first, rest @ ..] = flows.as_slice() else {
            return Err("there is no pair of pods to judge".to_owned());
        };
        let verdict = judge(first);
        if let Some(other) = rest.iter().find(|flow| judge(flow) != verdict) {
            let show = |flow: &Flow| {
                let (from, to) = (self.names.show(flow.source), self.names.show(flow.destination));
                format!("{from} -> {to} is {}", word(judge(flow)))
            };
            let pods = "these pods do not agree";
            return Err(format!("{pods}: {}, {}; name the pods", show(first), show(other)));
        }
        self.reason(first, verdict, reason);
        let mut missing = Vec::new();
        if known(first) == Verdict::Undetermined {
            let paths = self.program.paths(first.source, first.destination);
            let facts = paths.flat_map(|path| self.program.missing(&path, first.traffic));
            missing.extend(facts.map(|fact| self.names.fact(first, fact)));
            missing.dedup();
            reason.extend(["; depends on ", &missing.join(" and ")]);
        }
        Ok(Answer { verdict, missing })
    }

    /// The reason of the first path that is refused, or of the first if all pass.
    fn reason(&self, flow: &Flow, verdict: Verdict, text: &mut String) {
        let mut paths = self.program.paths(flow.source, flow.destination);
        let decides = match verdict {
            Verdict::Mixed { allowed } => paths.find(|path| path.family() != Some(allowed)),
            Verdict::Undetermined => {
                paths.find(|p| self.program.judge(p, flow.traffic) == Judgement::Undetermined)
            }
            Verdict::Allowed | Verdict::Refused => paths.next(),
        };
        let Some(decides) = decides else {
            text.push_str("no address family in common");
            return;
        };
        match self.program.exempt(&decides) {
            Some(Exemption::Itself) => return text.push_str("a pod always reaches itself"),
            Some(Exemption::OwnNode) => {
                return text.push_str("a pod and its own node always reach each other");
            }
            None => {}
        }
        for direction in Direction::ALL {
            let (subject, remote) = decides.subject_and_remote(direction);
            let separator = if direction == Direction::Egress { "" } else { "; " };
            text.extend([separator, direction.section()]);
            let pod = subject.pod.map(|i| &self.cluster.pods[i]);
            let (Some(rules), Some(pod)) = (self.program.isolation(subject, direction), pod) else {
                text.push_str(" open");
                continue;
            };
            let policy = |i: u32| {
                let policy = &self.cluster.policies[i as usize];
                (policy.namespace.as_str(), policy.name.as_str())
            };
            let mut allowing = self.program.allowing(rules, remote.identity, flow.traffic);
            let mut doubtful = self.program.doubtful(rules, &decides, direction, flow.traffic);
            let perhaps = match self.program.judge_end(&decides, direction, flow.traffic) {
                Judgement::Undetermined => " perhaps",
                _ => "",
            };
            let _ = match allowing.next().or_else(|| doubtful.next()) {
                Some(entry) => {
                    let (namespace, name) = policy(entry.origin.policy);
                    text.extend([perhaps, " allowed by ", namespace, "/", name]);
                    write!(text, " {}[{}]", direction.section(), entry.origin.rule)
                }
                None => {
                    let (namespace, name) = policy(rules.policies[0]);
                    text.extend([" refused: ", &pod.namespace, "/", &pod.name]);
                    text.extend([" is isolated by ", namespace, "/", name]);
                    match rules.policies.len() - 1 {
                        0 => Ok(()),
                        more => write!(text, " and {more} more"),
                    }
                }
            };
        }
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allowed => "allow",
        Verdict::Refused => "deny",
        Verdict::Mixed { .. } => "mixed",
        Verdict::Undetermined => "undetermined",
    }
}

/// Reads a line, and keeps the fields that are not of the contract in their place.
fn read_line(text: &str) -> Result<(Line<'_>, Option<Map<String, Value>>), String> {
    // Anything else would be read from a list too.
    if text.starts_with('{')
        && let Ok(line) = serde_json::from_str(text)
    {
        return Ok((line, None));
    }
    let mut map: Map<String, Value> =
        serde_json::from_str(text).map_err(|e| format!("expected a JSON object: {e}"))?;
    for ours in ["verdict", "families", "missing", "reason"] {
        map.shift_remove(ours);
    }
    let string = |key: &str| match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(Cow::Owned(text.clone()))),
        Some(other) => Err(format!("{key:?}: expected a string, found {other}")),
    };
    let required = |key: &str| string(key)?.ok_or_else(|| format!("{key:?} is missing"));
    let port = match map.get("port") {
        None | Some(Value::Null) => None,
        Some(value) => Some(
            value
                .as_u64()
                .and_then(|n| u16::try_from(n).ok())
                .ok_or_else(|| format!("\"port\": expected 1 to 65535, found {value}"))?,
        ),
    };
    let line =
        Line { from: required("from")?, to: required("to")?, port, protocol: string("protocol")? };
    Ok((line, Some(map)))
}

fn port(line: &Line<'_>) -> Result<PortName, String> {
    let protocol = line.protocol.as_deref().unwrap_or("TCP");
    match (line.port, Protocol::from_api(protocol)) {
        (Some(0), _) => Err("0 is not a port: write one from 1 to 65535".to_owned()),
        (Some(port), Some(protocol)) => Ok(PortName::Port(Ok(port), Some(protocol))),
        (None, Some(protocol)) => Err(format!("\"port\" is missing, which {protocol} needs")),
        (None, None) if protocol == "ICMP" => Ok(PortName::Other),
        (Some(_), None) if protocol == "ICMP" => Err("ICMP has no ports: leave it out".to_owned()),
        (_, None) => Err(format!("unknown protocol {protocol:?}: write TCP, UDP, SCTP or ICMP")),
    }
}

fn write_json(
    out: &mut Vec<u8>,
    line: &str,
    others: Option<Map<String, Value>>,
    answer: &Answer,
    reason: &str,
) -> io::Result<()> {
    let Answer { verdict, missing } = answer;
    match others {
        Some(map) => serde_json::to_writer(&mut *out, &map)?,
        None => out.extend(line.as_bytes()),
    }
    // The object goes on.
    out.pop();
    write!(out, ",\"verdict\":\"{}\"", word(*verdict))?;
    if let Verdict::Mixed { allowed } = verdict {
        let family = |f: Family| if f == *allowed { "allow" } else { "deny" };
        let (v4, v6) = (family(Family::V4), family(Family::V6));
        write!(out, ",\"families\":{{\"IPv4\":\"{v4}\",\"IPv6\":\"{v6}\"}}")?;
    }
    if !missing.is_empty() {
        out.extend(b",\"missing\":");
        serde_json::to_writer(&mut *out, missing)?;
    }
    out.extend(b",\"reason\":");
    serde_json::to_writer(&mut *out, reason)?;
    out.extend(b"}\n");
    Ok(())
}
