//! `rbuild build`.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Mutex;

use rbuild::{
    BuildError, Builder, CancelToken, Diagnostic, GcPolicy, OutputStreams, Report, Share, Trace, write_file,
};

use crate::args::{BuildArgs, Cli, GcArgs, MessageFormat, ProgressMode};
use crate::commands::call;
use crate::error::Failure;
use crate::render::{Display, eprint, explain, print};
use crate::request::Usage;
use crate::{environment, messages, request, signals};

/// Builds, or does what `--call` says instead.
pub(crate) fn run(cli: &Cli, args: &BuildArgs) -> Result<ExitCode, Failure> {
    messages::use_format(args.format);
    match call::method(args)? {
        Some(method) => call::run(cli, args, method),
        None => build(cli, args),
    }
}

fn build(cli: &Cli, args: &BuildArgs) -> Result<ExitCode, Failure> {
    let policy = policy(&args.gc)?;
    let store = environment::open_store(cli)?;
    let prepared = request::build(args, store.root())?;
    if !silent(args) {
        request::ignored(&args.foreign).iter().for_each(|flag| messages::note(flag));
    }
    let builder = Builder::new(store)?;
    let began = builder.store().now();
    let cancel = CancelToken::new();
    signals::cancel_on_signals(&cancel);
    let display = Display::start(progress(args));
    let stdout: Option<Mutex<std::io::Stdout>> =
        (!std::io::stdout().is_terminal()).then(|| Mutex::new(std::io::stdout()));
    let streams = OutputStreams { stdout: stdout.as_ref().map(|stdout| stdout as _) };
    let result = builder.build(&prepared.request, &streams, display.clone(), &cancel);
    let findings = display.finish();
    if !silent(args) && args.source.progress != ProgressMode::Rawjson {
        let said: Vec<&Diagnostic> =
            findings.iter().filter(|finding| !said_by_error(finding, &result)).collect();
        messages::show_findings(&said);
    }
    drop(prepared.temporary);
    let report = match result {
        Ok(report) => report,
        Err(error) => {
            let trace = builder.store().trace_of(&prepared.request, began);
            explain(args, trace.as_ref());
            return Err(error.into());
        }
    };
    explain(args, report.trace.as_ref());
    write_files(args, &report)?;
    if args.quiet
        && let Some(digest) = &report.exported.config_digest
    {
        print(&digest.to_string());
    }
    if prepared.request.outputs.is_empty() && prepared.request.tags.is_empty() && !silent(args) {
        messages::note("without -t or -o the result stays in the cache only; -t NAME keeps it as an image");
    }
    if let Some(policy) = policy {
        // Who waits for the build has its result; what is not removed in a moment goes after the next build.
        drop(builder.store().start_collecting(policy).wait());
    }
    Ok(ExitCode::SUCCESS)
}

/// Says why steps ran, if that is wanted.
fn explain(args: &BuildArgs, trace: Option<&Trace>) {
    if let (true, Some(trace)) = (args.explain, trace) {
        eprint(explain::text(trace, &explain::all(trace)).trim_end());
    }
}

/// How large the cache may become; `None` if nothing is to be collected.
fn policy(args: &GcArgs) -> Result<Option<GcPolicy>, Usage> {
    match args.gc.as_str() {
        "true" | "1" | "on" => {}
        "false" | "0" | "off" => return Ok(None),
        other => return Err(Usage(format!("--gc: {other:?} is neither true nor false"))),
    }
    let share = |text: &Option<String>| -> Result<Option<Share>, Usage> {
        let Some(text) = text else { return Ok(None) };
        let percent = text.strip_suffix('%').map(|number| number.trim().parse::<u8>());
        Ok(Some(match percent {
            Some(Ok(percent)) if percent <= 100 => Share::Percent(percent),
            Some(_) => return Err(Usage(format!("{text:?} is no part of the disk; write 0% to 100%"))),
            None => Share::Bytes(request::size_bytes(text)?),
        }))
    };
    Ok(Some(GcPolicy {
        reserved_space: share(&args.gc_reserved_space)?,
        max_used_space: share(&args.gc_max_used_space)?,
        min_free_space: share(&args.gc_min_free_space)?,
    }))
}

/// Lines of progress among JSON would be no JSON: they are shown only when they are asked for.
pub(crate) fn progress(args: &BuildArgs) -> ProgressMode {
    let quiet =
        args.quiet || (args.format == MessageFormat::Json && args.source.progress == ProgressMode::Auto);
    if quiet { ProgressMode::Quiet } else { args.source.progress }
}

fn silent(args: &BuildArgs) -> bool {
    args.quiet || matches!(args.source.progress, ProgressMode::Quiet | ProgressMode::None)
}

/// The warning that a COPY wants what an ignore file leaves out is part of the error, once the COPY has failed of it.
fn said_by_error(finding: &Diagnostic, result: &Result<Report, BuildError>) -> bool {
    let (Err(error), Some((_, warned))) = (result, &finding.place) else { return false };
    finding.code == "CopyIgnoredFile"
        && error.diagnostics.iter().any(|diagnostic| {
            diagnostic
                .place
                .as_ref()
                .is_some_and(|(_, failed)| failed.start <= warned.start && warned.end <= failed.end)
        })
}

fn write_files(args: &BuildArgs, report: &Report) -> Result<(), Failure> {
    // Outputs that are no image have no id; an empty file would be taken for one.
    if let (Some(path), Some(id)) = (&args.iidfile, report.iidfile()) {
        write_file(path, id.as_bytes())?;
    }
    if let Some(path) = &args.metadata_file {
        write_file(path, report.metadata_file(args.explain).as_bytes())?;
    }
    Ok(())
}
