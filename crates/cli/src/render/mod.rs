//! Progress on standard error, in the form that was asked for. A thread owns the form, so that a slow terminal never slows the
//! build, and events are only sent to it. Output of steps that nobody takes is left out rather than kept.

pub(crate) mod explain;
mod plain;
mod rawjson;
#[cfg(test)]
mod tests;
mod text;
mod tty;

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rbuild::{BuildEvent, BuildEvents, Diagnostic, Timestamp, VertexId};

pub(crate) use self::text::{bytes, clean, rfc3339};
use crate::args::ProgressMode;

/// So much output waits for a slow reader; what comes then is counted and left out.
const MAX_WAITING: usize = 32 << 20;
/// What an event takes besides its bytes.
const EVENT_BYTES: usize = 128;
/// Time between two pictures of the live view.
const FRAME: Duration = Duration::from_millis(100);

/// Progress being shown; `finish` shows the rest.
pub(crate) struct Display {
    send: Mutex<Option<Sending>>,
    waiting: Arc<AtomicUsize>,
    thread: Mutex<Option<JoinHandle<Vec<Diagnostic>>>>,
}

struct Sending {
    sender: Sender<BuildEvent>,
    /// Bytes of output that were left out, by their step.
    left_out: HashMap<VertexId, usize>,
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
        let tty = || {
            let lines = std::env::var("BUILDKIT_TTY_LOG_LINES").ok().and_then(|lines| lines.parse().ok());
            Form::Tty(tty::Tty::new(io::stderr(), colors(), lines.unwrap_or(6)))
        };
        let buffered = || io::BufWriter::with_capacity(64 << 10, io::stderr());
        let form = match mode {
            ProgressMode::Tty => tty(),
            ProgressMode::Auto if live_terminal() => tty(),
            ProgressMode::Auto | ProgressMode::Plain => {
                Form::Plain(plain::Plain::new(buffered(), !no_color()))
            }
            ProgressMode::Rawjson => Form::RawJson(rawjson::RawJson::new(buffered())),
            ProgressMode::Quiet | ProgressMode::None => Form::Quiet,
        };
        let (sender, receive) = mpsc::channel::<BuildEvent>();
        let waiting = Arc::new(AtomicUsize::new(0));
        let taken = waiting.clone();
        let thread = std::thread::spawn(move || show(form, &receive, &taken));
        Arc::new(Self {
            send: Mutex::new(Some(Sending { sender, left_out: HashMap::new() })),
            waiting,
            thread: Mutex::new(Some(thread)),
        })
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
        let mut guard = self.send.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sending) = guard.as_mut() else { return };
        match &event {
            BuildEvent::Log { vertex, data, .. } => {
                if self.waiting.load(Ordering::Relaxed) > MAX_WAITING {
                    *sending.left_out.entry(*vertex).or_default() += data.len();
                    return;
                }
                self.tell_left_out(sending, *vertex);
            }
            BuildEvent::Finished { vertex, .. } | BuildEvent::Cancelled { vertex, .. } => {
                self.tell_left_out(sending, *vertex);
            }
            _ => {}
        }
        self.waiting.fetch_add(weight(&event), Ordering::Relaxed);
        drop(sending.sender.send(event));
    }
}

impl Display {
    fn tell_left_out(&self, sending: &mut Sending, vertex: VertexId) {
        let Some(count) = sending.left_out.remove(&vertex) else { return };
        let message =
            format!("{} of output left out: it came faster than it could be shown", bytes(count as u64));
        let event = BuildEvent::Warning { vertex: Some(vertex), message };
        self.waiting.fetch_add(weight(&event), Ordering::Relaxed);
        drop(sending.sender.send(event));
    }
}

fn weight(event: &BuildEvent) -> usize {
    EVENT_BYTES + if let BuildEvent::Log { data, .. } = event { data.len() } else { 0 }
}

fn show(mut form: Form, receive: &mpsc::Receiver<BuildEvent>, waiting: &AtomicUsize) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    let mut drawn: Option<Instant> = None;
    loop {
        let event = match &form {
            Form::Tty(_) => receive.recv_timeout(FRAME),
            Form::Plain(plain) if plain.is_waiting() => receive.recv_timeout(2 * FRAME),
            _ => receive.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let now = now();
        let last = match event {
            Ok(event) => {
                waiting.fetch_sub(weight(&event), Ordering::Relaxed);
                match &mut form {
                    Form::Plain(plain) => plain.event(&event, now),
                    Form::Tty(tty) => tty.event(&event, now),
                    Form::RawJson(json) => json.event(&event, now),
                    Form::Quiet => {}
                }
                if let BuildEvent::Finding(finding) = event {
                    findings.push(finding);
                }
                false
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        match &mut form {
            Form::Tty(tty) if last || drawn.is_none_or(|at| at.elapsed() >= FRAME) => {
                tty.draw(now, size(), last);
                drawn = Some(Instant::now());
            }
            Form::Plain(plain) if last => plain.finish(),
            Form::Plain(plain) => {
                plain.print(now);
                if waiting.load(Ordering::Relaxed) == 0 {
                    plain.flush();
                }
            }
            Form::RawJson(json) if last || waiting.load(Ordering::Relaxed) == 0 => json.flush(),
            _ => {}
        }
        if last {
            return findings;
        }
    }
}

/// Whether the live view can be shown: a terminal that moves its cursor.
fn live_terminal() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Whether standard error takes colours.
pub(crate) fn colors() -> bool {
    live_terminal() && !no_color()
}

/// Columns and rows of the terminal; `COLUMNS` decides where there is none.
pub(crate) fn size() -> (usize, usize) {
    if io::stderr().is_terminal()
        && let Ok((columns, rows)) = crossterm::terminal::size()
        && columns > 0
        && rows > 0
    {
        return (usize::from(columns), usize::from(rows));
    }
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    (columns.filter(|columns| *columns >= 20).unwrap_or(100), 40)
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// The step that `event` is about.
fn vertex_of(event: &BuildEvent) -> Option<VertexId> {
    match event {
        BuildEvent::Started { vertex, .. }
        | BuildEvent::Cached { vertex, .. }
        | BuildEvent::Finished { vertex, .. }
        | BuildEvent::Cancelled { vertex, .. }
        | BuildEvent::Log { vertex, .. }
        | BuildEvent::Status { vertex, .. } => Some(*vertex),
        BuildEvent::Warning { vertex, .. } => *vertex,
        BuildEvent::Finding(_) => None,
    }
}

/// Prints to standard error; that it is closed is no reason to fail.
pub(crate) fn eprint(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}

static LOST: AtomicBool = AtomicBool::new(false);

/// Prints to standard output. A reader that has seen enough is no failure, a full disk is: see `output_lost`.
pub(crate) fn print(text: &str) {
    let mut out = io::stdout();
    if let Err(error) = writeln!(out, "{text}").and_then(|()| out.flush())
        && error.kind() != io::ErrorKind::BrokenPipe
        && !LOST.swap(true, Ordering::Relaxed)
    {
        eprint(&format!("error: cannot write to standard output: {error}"));
    }
}

/// Whether something could not be printed.
pub(crate) fn output_lost() -> bool {
    LOST.load(Ordering::Relaxed)
}
