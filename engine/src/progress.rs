//! Turns what ports report while they work into events of a step, and keeps the last lines of its output.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_graph::NodeId;
use rbuild_ports::{Progress, Stream};

use crate::{Event, EventSink};

const TAIL_LINES: usize = 20;
const TAIL_LINE_BYTES: usize = 4096;

/// Progress of one step.
pub(crate) struct StepProgress {
    step: NodeId,
    losses: u64,
    events: Arc<dyn EventSink>,
    tail: Mutex<(VecDeque<String>, Vec<u8>)>,
}

impl StepProgress {
    /// For a command that was given after this many results had been lost.
    pub(crate) fn new(step: NodeId, losses: u64, events: Arc<dyn EventSink>) -> Self {
        Self { step, losses, events, tail: Mutex::default() }
    }

    pub(crate) fn step(&self) -> NodeId {
        self.step
    }

    /// How many results had been lost when the command was given.
    pub(crate) fn losses(&self) -> u64 {
        self.losses
    }

    /// The last lines of the output.
    pub(crate) fn tail(&self) -> Vec<String> {
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let (lines, rest) = &mut *tail;
        if !rest.is_empty() {
            push_line(lines, rest);
        }
        lines.iter().cloned().collect()
    }
}

fn push_line(lines: &mut VecDeque<String>, rest: &mut Vec<u8>) {
    lines.push_back(String::from_utf8_lossy(rest).trim_end_matches('\r').to_owned());
    rest.clear();
    if lines.len() > TAIL_LINES {
        lines.pop_front();
    }
}

impl Progress for StepProgress {
    fn log(&self, stream: Stream, data: &[u8]) {
        {
            let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
            let (lines, rest) = &mut *tail;
            for piece in data.split_inclusive(|b| *b == b'\n') {
                let text = piece.strip_suffix(b"\n").unwrap_or(piece);
                let room = TAIL_LINE_BYTES.saturating_sub(rest.len()).min(text.len());
                rest.extend_from_slice(&text[..room]);
                if piece.ends_with(b"\n") {
                    push_line(lines, rest);
                }
            }
        }
        self.events.event(Event::Log { step: self.step, stream, data: data.to_vec() });
    }

    fn status(&self, id: &str, current: u64, total: Option<u64>, done: bool) {
        self.events.event(Event::Status { step: self.step, id: id.to_owned(), current, total, done });
    }

    fn warn(&self, message: &str) {
        self.events.event(Event::Warning { step: self.step, message: message.to_owned() });
    }
}
