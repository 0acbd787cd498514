//! Plain progress: lines as they come, as BuildKit prints them. `#5 [build 2/4] RUN make`, `#5 0.213 output`, `#5 DONE 1.2s`.

use std::collections::HashMap;
use std::io::Write;

use rbuild::{BuildEvent, Timestamp, VertexId};

use super::{bytes, seconds};

/// The state of plain output.
pub(crate) struct Plain<W> {
    out: W,
    vertices: HashMap<VertexId, Vertex>,
    /// Whose lines were printed last.
    current: Option<VertexId>,
}

#[derive(Default)]
struct Vertex {
    name: String,
    started: Option<Timestamp>,
    line: Vec<u8>,
    headed: bool,
    ended: bool,
}

impl<W: Write> Plain<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, vertices: HashMap::new(), current: None }
    }

    /// Prints what `event` adds. `now` is the time of output lines.
    pub(crate) fn event(&mut self, event: &BuildEvent, now: Timestamp) {
        match event {
            BuildEvent::Started { vertex, name, at, .. } => {
                let entry = self.vertices.entry(*vertex).or_default();
                (entry.name, entry.started) = (name.to_string(), Some(*at));
                self.switch_to(*vertex);
            }
            BuildEvent::Cached { vertex, name } => {
                self.vertices.entry(*vertex).or_default().name = name.to_string();
                self.line(*vertex, "CACHED");
                self.end(*vertex);
            }
            BuildEvent::Finished { vertex, at, error } => {
                self.flush(*vertex, now);
                let started = self.vertices.get(vertex).and_then(|v| v.started).unwrap_or(*at);
                match error {
                    None => self.line(*vertex, &format!("DONE {}", seconds(started, *at))),
                    Some(error) => self.line(*vertex, &format!("ERROR: {error}")),
                }
                self.end(*vertex);
            }
            BuildEvent::Cancelled { vertex, .. } => {
                self.flush(*vertex, now);
                self.line(*vertex, "CANCELED");
                self.end(*vertex);
            }
            BuildEvent::Log { vertex, data, .. } => {
                for piece in data.split_inclusive(|b| *b == b'\n') {
                    self.vertices.entry(*vertex).or_default().line.extend_from_slice(piece);
                    if piece.ends_with(b"\n") {
                        self.flush(*vertex, now);
                    }
                }
            }
            BuildEvent::Status { vertex, id, current, done: true, .. } => {
                let size = if *current > 0 { format!(" {}", bytes(*current)) } else { String::new() };
                self.line(*vertex, &format!("{id}{size} done"));
            }
            BuildEvent::Status { .. } | BuildEvent::Finding(_) => {}
            BuildEvent::Warning { vertex: Some(vertex), message } => {
                self.line(*vertex, &format!("WARNING: {message}"))
            }
            BuildEvent::Warning { vertex: None, message } => drop(writeln!(self.out, "WARNING: {message}")),
        }
    }

    fn flush(&mut self, vertex: VertexId, now: Timestamp) {
        let entry = self.vertices.entry(vertex).or_default();
        if entry.line.is_empty() {
            return;
        }
        let line = std::mem::take(&mut entry.line);
        let since = entry.started.map_or(0, |started| now.0.saturating_sub(started.0).max(0));
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\n', '\r']);
        // What a terminal would overwrite is not worth a line each.
        let text = text.rsplit('\r').next().unwrap_or(text);
        #[expect(clippy::cast_precision_loss, reason = "shown with three decimals")]
        let since = since as f64 / 1e9;
        self.line(vertex, &format!("{since:.3} {text}"));
    }

    fn line(&mut self, vertex: VertexId, text: &str) {
        self.switch_to(vertex);
        drop(writeln!(self.out, "#{} {text}", vertex.0));
    }

    fn switch_to(&mut self, vertex: VertexId) {
        if self.current == Some(vertex) {
            return;
        }
        if let Some(before) = self.current
            && self.vertices.get(&before).is_some_and(|v| !v.ended)
        {
            drop(writeln!(self.out, "#{} ...\n", before.0));
        }
        self.current = Some(vertex);
        let entry = self.vertices.entry(vertex).or_default();
        entry.headed = true;
        drop(writeln!(self.out, "#{} {}", vertex.0, entry.name.replace('\n', " ")));
    }

    fn end(&mut self, vertex: VertexId) {
        self.vertices.entry(vertex).or_default().ended = true;
        self.current = None;
        drop(writeln!(self.out));
        drop(self.out.flush());
    }
}
