//! What was lowered as stable text, for golden tests and `rbuild plan`.

use std::fmt::Write as _;

use rbuild_graph::{FileKind, Graph, Op, SourceOp};

use crate::{Lowered, Needs, Outcome};

/// The graph, names of steps, target and config.
#[must_use]
pub fn dump(lowered: &Lowered) -> String {
    let mut out = rbuild_graph::dump(&lowered.graph);
    out.push_str(&names(&lowered.graph));
    let target = match lowered.target {
        None => "scratch".to_owned(),
        Some(edge) => format!("n{}.{}", edge.node.0, edge.output),
    };
    let _ = writeln!(out, "target {target} {}", lowered.platform);
    for (on, what) in
        [(lowered.uses_context, "uses the context"), (lowered.ignore_cache, "ignores the cache")]
    {
        if on {
            let _ = writeln!(out, "target {what}");
        }
    }
    if let Some(seconds) = lowered.source_date_epoch {
        let _ = writeln!(out, "epoch {seconds}");
    }
    if let Some(edge) = lowered.scan_context {
        let _ = writeln!(out, "scan context n{}", edge.node.0);
    }
    for (name, edge) in &lowered.scan_stages {
        let _ = writeln!(out, "scan {name} n{}", edge.node.0);
    }
    match serde_json::to_string_pretty(&lowered.config) {
        Ok(json) => out.push_str(&json),
        Err(error) => {
            let _ = write!(out, "config cannot be shown: {error}");
        }
    }
    out.push('\n');
    for warning in &lowered.warnings {
        let _ = writeln!(out, "{}", line(warning));
    }
    out
}

/// An outcome: a dump, or what is missing.
#[must_use]
pub fn dump_outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done(lowered) => dump(lowered),
        Outcome::Need(needs) => dump_needs(needs),
    }
}

fn dump_needs(needs: &Needs) -> String {
    let mut out = String::new();
    let mut add = |query: String, place: Option<&(rbuild_diag::SourceFile, rbuild_diag::Span)>, similar| {
        let place = place.map_or(String::new(), |(file, span)| {
            let at = file.line_col(span.start);
            format!(" at {}:{}:{}", file.name(), at.line, at.col)
        });
        let similar: Option<&String> = similar;
        let similar = similar.map_or(String::new(), |name| format!(" similar to stage {name}"));
        let _ = writeln!(out, "need {query}{place}{similar}");
    };
    for need in &needs.images {
        add(need.query.to_string(), need.place.as_ref(), need.similar.as_ref());
    }
    for need in &needs.git {
        add(need.query.to_string(), need.place.as_ref(), need.similar.as_ref());
    }
    out
}

fn names(graph: &Graph) -> String {
    let mut out = String::new();
    for (id, node) in graph.nodes() {
        let place = node.meta.place.as_ref().map_or(String::new(), |place| {
            format!("{}:{} ", place.file.name(), place.file.line_col(place.span.start).line)
        });
        let group =
            node.meta.progress_group.as_ref().map_or(String::new(), |group| format!(" group={group:?}"));
        let _ = writeln!(out, "n{} {} {place}{:?}{group}", id.0, node.platform, node.meta.name);
        for extra in extras(&node.op) {
            let _ = writeln!(out, "   {extra}");
        }
    }
    out
}

/// What the graph's own text leaves out.
fn extras(op: &Op) -> Vec<String> {
    match op {
        Op::Source(SourceOp::Git(git)) => vec![format!(
            "git ref={:?} subdir={:?} keep={} skip-submodules={}",
            git.reference, git.subdir, git.keep_git_dir, git.skip_submodules
        )],
        Op::Source(SourceOp::Http(http)) => {
            let checksum = http.checksum.map_or(String::new(), |sum| format!(" {sum}"));
            vec![format!("http file={:?}{checksum}", http.filename)]
        }
        Op::Exec(exec) => {
            let (spec, proxy) = (&exec.spec, &exec.hints.proxy_env);
            let mut out: Vec<String> = Vec::new();
            out.extend(spec.extra_hosts.iter().map(|it| format!("host {}={}", it.host, it.ip)));
            out.extend(spec.ulimits.iter().map(|it| format!("ulimit {}={}:{}", it.name, it.soft, it.hard)));
            for (name, value) in [
                ("hostname", &spec.hostname),
                ("cgroup", &spec.cgroup_parent),
                ("http_proxy", &proxy.http_proxy),
                ("https_proxy", &proxy.https_proxy),
                ("ftp_proxy", &proxy.ftp_proxy),
                ("no_proxy", &proxy.no_proxy),
                ("all_proxy", &proxy.all_proxy),
            ] {
                if !value.is_empty() {
                    out.push(format!("{name} {value}"));
                }
            }
            out
        }
        Op::File(file) => file
            .actions
            .iter()
            .filter_map(|action| match &action.kind {
                FileKind::Mkfile(file) => Some(format!("data {:?}", String::from_utf8_lossy(&file.data))),
                _ => None,
            })
            .collect(),
        Op::Source(_) | Op::Merge(_) | Op::Diff(_) => vec![],
    }
}

/// A diagnostic in one line: place, severity, code, message, notes and help.
pub(crate) fn line(diagnostic: &rbuild_diag::Diagnostic) -> String {
    let mut out = String::new();
    if let Some((file, span)) = &diagnostic.place {
        let at = file.line_col(span.start);
        let text = file.text().get(span.range()).unwrap_or_default();
        let first = text.lines().next().unwrap_or_default();
        let _ = write!(out, "{}:{}:{} `{first}` ", file.name(), at.line, at.col);
    }
    let severity = match diagnostic.severity {
        rbuild_diag::Severity::Warning => "warning",
        rbuild_diag::Severity::Error => "error",
    };
    let _ = write!(out, "{severity} {}: {}", diagnostic.code, diagnostic.message);
    for note in &diagnostic.notes {
        let _ = write!(out, " | note: {note}");
    }
    if let Some(help) = &diagnostic.help {
        let _ = write!(out, " | help: {help}");
    }
    out
}
