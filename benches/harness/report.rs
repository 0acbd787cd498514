//! Samples → statistics → a table, and a sample → a line of JSON. Pure.

use serde_json::{Value, json};

use crate::workload::Workload;

/// One measured build, or why there is none.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// What was built.
    pub(crate) workload: Workload,
    /// By whom.
    pub(crate) engine: String,
    /// In which round, from 0.
    pub(crate) round: u64,
    /// Wall time.
    pub(crate) seconds: f64,
    /// Peak memory, if known.
    pub(crate) peak_kib: Option<u64>,
    /// Of what that is the peak.
    pub(crate) peak_of: &'static str,
    /// Bytes of the gzip layers of the archive that was written.
    pub(crate) archive_bytes: Option<u64>,
    /// Why it does not count.
    pub(crate) error: Option<String>,
    /// Nothing failed: the engine cannot do this.
    pub(crate) unsupported: bool,
}

impl Sample {
    /// One line of the JSON file.
    pub(crate) fn json(&self) -> Value {
        json!({
            "kind": "sample",
            "workload": self.workload.name(),
            "engine": self.engine,
            "round": self.round,
            "ok": self.error.is_none(),
            "unsupported": self.unsupported,
            "seconds": self.seconds,
            "peak_kib": self.peak_kib,
            "peak_of": self.peak_of,
            "archive_bytes": self.archive_bytes,
            "error": self.error,
        })
    }
}

/// The middle of the values and their ends.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Spread {
    /// Half are below, half above.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The greatest.
    pub(crate) max: f64,
}

/// Of no values there is none.
pub(crate) fn spread(values: &[f64]) -> Option<Spread> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let median =
        if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
    Some(Spread { median, min, max })
}

/// The order in which engines take their turns in a round: each goes first in turn.
pub(crate) fn order(engines: usize, round: u64) -> Vec<usize> {
    let first = usize::try_from(round % engines.max(1) as u64).unwrap_or(0);
    (0..engines).map(|n| (first + n) % engines).collect()
}

/// The table: one row for each workload and engine in the order of `engines`. Ratios are to the first engine.
pub(crate) fn table(samples: &[Sample], engines: &[&str]) -> String {
    let head =
        ["workload", "engine", "median", "min", "max", "ratio", "peak MiB", "notes"].map(str::to_owned);
    let mut rows: Vec<[String; 8]> = vec![head];
    for workload in Workload::ALL {
        let mut reference = None;
        for (position, engine) in engines.iter().enumerate() {
            let mine: Vec<&Sample> = samples
                .iter()
                .filter(|sample| sample.workload == workload && sample.engine == *engine)
                .collect();
            if mine.is_empty() {
                continue;
            }
            let times: Vec<f64> = mine.iter().filter(|s| s.error.is_none()).map(|s| s.seconds).collect();
            let spread = spread(&times);
            if position == 0 {
                reference = spread.map(|spread| spread.median);
            }
            rows.push(row(workload, engine, &mine, spread, reference));
        }
    }
    render(&rows)
}

fn row(
    workload: Workload,
    engine: &str,
    samples: &[&Sample],
    spread: Option<Spread>,
    reference: Option<f64>,
) -> [String; 8] {
    let time =
        |pick: fn(Spread) -> f64| spread.map_or_else(|| "-".to_owned(), |spread| seconds(pick(spread)));
    let ratio = match (spread, reference) {
        (Some(spread), Some(reference)) if reference > 0.0 => format!("{:.2}", spread.median / reference),
        _ => "-".to_owned(),
    };
    let peak = samples.iter().filter_map(|sample| sample.peak_kib).max();
    [
        workload.name().to_owned(),
        engine.to_owned(),
        time(|spread| spread.median),
        time(|spread| spread.min),
        time(|spread| spread.max),
        ratio,
        peak.map_or_else(|| "-".to_owned(), |kib| (kib / 1024).to_string()),
        notes(samples),
    ]
}

fn notes(samples: &[&Sample]) -> String {
    let mut notes = Vec::new();
    if let Some(bytes) = samples.iter().filter_map(|sample| sample.archive_bytes).max() {
        notes.push(format!("{} MB of gzip", bytes / 1_000_000));
    }
    let errors: Vec<&str> = samples.iter().filter_map(|sample| sample.error.as_deref()).collect();
    match errors.first() {
        Some(first) if samples.iter().any(|sample| sample.unsupported) => notes.push(headline(first)),
        Some(first) => {
            notes.push(format!("{} of {} failed: {}", errors.len(), samples.len(), headline(first)))
        }
        None => {}
    }
    notes.join("; ")
}

/// Of a long error the line that names it; else the last, where tools give the reason.
pub(crate) fn headline(error: &str) -> String {
    let named = error.lines().find(|line| line.to_lowercase().contains("error"));
    named.or(error.lines().last()).unwrap_or_default().chars().take(120).collect()
}

/// Seconds with as many digits as are worth reading.
fn seconds(value: f64) -> String {
    if value < 10.0 { format!("{value:.3} s") } else { format!("{value:.2} s") }
}

/// Columns side by side; times and numbers to the right.
pub(crate) fn render<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let numeric = cell.starts_with(|c: char| c.is_ascii_digit())
                || (rows[0][column] == *cell && is_numeric(rows, column));
            let width = widths[column];
            let last = column + 1 == N;
            line.push_str(&match (last, numeric) {
                (true, _) => cell.clone(),
                (false, true) => format!("{cell:>width$}  "),
                (false, false) => format!("{cell:<width$}  "),
            });
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn is_numeric<const N: usize>(rows: &[[String; N]], column: usize) -> bool {
    rows.iter().skip(1).any(|row| row[column].starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(workload: Workload, engine: &str, round: u64, seconds: f64) -> Sample {
        Sample {
            workload,
            engine: engine.into(),
            round,
            seconds,
            peak_kib: Some(10 * 1024),
            peak_of: "command",
            archive_bytes: None,
            error: None,
            unsupported: false,
        }
    }

    #[test]
    fn medians_and_ends() {
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[2.0]), Some(Spread { median: 2.0, min: 2.0, max: 2.0 }));
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
    }

    #[test]
    fn everybody_goes_first_in_turn() {
        assert_eq!(order(3, 0), [0, 1, 2]);
        assert_eq!(order(3, 1), [1, 2, 0]);
        assert_eq!(order(3, 5), [2, 0, 1]);
        assert_eq!(order(1, 7), [0]);
        assert!(order(0, 0).is_empty());
    }

    #[test]
    fn the_table_compares_with_the_first_engine() {
        let mut failed = sample(Workload::Gzip, "buildah", 0, 0.5);
        failed.error = Some("exit status: 1: building\nError: no space\n | ^^".into());
        let mut cannot = sample(Workload::Gzip, "docker", 0, 0.0);
        (cannot.error, cannot.unsupported, cannot.peak_kib) = (Some("no archives".into()), true, None);
        let mut archive = sample(Workload::Gzip, "rbuild", 0, 12.0);
        archive.archive_bytes = Some(300_000_000);
        let samples = [
            sample(Workload::Noop, "buildah", 0, 3.0),
            sample(Workload::Noop, "rbuild", 0, 1.0),
            sample(Workload::Noop, "rbuild", 1, 2.0),
            failed,
            cannot,
            archive,
        ];
        let text = table(&samples, &["rbuild", "buildah", "docker"]);
        let expected = "\
workload  engine    median      min      max  ratio  peak MiB  notes
noop      rbuild   1.500 s  1.000 s  2.000 s   1.00        10
noop      buildah  3.000 s  3.000 s  3.000 s   2.00        10
gzip      rbuild   12.00 s  12.00 s  12.00 s   1.00        10  300 MB of gzip
gzip      buildah  -        -        -        -            10  1 of 1 failed: Error: no space
gzip      docker   -        -        -        -      -         no archives
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_sample_is_a_line() {
        let line = sample(Workload::Edit, "docker", 2, 0.25).json().to_string();
        assert!(!line.contains('\n'));
        for part in
            ["\"workload\":\"edit\"", "\"round\":2", "\"ok\":true", "\"seconds\":0.25", "\"peak_kib\":10240"]
        {
            assert!(line.contains(part), "{line}");
        }
    }
}
