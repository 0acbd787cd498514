//! The live view on a terminal: `[+] Building 1.2s (5/8)`, a line a step, the last lines of what runs. Redrawn in place.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::Write;

use rbuild::{BuildEvent, Timestamp, VertexId};

use super::text::{Lines, amount, clean, fit, seconds, width};
use super::vertex_of;

/// Parts of a running step shown at most, such as layers being fetched.
const STATUS_LINES: usize = 6;
/// Parts that are done are forgotten when there are more than this.
const MAX_PARTS: usize = 200;

/// The state of the view.
pub(crate) struct Tty<W> {
    out: W,
    color: bool,
    /// Lines of output shown a running step.
    log_lines: usize,
    begun: Option<Timestamp>,
    vertices: BTreeMap<VertexId, Vertex>,
    warnings: Vec<String>,
    /// Widths of the lines drawn last time.
    drawn: Vec<usize>,
}

#[derive(Default)]
struct Vertex {
    name: String,
    started: Option<Timestamp>,
    ended: Option<Timestamp>,
    cached: bool,
    outcome: Option<&'static str>,
    lines: Lines,
    log: VecDeque<Vec<u8>>,
    statuses: BTreeMap<String, (u64, Option<u64>, bool)>,
}

/// A line of the view.
struct Line {
    left: String,
    right: String,
    color: &'static str,
}

impl Line {
    fn new(left: String, color: &'static str) -> Self {
        Self { left, right: String::new(), color }
    }
}

impl<W: Write> Tty<W> {
    /// `color` paints it; `log_lines` of output are shown below a running step.
    pub(crate) fn new(out: W, color: bool, log_lines: usize) -> Self {
        Self {
            out,
            color,
            log_lines,
            begun: None,
            vertices: BTreeMap::new(),
            warnings: vec![],
            drawn: vec![],
        }
    }

    /// Takes what `event` adds; nothing is drawn.
    pub(crate) fn event(&mut self, event: &BuildEvent, now: Timestamp) {
        self.begun.get_or_insert(now);
        let keep = self.log_lines;
        if let BuildEvent::Warning { message, .. } = event {
            self.warnings.push(clean(message.as_bytes(), false));
        }
        let Some(vertex) = vertex_of(event) else { return };
        let entry = self.vertices.entry(vertex).or_default();
        match event {
            BuildEvent::Started { name, at, .. } => {
                (entry.name, entry.started) = (clean(name.as_bytes(), false), Some(*at));
            }
            BuildEvent::Cached { name, .. } => {
                (entry.name, entry.cached, entry.ended) = (clean(name.as_bytes(), false), true, Some(now));
            }
            BuildEvent::Finished { at, error, .. } => entry.end(*at, error.as_ref().map(|_| "ERROR")),
            BuildEvent::Cancelled { at, .. } => entry.end(*at, Some("CANCELED")),
            BuildEvent::Log { data, .. } => {
                let log = &mut entry.log;
                entry.lines.push(data, |line| {
                    log.push_back(line.get(..line.len().min(1000)).unwrap_or_default().to_owned());
                    while log.len() > keep {
                        log.pop_front();
                    }
                });
            }
            BuildEvent::Status { id, current, total, done, .. } => {
                let statuses = &mut entry.statuses;
                if statuses.len() > MAX_PARTS {
                    statuses.retain(|_, (_, _, done)| !*done);
                }
                statuses.insert(id.clone(), (*current, *total, *done));
            }
            BuildEvent::Warning { .. } | BuildEvent::Finding(_) => {}
        }
    }

    /// Draws the view over the last one. `size` is columns and rows; the last drawing shows everything.
    pub(crate) fn draw(&mut self, now: Timestamp, size: (usize, usize), last: bool) {
        let (columns, rows) = (size.0.max(20), size.1.max(5));
        let lines = self.lines(now, rows - 1, last);
        let mut out = String::from("\x1b[?25l");
        // A terminal that became narrower has wrapped what stood there.
        let up: usize = self.drawn.iter().map(|width| width.div_ceil(columns).max(1)).sum();
        if up > 0 {
            let _ = write!(out, "\x1b[{}F", up.min(rows));
        }
        self.drawn.clear();
        for line in &lines {
            let text = layout(line, columns);
            self.drawn.push(width(&text));
            let painted = self.color && !line.color.is_empty();
            let _ = match painted {
                true => writeln!(out, "\x1b[2K\x1b[{}m{text}\x1b[0m", line.color),
                false => writeln!(out, "\x1b[2K{text}"),
            };
        }
        out.push_str("\x1b[0J\x1b[?25h");
        drop(self.out.write_all(out.as_bytes()));
        drop(self.out.flush());
    }

    /// What is to be seen: at most `room` lines, unless it is the last time.
    fn lines(&self, now: Timestamp, room: usize, last: bool) -> Vec<Line> {
        let ended = self.vertices.values().filter(|vertex| vertex.ended.is_some()).count();
        let state = if last { " FINISHED" } else { "" };
        let time = seconds(self.begun.unwrap_or(now), now);
        let head = format!("[+] Building {time} ({ended}/{}){state}", self.vertices.len());
        let mut lines = vec![Line::new(head, "1")];
        let warnings = self.warnings.iter().map(|warning| Line::new(format!(" WARNING: {warning}"), "33"));
        if last {
            lines.extend(self.vertices.values().map(|vertex| vertex.headline(now)));
            lines.extend(warnings);
            return lines;
        }
        let warnings: Vec<Line> = warnings.rev().take(3).collect();
        let room = room.saturating_sub(1 + warnings.len()).max(1);
        // All that runs, as far as there is room, then as much of what ended last; in the order of numbers.
        let running = self.vertices.len() - ended;
        let detail = room.saturating_sub(running).checked_div(running).unwrap_or(0);
        let mut left_for_ended = room.saturating_sub(running);
        let mut chosen = Vec::new();
        let mut left_for_running = room;
        for (_, vertex) in self.vertices.iter().filter(|(_, vertex)| vertex.ended.is_none()) {
            if left_for_running == 0 {
                break;
            }
            left_for_running -= 1;
            let details = vertex.details(detail.min(self.log_lines.max(STATUS_LINES)), self.log_lines);
            left_for_ended = left_for_ended.saturating_sub(details.len());
            chosen.push((vertex, details));
        }
        let mut done: Vec<(&VertexId, &Vertex)> =
            self.vertices.iter().filter(|(_, vertex)| vertex.ended.is_some()).collect();
        done.sort_by_key(|(id, vertex)| (vertex.ended, **id));
        let first = done.len().saturating_sub(left_for_ended);
        let mut done: Vec<(&VertexId, &Vertex)> = done.split_off(first);
        done.sort_by_key(|(id, _)| **id);
        lines.extend(done.iter().map(|(_, vertex)| vertex.headline(now)));
        for (vertex, details) in chosen {
            lines.push(vertex.headline(now));
            lines.extend(details);
        }
        lines.extend(warnings.into_iter().rev());
        lines
    }
}

impl Vertex {
    fn end(&mut self, at: Timestamp, outcome: Option<&'static str>) {
        (self.ended, self.outcome) = (Some(at), outcome);
        self.log.clear();
        self.statuses.clear();
        self.lines = Lines::default();
    }

    fn headline(&self, now: Timestamp) -> Line {
        let right = match (self.started, self.ended) {
            (Some(started), ended) => seconds(started, ended.unwrap_or(now)),
            (None, _) => "0.0s".to_owned(),
        };
        let mark = if self.cached { "CACHED" } else { self.outcome.unwrap_or_default() };
        let space = if mark.is_empty() { "" } else { " " };
        let color = match (self.outcome, self.ended) {
            (Some("ERROR"), _) => "31",
            (Some(_), _) => "33",
            (None, Some(_)) => "34",
            (None, None) => "",
        };
        Line { left: format!(" => {mark}{space}{}", self.name), right, color }
    }

    /// Parts under way, then the end of the output.
    fn details(&self, room: usize, log_lines: usize) -> Vec<Line> {
        let mut out: Vec<Line> = self
            .statuses
            .iter()
            .filter(|(_, (_, _, done))| !done)
            .take(room.min(STATUS_LINES))
            .map(|(id, (current, total, done))| {
                let id = clean(id.as_bytes(), false);
                Line::new(format!(" => => {}{}", fit(&id, 40), amount(*current, *total, *done)), "2")
            })
            .collect();
        let rest = self.lines.rest();
        let log = self.log.iter().map(Vec::as_slice).chain((!rest.is_empty()).then_some(rest));
        let log: Vec<&[u8]> = log.collect();
        let first = log.len().saturating_sub(log_lines.min(room - out.len()));
        out.extend(log.iter().skip(first).map(|line| {
            let line = line.get(..line.len().min(1000)).unwrap_or_default();
            Line::new(format!(" => => # {}", clean(line, false)), "2")
        }));
        out
    }
}

/// `left` cut and padded so that `right` ends at the last column.
fn layout(line: &Line, columns: usize) -> String {
    if line.right.is_empty() {
        return fit(&line.left, columns).to_owned();
    }
    let room = columns.saturating_sub(width(&line.right) + 1);
    let left = fit(&line.left, room);
    let pad = room + 1 - width(left).min(room);
    format!("{left}{:pad$}{}", "", line.right)
}
