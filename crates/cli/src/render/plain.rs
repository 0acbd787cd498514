//! Plain progress: lines as they come, as BuildKit prints them. `#5 [build 2/4] RUN make`, `#5 0.213 output`, `#5 DONE 1.2s`.
//! Steps that run together take turns, so that their lines stand in blocks and not one by one.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;

use rbuild::{BuildEvent, Timestamp, VertexId};

use super::text::{Lines, amount, clean, seconds};
use super::vertex_of;

const SECOND: i64 = 1_000_000_000;
/// A running step's lines wait no longer than this for their turn.
const TURN: i64 = SECOND;
/// More lines than this do not wait.
const MAX_WAITING: usize = 500;
/// How often the state of a download is worth a line.
const STATUS_EVERY: i64 = 5 * SECOND;

/// The state of plain output.
pub(crate) struct Plain<W> {
    out: W,
    colors: bool,
    vertices: BTreeMap<VertexId, Vertex>,
    /// Whose lines were printed last, while it runs.
    current: Option<VertexId>,
}

#[derive(Default)]
struct Vertex {
    name: String,
    started: Option<Timestamp>,
    lines: Lines,
    waiting: Vec<String>,
    waiting_since: Option<Timestamp>,
    status: HashMap<String, Timestamp>,
    ended: bool,
}

impl Vertex {
    fn line(&mut self, text: String, now: Timestamp) {
        self.waiting_since.get_or_insert(now);
        self.waiting.push(text);
    }

    fn log(&mut self, line: &[u8], colors: bool, now: Timestamp) {
        let since = self.started.map_or(0, |started| now.0.saturating_sub(started.0).max(0)) / 1_000_000;
        let text = clean(line, colors);
        self.line(format!("{}.{:03} {text}", since / 1000, since % 1000).trim_end().to_owned(), now);
    }
}

impl<W: Write> Plain<W> {
    /// `colors` lets colours of the steps' output through.
    pub(crate) fn new(out: W, colors: bool) -> Self {
        Self { out, colors, vertices: BTreeMap::new(), current: None }
    }

    /// Whether lines wait for their turn.
    pub(crate) fn is_waiting(&self) -> bool {
        self.vertices.values().any(|vertex| vertex.waiting_since.is_some())
    }

    /// Takes `event`, and prints what can be printed. `now` is the time of output lines.
    pub(crate) fn event(&mut self, event: &BuildEvent, now: Timestamp) {
        let Some(vertex) = vertex_of(event) else {
            if let BuildEvent::Warning { message, .. } = event {
                drop(writeln!(self.out, "WARNING: {}\n", clean(message.as_bytes(), false)));
            }
            return;
        };
        let colors = self.colors;
        let entry = self.vertices.entry(vertex).or_default();
        match event {
            BuildEvent::Started { name, at, .. } => {
                (entry.name, entry.started) = (clean(name.as_bytes(), false), Some(*at));
                entry.waiting_since.get_or_insert(now);
            }
            BuildEvent::Cached { name, .. } => {
                entry.name = clean(name.as_bytes(), false);
                entry.line("CACHED".to_owned(), now);
                entry.ended = true;
            }
            BuildEvent::Finished { at, error, .. } => {
                let text = match error {
                    None => format!("DONE {}", seconds(entry.started.unwrap_or(*at), *at)),
                    Some(error) => format!("ERROR: {}", clean(error.as_bytes(), false)),
                };
                end(entry, text, colors, now);
            }
            BuildEvent::Cancelled { .. } => end(entry, "CANCELED".to_owned(), colors, now),
            BuildEvent::Log { data, .. } => {
                let mut lines = std::mem::take(&mut entry.lines);
                lines.push(data, |line| entry.log(line, colors, now));
                entry.lines = lines;
            }
            BuildEvent::Status { id, current, total, done, .. } => {
                let due = entry.status.get(id).is_none_or(|at| now.0 - at.0 >= STATUS_EVERY);
                if *done {
                    entry.status.remove(id);
                } else if due {
                    // The first one only starts the clock: most are done before a line is due.
                    let first = entry.status.insert(id.clone(), now).is_none();
                    if first {
                        return;
                    }
                } else {
                    return;
                }
                let id = clean(id.as_bytes(), false);
                let state = if *done { " done" } else { "" };
                entry.line(format!("{id}{}{state}", amount(*current, *total, *done)), now);
            }
            BuildEvent::Warning { message, .. } => {
                entry.line(format!("WARNING: {}", clean(message.as_bytes(), false)), now);
            }
            BuildEvent::Finding(_) => {}
        }
        self.print(now);
    }

    /// Prints what can be printed: the step whose turn it is, then those that ended or waited long enough.
    pub(crate) fn print(&mut self, now: Timestamp) {
        if let Some(current) = self.current {
            self.show(current);
        }
        loop {
            let free = self.current.is_none();
            let mut next = self.vertices.iter().filter(|(_, vertex)| {
                vertex.waiting_since.is_some_and(|since| {
                    free || vertex.ended || vertex.waiting.len() > MAX_WAITING || now.0 - since.0 >= TURN
                })
            });
            let Some(id) = next.next().map(|(id, _)| *id) else { break };
            self.show(id);
        }
    }

    /// Writes what is still in the buffer.
    pub(crate) fn flush(&mut self) {
        drop(self.out.flush());
    }

    /// Prints all that waits for a turn.
    pub(crate) fn finish(&mut self) {
        self.print(Timestamp(i64::MAX));
        self.flush();
    }

    fn show(&mut self, id: VertexId) {
        if self.current != Some(id) {
            if let Some(before) = self.current {
                drop(writeln!(self.out, "#{} ...\n", before.0));
            }
            self.current = Some(id);
            let name = self.vertices.get(&id).map(|vertex| vertex.name.as_str()).unwrap_or_default();
            drop(writeln!(self.out, "#{} {name}", id.0));
        }
        let Some(vertex) = self.vertices.get_mut(&id) else { return };
        vertex.waiting_since = None;
        for line in vertex.waiting.drain(..) {
            drop(writeln!(self.out, "#{} {line}", id.0));
        }
        if vertex.ended {
            self.current = None;
            drop(writeln!(self.out));
        }
    }
}

fn end(vertex: &mut Vertex, text: String, colors: bool, now: Timestamp) {
    if let Some(rest) = vertex.lines.take_rest() {
        vertex.log(&rest, colors, now);
    }
    vertex.line(text, now);
    vertex.ended = true;
}
