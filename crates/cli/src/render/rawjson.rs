//! Progress as JSON lines: BuildKit's `SolveStatus`, so that tools that read `--progress=rawjson` can.

use std::collections::HashMap;
use std::io::Write;

use base64::Engine as _;
use rbuild::{BuildEvent, Digest, Stream, Timestamp, VertexId};
use serde_json::{Map, Value, json};

use super::text::rfc3339;

/// Writes one object an event.
pub(crate) struct RawJson<W> {
    out: W,
    vertices: HashMap<VertexId, Map<String, Value>>,
}

impl<W: Write> RawJson<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, vertices: HashMap::new() }
    }

    /// Writes what `event` adds.
    pub(crate) fn event(&mut self, event: &BuildEvent, now: Timestamp) {
        let object = match event {
            BuildEvent::Started { vertex, name, at, .. } => {
                self.vertex(*vertex, Some(name), &[("started", json!(rfc3339(*at)))])
            }
            BuildEvent::Cached { vertex, name } => {
                let at = json!(rfc3339(now));
                self.vertex(
                    *vertex,
                    Some(name),
                    &[("started", at.clone()), ("completed", at), ("cached", json!(true))],
                )
            }
            BuildEvent::Finished { vertex, at, error: None } => {
                self.vertex(*vertex, None, &[("completed", json!(rfc3339(*at)))])
            }
            BuildEvent::Finished { vertex, at, error: Some(error) } => {
                self.vertex(*vertex, None, &[("completed", json!(rfc3339(*at))), ("error", json!(error))])
            }
            BuildEvent::Cancelled { vertex, at } => self.vertex(
                *vertex,
                None,
                &[("completed", json!(rfc3339(*at))), ("error", json!("context canceled"))],
            ),
            BuildEvent::Log { vertex, stream, data } => {
                let stream = match stream {
                    Stream::Stdout => 1,
                    Stream::Stderr => 2,
                };
                json!({"logs": [{"vertex": digest(*vertex), "stream": stream, "data": base64(data), "timestamp": rfc3339(now)}]})
            }
            BuildEvent::Status { vertex, id, current, total, done } => {
                let mut status = Map::new();
                status.insert("id".into(), json!(id));
                status.insert("vertex".into(), json!(digest(*vertex)));
                status.insert("current".into(), json!(current));
                if let Some(total) = total {
                    status.insert("total".into(), json!(total));
                }
                status.insert("timestamp".into(), json!(rfc3339(now)));
                if *done {
                    status.insert("completed".into(), json!(rfc3339(now)));
                }
                json!({ "statuses": [status] })
            }
            BuildEvent::Warning { vertex, message } => {
                json!({"warnings": [{"vertex": vertex.map(digest), "level": 1, "short": base64(message.as_bytes())}]})
            }
            BuildEvent::Finding(finding) => {
                json!({"warnings": [{"level": 1, "short": base64(format!("{}: {}", finding.code, finding.message).as_bytes())}]})
            }
        };
        drop(writeln!(self.out, "{object}"));
    }

    /// Writes what is still in the buffer.
    pub(crate) fn flush(&mut self) {
        drop(self.out.flush());
    }

    fn vertex(&mut self, vertex: VertexId, name: Option<&str>, fields: &[(&str, Value)]) -> Value {
        let known = self.vertices.entry(vertex).or_default();
        known.insert("digest".into(), json!(digest(vertex)));
        if let Some(name) = name {
            known.insert("name".into(), json!(name));
        }
        for (field, value) in fields {
            known.insert((*field).into(), value.clone());
        }
        json!({ "vertexes": [known] })
    }
}

fn digest(vertex: VertexId) -> String {
    Digest::of(format!("vertex {}", vertex.0)).to_string()
}

fn base64(data: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(data)
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_pads() {
        assert_eq!(
            ["", "f", "fo", "foo", "foob"].map(|s| super::base64(s.as_bytes())),
            ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]
        );
    }
}
