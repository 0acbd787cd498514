//! The live view on a terminal: `[+] Building 1.2s (5/8)`, a line a step, the last lines of what runs. Redrawn in place.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::Write;

use rbuild::{BuildEvent, Timestamp, VertexId};

use super::{bytes, seconds};

/// Lines of output shown a running step.
const LOG_LINES: usize = 6;

/// The state of the view.
pub(crate) struct Tty<W> {
    out: W,
    color: bool,
    begun: Option<Timestamp>,
    vertices: BTreeMap<VertexId, Vertex>,
    warnings: Vec<String>,
    /// Lines drawn last time.
    drawn: usize,
}

#[derive(Default)]
struct Vertex {
    name: String,
    started: Option<Timestamp>,
    ended: Option<Timestamp>,
    cached: bool,
    outcome: Option<&'static str>,
    log: VecDeque<String>,
    partial: Vec<u8>,
    statuses: BTreeMap<String, (u64, Option<u64>, bool)>,
}

impl<W: Write> Tty<W> {
    pub(crate) fn new(out: W, color: bool) -> Self {
        Self { out, color, begun: None, vertices: BTreeMap::new(), warnings: vec![], drawn: 0 }
    }

    /// Takes what `event` adds; nothing is drawn.
    pub(crate) fn event(&mut self, event: &BuildEvent, now: Timestamp) {
        self.begun.get_or_insert(now);
        match event {
            BuildEvent::Started { vertex, name, at, .. } => {
                let entry = self.vertices.entry(*vertex).or_default();
                (entry.name, entry.started) = (name.to_string(), Some(*at));
            }
            BuildEvent::Cached { vertex, name } => {
                let entry = self.vertices.entry(*vertex).or_default();
                (entry.name, entry.cached, entry.ended) = (name.to_string(), true, Some(now));
            }
            BuildEvent::Finished { vertex, at, error } => {
                let entry = self.vertices.entry(*vertex).or_default();
                (entry.ended, entry.outcome) = (Some(*at), error.as_ref().map(|_| "ERROR"));
            }
            BuildEvent::Cancelled { vertex, at } => {
                let entry = self.vertices.entry(*vertex).or_default();
                (entry.ended, entry.outcome) = (Some(*at), Some("CANCELED"));
            }
            BuildEvent::Log { vertex, data, .. } => {
                let entry = self.vertices.entry(*vertex).or_default();
                for piece in data.split_inclusive(|b| matches!(b, b'\n' | b'\r')) {
                    entry.partial.extend_from_slice(piece);
                    if piece.ends_with(b"\n") {
                        let text = String::from_utf8_lossy(&entry.partial).trim_end().to_owned();
                        entry.log.push_back(text);
                        entry.partial.clear();
                        if entry.log.len() > LOG_LINES {
                            entry.log.pop_front();
                        }
                    } else if piece.ends_with(b"\r") {
                        entry.partial.clear();
                    }
                }
            }
            BuildEvent::Status { vertex, id, current, total, done } => {
                self.vertices
                    .entry(*vertex)
                    .or_default()
                    .statuses
                    .insert(id.clone(), (*current, *total, *done));
            }
            BuildEvent::Warning { message, .. } => self.warnings.push(message.clone()),
            BuildEvent::Finding(_) => {}
        }
    }

    /// Draws the view over the last one. `size` is columns and rows; the last drawing shows everything.
    pub(crate) fn draw(&mut self, now: Timestamp, size: (usize, usize), last: bool) {
        let lines = self.lines(now, size, last);
        let mut out = String::new();
        if self.drawn > 0 {
            let _ = write!(out, "\x1b[{}F", self.drawn);
        }
        out.push_str("\x1b[?25l");
        for line in &lines {
            let _ = writeln!(out, "\x1b[2K{line}");
        }
        if self.drawn > lines.len() {
            out.push_str("\x1b[0J");
        }
        out.push_str("\x1b[?25h");
        self.drawn = lines.len();
        drop(self.out.write_all(out.as_bytes()));
        drop(self.out.flush());
    }

    fn lines(&self, now: Timestamp, (columns, rows): (usize, usize), last: bool) -> Vec<String> {
        let ended = self.vertices.values().filter(|v| v.ended.is_some()).count();
        let all = self.vertices.len();
        let state = if last { " FINISHED" } else { "" };
        let time = seconds(self.begun.unwrap_or(now), now);
        let mut lines =
            vec![self.paint(&format!("[+] Building {time} ({ended}/{all}){state}"), "", columns, "1")];
        for vertex in self.vertices.values() {
            self.vertex_lines(vertex, now, columns, &mut lines);
        }
        for warning in &self.warnings {
            lines.push(self.paint(&format!(" WARNING: {warning}"), "", columns, "33"));
        }
        let room = rows.saturating_sub(1).max(4);
        if !last && lines.len() > room {
            // The top line stays; of the rest the newest.
            let cut = lines.len() - room + 1;
            lines.drain(1..=cut);
        }
        lines
    }

    fn vertex_lines(&self, vertex: &Vertex, now: Timestamp, columns: usize, lines: &mut Vec<String>) {
        let time = match (vertex.started, vertex.ended) {
            (Some(started), ended) => seconds(started, ended.unwrap_or(now)),
            (None, _) => "0.0s".to_owned(),
        };
        let mark = if vertex.cached {
            "CACHED ".to_owned()
        } else {
            vertex.outcome.map(|o| format!("{o} ")).unwrap_or_default()
        };
        let color = match (vertex.outcome, vertex.ended) {
            (Some("ERROR"), _) => "31",
            (Some(_), _) => "33",
            (None, Some(_)) => "34",
            (None, None) => "",
        };
        let name = vertex.name.replace('\n', " ");
        lines.push(self.paint(&format!(" => {mark}{name}"), &time, columns, color));
        if vertex.ended.is_some() {
            return;
        }
        for (id, (current, total, done)) in
            vertex.statuses.iter().filter(|(_, (_, _, done))| !done).take(LOG_LINES)
        {
            let total = total.map(|total| format!(" / {}", bytes(total))).unwrap_or_default();
            let short: String = id.chars().take(40).collect();
            let state = if *done { " done" } else { "" };
            lines.push(self.paint(
                &format!(" => => {short} {}{total}{state}", bytes(*current)),
                "",
                columns,
                "2",
            ));
        }
        for line in &vertex.log {
            let clean: String = line.chars().filter(|c| !c.is_control()).collect();
            lines.push(self.paint(&format!(" => => # {clean}"), "", columns, "2"));
        }
    }

    /// `left` cut and padded so that `right` ends at the last column.
    fn paint(&self, left: &str, right: &str, columns: usize, color: &str) -> String {
        let room = columns.saturating_sub(right.chars().count() + 1).max(8);
        let count = left.chars().count();
        let mut text: String =
            left.chars().take(room.saturating_sub(usize::from(!right.is_empty()))).collect();
        if !right.is_empty() {
            let pad = room.saturating_sub(count.min(text.chars().count()));
            text.extend(std::iter::repeat_n(' ', pad));
            text.push_str(right);
        }
        if self.color && !color.is_empty() { format!("\x1b[{color}m{text}\x1b[0m") } else { text }
    }
}
