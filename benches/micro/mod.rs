//! Micro-benchmarks: single parts of rbuild, inside this process, through the public surface of their crates. Each is
//! run until it has taken long enough to tell; medians and ends are printed.

mod bytes;
mod frontend;
mod schedule;

use std::time::{Duration, Instant};

use crate::report::{render, spread};

/// How much there is to do at a scale.
#[derive(Clone, Copy)]
struct Size {
    /// Divides every size.
    shrink: usize,
    /// How long to go on.
    enough: Duration,
}

/// A benchmark that is ready: what an iteration does, and how much of what that is.
struct Micro {
    run: Box<dyn FnMut()>,
    amount: usize,
    unit: &'static str,
}

type Prepare = fn(Size) -> Result<Micro, String>;

const ALL: [(&str, Prepare); 10] = [
    ("parse", frontend::parse),
    ("lower", frontend::lower),
    ("frontend-10k", frontend::long),
    ("keys", frontend::keys),
    ("schedule-cached", schedule::cached),
    ("schedule-run", schedule::run),
    ("tar-write", bytes::tar_write),
    ("tar-read", bytes::tar_read),
    ("hash", bytes::hash),
    ("content-hash", bytes::content_hash),
];

/// Names of all.
pub(crate) const NAMES: [&str; 10] = {
    let mut names = [""; 10];
    let mut i = 0;
    while i < names.len() {
        names[i] = ALL[i].0;
        i += 1;
    }
    names
};

/// Runs all whose name contains `filter` and prints a table.
pub(crate) fn run(filter: Option<&str>, quick: bool) -> Result<(), String> {
    let size = if quick {
        Size { shrink: 100, enough: Duration::from_millis(5) }
    } else {
        Size { shrink: 1, enough: Duration::from_millis(700) }
    };
    let head = ["benchmark", "median", "min", "max", "samples", "throughput"].map(str::to_owned);
    let mut rows = vec![head];
    for (name, prepare) in ALL.iter().filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter))) {
        rows.push(row(name, prepare(size)?, size.enough)?);
    }
    if rows.len() == 1 {
        return Err(format!(
            "there is no micro-benchmark like {:?}; there are {}",
            filter.unwrap_or_default(),
            NAMES.join(", ")
        ));
    }
    print!("{}", render(&rows));
    Ok(())
}

fn row(name: &str, mut micro: Micro, enough: Duration) -> Result<[String; 6], String> {
    (micro.run)();
    let mut samples = Vec::new();
    let begin = Instant::now();
    while samples.len() < 5 || (begin.elapsed() < enough && samples.len() < 10_000) {
        let start = Instant::now();
        (micro.run)();
        samples.push(start.elapsed().as_secs_f64());
    }
    let spread = spread(&samples).ok_or("no samples")?;
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let rate = micro.amount as f64 / spread.median;
    Ok([
        name.to_owned(),
        time(spread.median),
        time(spread.min),
        time(spread.max),
        samples.len().to_string(),
        throughput(rate, micro.unit),
    ])
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} us", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.3} s"),
    }
}

fn throughput(rate: f64, unit: &str) -> String {
    match rate {
        r if r >= 1e6 => format!("{:.1} M{unit}/s", r / 1e6),
        r if r >= 1e3 => format!("{:.1} k{unit}/s", r / 1e3),
        r => format!("{r:.1} {unit}/s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_them_run() {
        run(None, true).unwrap();
        assert!(run(Some("nonsense"), true).unwrap_err().contains("schedule-run"));
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([time(2.5e-6), time(0.0125), time(2.0)], ["2.5 us", "12.50 ms", "2.000 s"]);
        assert_eq!([throughput(2.5e6, "B"), throughput(12.0, "step")], ["2.5 MB/s", "12.0 step/s"]);
    }
}
