//! `rbuild images`, `rbuild du`, `rbuild prune`.

use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use rbuild::{Filters, PruneOptions, Timestamp, UsageRow};
use serde_json::json;

use crate::args::{Cli, DuArgs, ImagesArgs, PruneArgs};
use crate::environment;
use crate::error::Failure;
use crate::render::{bytes, print, rfc3339};
use crate::request::{Usage, duration_secs, size_bytes};

/// Lists images.
pub(crate) fn images(cli: &Cli, args: &ImagesArgs) -> Result<ExitCode, Failure> {
    let store = environment::open_store(cli)?;
    let images = store.images()?;
    if json_wanted(&args.format)? {
        for image in &images {
            let row = json!({"name": image.name, "platform": image.platform, "created": rfc3339(image.created), "layers": image.snapshot.layers.len(), "digest": image.manifest.map(|digest| digest.to_string())});
            print(&row.to_string());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let rows = images.iter().map(|image| {
        let digest = image.manifest.map_or_else(|| "<not assembled>".to_owned(), |digest| digest.short());
        vec![
            image.name.clone(),
            image.platform.clone(),
            digest,
            image.snapshot.layers.len().to_string(),
            rfc3339(image.created)[..19].replace('T', " "),
        ]
    });
    table(&["NAME", "PLATFORM", "DIGEST", "LAYERS", "CREATED"], rows.collect());
    Ok(ExitCode::SUCCESS)
}

/// Shows what the store holds.
pub(crate) fn du(cli: &Cli, args: &DuArgs) -> Result<ExitCode, Failure> {
    let filters = filters(&args.filter)?;
    let store = environment::open_store(cli)?;
    let mut rows = store.usage()?;
    let now = store.now();
    rows.retain(|row| filters.admit(row) && unused(row, &filters, now));
    if json_wanted(&args.format)? {
        for row in &rows {
            print(&usage_json(row).to_string());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let lines = rows.iter().map(|row| {
        let mut line = vec![
            row.id.clone(),
            row.kind.to_string(),
            bytes(row.size),
            if row.in_use || row.shared { "no" } else { "yes" }.to_owned(),
            row.last_used.map_or_else(String::new, time),
        ];
        if args.verbose {
            line.extend([row.use_count.to_string(), row.shared.to_string(), row.in_use.to_string()]);
            line.push(row.description.clone());
        }
        line
    });
    let mut head = vec!["ID", "TYPE", "SIZE", "RECLAIMABLE", "LAST USED"];
    if args.verbose {
        head.extend(["USES", "SHARED", "IN USE", "DESCRIPTION"]);
    }
    table(&head, lines.collect());
    let total: u64 = rows.iter().map(|row| row.size).sum();
    let reclaimable: u64 = rows.iter().filter(|row| !row.in_use && !row.shared).map(|row| row.size).sum();
    print(&format!("Reclaimable:\t{}\nTotal:\t\t{}", bytes(reclaimable), bytes(total)));
    Ok(ExitCode::SUCCESS)
}

/// Removes cache.
pub(crate) fn prune(cli: &Cli, args: &PruneArgs) -> Result<ExitCode, Failure> {
    let filters = filters(&args.filter)?;
    let size = |text: &Option<String>| text.as_deref().map(size_bytes).transpose();
    let (reserved_space, max_used_space, min_free_space) =
        (size(&args.reserved_space)?, size(&args.max_used_space)?, size(&args.min_free_space)?);
    if !args.force && !args.dry_run && !confirmed(args.all)? {
        return Ok(ExitCode::from(1));
    }
    let store = environment::open_store(cli)?;
    let options = PruneOptions {
        all: args.all,
        unused_for: filters.unused_for,
        only: None,
        filters,
        reserved_space,
        max_used_space,
        min_free_space,
        dry_run: args.dry_run,
    };
    let report = store.prune(&options)?;
    let lines = report.removed.iter().map(|row| {
        let mut line =
            vec![row.row.id.clone(), row.row.kind.to_string(), bytes(row.row.size), row.reason.to_string()];
        if args.verbose {
            line.extend([row.row.last_used.map_or_else(String::new, time), row.row.description.clone()]);
        }
        line
    });
    let mut head = vec!["ID", "TYPE", "SIZE", "WHY"];
    if args.verbose {
        head.extend(["LAST USED", "DESCRIPTION"]);
    }
    table(&head, lines.collect());
    if report.in_use > 0 {
        print(&format!("In use and kept:\t{}", report.in_use));
    }
    let verb = if args.dry_run { "Would reclaim" } else { "Reclaimed" };
    print(&format!("{verb}:\t{}", bytes(report.reclaimed)));
    Ok(ExitCode::SUCCESS)
}

/// Whether a row was unused for as long as the filters say.
fn unused(row: &UsageRow, filters: &Filters, now: Timestamp) -> bool {
    let Some(wanted) = filters.unused_for else { return true };
    let nanos = i64::try_from(wanted.as_nanos()).unwrap_or(i64::MAX);
    row.last_used.is_none_or(|used| now.0.saturating_sub(used.0) >= nanos)
}

/// Reads `--filter`.
fn filters(texts: &[String]) -> Result<Filters, Failure> {
    let duration = |text: &str| duration_secs(text).ok().map(Duration::from_secs);
    Ok(Filters::parse(texts, &duration).map_err(|error| Usage(format!("--filter: {error}")))?)
}

/// To the second.
fn time(at: Timestamp) -> String {
    rfc3339(at).get(..19).unwrap_or_default().replace('T', " ")
}

fn confirmed(all: bool) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Usage("prune asks before it removes; without a terminal, say --force".to_owned()).into());
    }
    let what = if all { "all cache, base images included," } else { "all cache that no named image needs" };
    let mut err = std::io::stderr();
    drop(write!(err, "This removes {what}. Continue? [y/N] ").and_then(|()| err.flush()));
    let mut answer = String::new();
    drop(std::io::stdin().read_line(&mut answer));
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn usage_json(row: &UsageRow) -> serde_json::Value {
    json!({"id": row.id, "type": row.kind.word(), "size": row.size, "shared": row.shared, "inUse": row.in_use, "createdAt": row.created.map(rfc3339), "lastUsedAt": row.last_used.map(rfc3339), "usageCount": row.use_count, "description": row.description})
}

fn json_wanted(format: &str) -> Result<bool, Failure> {
    match format {
        "json" => Ok(true),
        "table" | "pretty" => Ok(false),
        other => Err(Usage(format!("--format: unknown form {other:?}; choose table or json")).into()),
    }
}

fn table(head: &[&str], rows: Vec<Vec<String>>) {
    let mut widths: Vec<usize> = head.iter().map(|text| text.len()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        print(padded.join("  ").trim_end());
    };
    line(head.to_vec());
    for row in &rows {
        line(row.iter().map(String::as_str).collect());
    }
}
