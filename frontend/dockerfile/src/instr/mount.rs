//! The value of `RUN --mount=`: one line of comma-separated values. What the fields mean is not known here.

use rbuild_diag::Span;

use crate::codes;
use crate::context::Context;
use crate::text::{Mapped, Slice};
use crate::{MountField, MountFlag};

pub(super) fn parse(cx: &mut Context<'_>, value: Slice<'_>, span: Span) -> Option<MountFlag> {
    match split(value) {
        Ok(fields) => Some(MountFlag { span, fields: fields.iter().map(field).collect() }),
        Err((why, place)) => {
            let message = format!("failed to parse csv mounts: {why}");
            let diagnostic = cx.diagnostic(codes::MALFORMED_MOUNT, place, message);
            cx.report(
                diagnostic
                    .help("write key=value fields with commas between them, such as type=cache,target=/x"),
            );
            None
        }
    }
}

fn field(field: &Mapped) -> MountField {
    match field.slice().split_once('=') {
        Some((key, value)) => MountField { key: key.word(), value: Some(value.word()) },
        None => MountField { key: field.slice().word(), value: None },
    }
}

/// A field in double quotes may hold commas, and double quotes that are doubled.
fn split(value: Slice<'_>) -> Result<Vec<Mapped>, (&'static str, Span)> {
    if value.text().is_empty() {
        return Err(("it is empty", value.span()));
    }
    let mut fields = Vec::new();
    let mut rest = value;
    loop {
        let (field, length) = if rest.text().starts_with('"') { quoted(rest)? } else { plain(rest)? };
        fields.push(field);
        if rest.text().len() == length {
            return Ok(fields);
        }
        rest = rest.from(length + 1);
    }
}

fn plain(rest: Slice<'_>) -> Result<(Mapped, usize), (&'static str, Span)> {
    let mut field = Mapped::new(rest.source_offset(0));
    for (at, c) in rest.text().char_indices() {
        match c {
            ',' => return Ok((field, at)),
            '"' => return Err(("bare \" in non-quoted field", rest.sub(at..at + 1).span())),
            _ => field.push(c, rest.source_offset(at)),
        }
    }
    Ok((field, rest.text().len()))
}

fn quoted(rest: Slice<'_>) -> Result<(Mapped, usize), (&'static str, Span)> {
    let mut field = Mapped::new(rest.source_offset(0));
    let mut chars = rest.text().char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c != '"' {
            field.push(c, rest.source_offset(at));
            continue;
        }
        match chars.peek() {
            None | Some((_, ',')) => return Ok((field, at + 1)),
            Some(&(_, '"')) => {
                chars.next();
                field.push('"', rest.source_offset(at));
            }
            Some(_) => break,
        }
    }
    Err(("extraneous or missing \" in quoted-field", rest.span()))
}
