//! Progress on standard error, in the form that was asked for. A thread owns the form, so that a slow terminal never slows the
//! build, and events are only sent to it.

mod plain;
mod rawjson;
mod tty;

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rbuild::{BuildEvent, BuildEvents, Diagnostic, Timestamp};

use crate::args::ProgressMode;

/// Progress being shown; `finish` shows the rest.
pub(crate) struct Display {
    send: Mutex<Option<Sender<BuildEvent>>>,
    thread: Mutex<Option<JoinHandle<Vec<Diagnostic>>>>,
}

enum Form {
    Plain(plain::Plain<io::BufWriter<io::Stderr>>),
    Tty(tty::Tty<io::Stderr>),
    RawJson(rawjson::RawJson<io::BufWriter<io::Stderr>>),
    Quiet,
}

impl Display {
    /// Starts showing.
    pub(crate) fn start(mode: ProgressMode) -> Arc<Self> {
        let terminal = io::stderr().is_terminal();
        let form = match mode {
            ProgressMode::Tty => Form::Tty(tty::Tty::new(io::stderr(), colors())),
            ProgressMode::Auto if terminal => Form::Tty(tty::Tty::new(io::stderr(), colors())),
            ProgressMode::Auto | ProgressMode::Plain => {
                Form::Plain(plain::Plain::new(io::BufWriter::new(io::stderr())))
            }
            ProgressMode::Rawjson => Form::RawJson(rawjson::RawJson::new(io::BufWriter::new(io::stderr()))),
            ProgressMode::Quiet | ProgressMode::None => Form::Quiet,
        };
        let (send, receive) = mpsc::channel::<BuildEvent>();
        let thread = std::thread::spawn(move || show(form, &receive));
        Arc::new(Self { send: Mutex::new(Some(send)), thread: Mutex::new(Some(thread)) })
    }

    /// Shows what is left, and returns the findings about the Dockerfile.
    pub(crate) fn finish(&self) -> Vec<Diagnostic> {
        drop(self.send.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        thread.and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl BuildEvents for Display {
    fn event(&self, event: BuildEvent) {
        if let Some(send) = &*self.send.lock().unwrap_or_else(PoisonError::into_inner) {
            drop(send.send(event));
        }
    }
}

fn show(mut form: Form, receive: &mpsc::Receiver<BuildEvent>) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    loop {
        let event = match &form {
            Form::Tty(_) => receive.recv_timeout(Duration::from_millis(100)),
            _ => receive.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let now = now();
        let mut last = false;
        match event {
            Ok(event) => {
                for event in std::iter::once(event).chain(receive.try_iter().take(1000)) {
                    match &mut form {
                        Form::Plain(plain) => plain.event(&event, now),
                        Form::Tty(tty) => tty.event(&event, now),
                        Form::RawJson(json) => json.event(&event, now),
                        Form::Quiet => {}
                    }
                    if let BuildEvent::Finding(finding) = event {
                        findings.push(finding);
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => last = true,
        }
        if let Form::Tty(tty) = &mut form {
            tty.draw(now, size(), last);
        }
        if last {
            return findings;
        }
        if matches!(form, Form::Tty(_)) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Whether standard error takes colours (`NO_COLOR`, not a terminal).
pub(crate) fn colors() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Columns and rows of the terminal.
pub(crate) fn size() -> (usize, usize) {
    match crossterm::terminal::size() {
        Ok((columns, rows)) if columns > 0 && rows > 0 => (usize::from(columns), usize::from(rows)),
        _ => (100, 40),
    }
}

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// `1.2s`
fn seconds(from: Timestamp, to: Timestamp) -> String {
    let tenths = to.0.saturating_sub(from.0).max(0) / 100_000_000;
    format!("{}.{}s", tenths / 10, tenths % 10)
}

/// `1.23MB`, decimal as BuildKit shows sizes.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    #[expect(clippy::cast_precision_loss, reason = "shown with two decimals")]
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{n}B") } else { format!("{value:.2}{}", UNITS[unit]) }
}

/// RFC 3339 in UTC with nanoseconds.
pub(crate) fn rfc3339(at: Timestamp) -> String {
    let (secs, nanos) = (at.0.div_euclid(1_000_000_000), at.0.rem_euclid(1_000_000_000));
    let (days, rest) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
    // Days since 0000-03-01, so that leap days end the year.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{nanos:09}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// Prints to standard error; that it is closed is no reason to fail.
pub(crate) fn eprint(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}

/// Prints to standard output.
pub(crate) fn print(text: &str) {
    drop(writeln!(io::stdout(), "{text}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_for_people() {
        assert_eq!(rfc3339(Timestamp(0)), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(Timestamp(1_709_210_096_000_000_007)), "2024-02-29T12:34:56.000000007Z");
        assert_eq!(rfc3339(Timestamp(-1)), "1969-12-31T23:59:59.999999999Z");
        assert_eq!(seconds(Timestamp(0), Timestamp(1_290_000_000)), "1.2s");
        assert_eq!(
            [bytes(0), bytes(999), bytes(1500), bytes(258_000_000)],
            ["0B", "999B", "1.50kB", "258.00MB"]
        );
    }
}
