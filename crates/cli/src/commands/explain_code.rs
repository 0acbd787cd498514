//! `rbuild explain-code`: what a code means.

use std::process::ExitCode;

use serde_json::json;

use crate::args::{ExplainCodeArgs, MessageFormat};
use crate::error::Failure;
use crate::messages;
use crate::render::print;
use crate::request::Usage;

/// Prints one explanation, or the list of all codes.
pub(crate) fn run(args: &ExplainCodeArgs) -> Result<ExitCode, Failure> {
    messages::use_format(args.format);
    let all = rbuild::explained_codes();
    let chosen = match &args.code {
        None => all,
        Some(code) => vec![rbuild::explain_code(code).ok_or_else(|| unknown(code, &all))?],
    };
    for explanation in &chosen {
        let rbuild::CodeExplanation { code, title, text } = explanation;
        match (args.format, args.code.is_some()) {
            (MessageFormat::Json, _) => {
                print(&json!({"code": code, "title": title, "text": text}).to_string());
            }
            (MessageFormat::Text, true) => print(&format!("{code}: {title}\n\n{text}")),
            (MessageFormat::Text, false) => print(&format!("{code}  {title}")),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn unknown(code: &str, all: &[rbuild::CodeExplanation]) -> Usage {
    let near = rbuild::nearest(code, all.iter().map(|explanation| explanation.code));
    Usage(match near {
        Some(near) => format!("there is no code {code:?}; did you mean {near}?"),
        None => format!("there is no code {code:?}; without a code all are listed"),
    })
}
