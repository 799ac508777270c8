//! `portcullis test`: assertions about what policies allow, for review and for CI.

mod file;
mod init;
mod judge;
mod packets;
mod ports;
mod report;
mod schema;
mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use portcullis_core::Program;
use portcullis_core::net::IpNet;
use portcullis_kube::{Diagnostic, Options, Severity, Source, read_values};

use self::file::{File, Test};
use self::judge::Problem;
use self::report::{Format, Report, Result as TestResult};
use self::world::World;
use crate::input::{InputArgs, is_stdin, line};
use crate::output::{plural, print};
use crate::trouble::Trouble;

/// Do the policies allow and refuse what they are meant to?
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exits 0 if every test holds, 1 if one does not, 2 if one cannot be run.\n\n\
                        Examples:\n  \
                        portcullis test examples/three-tier/tests\n  \
                        portcullis test -f rendered.yaml tests/policies.yaml -o junit\n  \
                        portcullis test --lab examples/three-tier/tests\n  \
                        portcullis test --init -f examples/three-tier > policies.yaml"
)]
pub(crate) struct Assert {
    /// Files of tests, directories of them, or - for standard input
    #[arg(value_name = "FILE", required_unless_present_any = ["init", "schema"])]
    files: Vec<PathBuf>,
    /// Manifests to hold the tests against, instead of those that their files name
    #[command(flatten)]
    input: InputArgs,
    /// Only tests whose name has this in it, in whatever case
    #[arg(long, value_name = "PATTERN")]
    run: Option<String>,
    /// Send real packets too: build a lab of the manifests, and try what the tests speak of
    #[arg(long)]
    lab: bool,
    /// Write tests of all that is allowed and refused today, for you to cut and to name
    #[arg(long, conflicts_with_all = ["files", "run", "lab", "schema", "output"])]
    init: bool,
    /// Print the JSON schema of files of tests, for editors
    #[arg(long, conflicts_with_all = ["files", "run", "lab", "filename", "output"])]
    schema: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// Files of tests, by the manifests that they are about, and by where pods without an address get
/// theirs.
type Grouped = BTreeMap<Vec<PathBuf>, BTreeMap<Vec<IpNet>, Vec<File>>>;

impl Assert {
    pub(crate) fn run(self) -> Result<ExitCode, Trouble> {
        if self.schema {
            print(schema::SCHEMA)?;
            return Ok(ExitCode::SUCCESS);
        }
        if self.init {
            let input = self.input.read_sound()?;
            let program = Program::compile(&input.cluster);
            let world = World::of(&input, &input.cluster, &program);
            print(&init::text(world).ok_or(Trouble::NothingToTry)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut files = self.read()?;
        if let Some(pattern) = &self.run {
            let pattern = pattern.to_lowercase();
            for file in &mut files {
                file.tests.retain(|test| test.name.to_lowercase().contains(&pattern));
            }
            files.retain(|file| !file.tests.is_empty());
        }
        if files.is_empty() {
            return Err(Trouble::NoTests(self.run.unwrap_or_default()));
        }
        let mut results = Vec::new();
        let mut diagnostics = Vec::new();
        for (manifests, by_pod_cidrs) in self.by_manifests(files) {
            let args = InputArgs { filename: manifests, ..self.input.clone() };
            let mut input = args.read_sound()?;
            for (pod_cidrs, files) in by_pod_cidrs {
                input.cluster.pod_cidrs = match pod_cidrs.is_empty() {
                    true => self.input.pod_cidr.clone(),
                    false => pod_cidrs,
                };
                let tests: Vec<&Test> = files.iter().flat_map(|file| &file.tests).collect();
                let outcomes = match self.lab {
                    true => packets::run(&input, &tests, &mut diagnostics)?,
                    false => {
                        let program = Program::compile(&input.cluster);
                        let mut world = World::of(&input, &input.cluster, &program);
                        judge_all(&mut world, &tests, &mut diagnostics)
                    }
                };
                results.extend(tests.iter().zip(outcomes).map(|(test, outcome)| TestResult {
                    name: test.name.clone(),
                    location: test.at.location.clone(),
                    outcome,
                }));
            }
        }
        tell(&diagnostics)?;
        let report = Report { results };
        report.print(self.output)?;
        Ok(if report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Reads the files of tests, and goes on only if nothing is wrong with them.
    fn read(&self) -> Result<Vec<File>, Trouble> {
        let stdin = self.files.iter().chain(&self.input.filename).filter(|path| is_stdin(path));
        if stdin.count() > 1 {
            return Err(Trouble::StdinTwice);
        }
        let source = |path: &PathBuf| {
            if is_stdin(path) { Source::Stdin } else { Source::Path(path.clone()) }
        };
        let sources: Vec<Source> = self.files.iter().map(source).collect();
        let options = Options { recursive: self.input.recursive, ..Options::default() };
        let (values, mut diagnostics) = read_values(&sources, &options);
        let files = file::read(&values, &mut diagnostics);
        tell(&diagnostics)?;
        Ok(files)
    }

    /// The files that are about the same manifests together; about none where the command line says
    /// what they are about, or nothing does, and a live cluster is read.
    fn by_manifests(&self, files: Vec<File>) -> Grouped {
        let input = &self.input;
        let is_said = !input.filename.is_empty()
            || !input.kustomize.is_empty()
            || input.live.kubeconfig.is_some()
            || input.live.context.is_some();
        let mut groups = Grouped::new();
        for file in files {
            let beside = Path::new(&file.name).parent().unwrap_or(Path::new(""));
            let manifests = match is_said {
                true => input.filename.clone(),
                false => file.manifests.iter().map(|path| plain(&beside.join(path))).collect(),
            };
            let by_pod_cidrs = groups.entry(manifests).or_default();
            by_pod_cidrs.entry(file.pod_cidrs.clone()).or_default().push(file);
        }
        groups
    }
}

/// How each test does not hold. Where one cannot be run, a diagnostic says why.
fn judge_all(
    world: &mut World<'_>,
    tests: &[&Test],
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<report::Outcome> {
    let mut outcomes = Vec::new();
    for test in tests {
        match world.judge(test) {
            Ok(problems) => outcomes.push(outcome(world, problems)),
            Err(diagnostic) => diagnostics.push(diagnostic),
        }
    }
    outcomes
}

/// What is told of a test: all that is wrong, and why the first of it is so.
fn outcome(world: &World<'_>, problems: Vec<Problem>) -> report::Outcome {
    let why = problems.iter().find_map(|problem| problem.flow).map(|flow| world.why(flow));
    report::Outcome {
        problems: problems.into_iter().map(|problem| problem.message).collect(),
        why: why.unwrap_or_default(),
        tried: None,
    }
}

/// Tells what is wrong with files of tests, if anything is.
fn tell(diagnostics: &[Diagnostic]) -> Result<(), Trouble> {
    for diagnostic in diagnostics {
        anstream::eprintln!("{}", line(diagnostic));
    }
    let errors = diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
    match errors {
        0 => Ok(()),
        n => Err(Trouble::Tests(plural(n, "error"))),
    }
}

/// A path without `.` and without `..` after a name: `tests/../app.yaml` is `app.yaml`.
fn plain(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut plain = PathBuf::new();
    for part in path.components() {
        let below = matches!(plain.components().next_back(), Some(Component::Normal(_)));
        match part {
            Component::CurDir => {}
            Component::ParentDir if below => _ = plain.pop(),
            part => plain.push(part),
        }
    }
    if plain.as_os_str().is_empty() { PathBuf::from(".") } else { plain }
}
