//! Copies of what the ignore file leaves out: a finding that names the line to blame.

use rbuild_diag::{Diagnostic, Spanned};
use rbuild_tree::{PatternMatcher, parse_ignore_file};

use crate::codes;
use crate::ctx::{At, Ctx};
use crate::{IgnoreFile, MainContext, lint, paths};

/// The main context's ignore file, compiled when the first copy asks for it.
#[derive(Debug, Default)]
pub(crate) struct Ignored {
    matcher: Option<Option<PatternMatcher>>,
}

/// Notes a finding when the ignore file leaves `source` out. Files with `!` patterns are not judged: what they
/// take back below a directory cannot be seen from here.
pub(crate) fn check(ctx: &mut Ctx<'_>, at: At<'_>, source: &Spanned<String>, add: bool) {
    let options = ctx.options;
    let MainContext::Local(file) = &options.context else { return };
    if file.patterns.is_empty() || file.patterns.iter().any(|pattern| pattern.starts_with('!')) {
        return;
    }
    if ctx.ignored.matcher.is_none() {
        let compiled = compile(ctx, file);
        ctx.ignored.matcher = Some(compiled);
    }
    let Some(Some(matcher)) = &ctx.ignored.matcher else { return };
    // As BuildKit, which compares the path as it is written, so `/a` is not `a`, and `.` is a name with a dot.
    let path = paths::clean(&source.value);
    let Some(index) = matcher.which_of_any(&path) else { return };
    let verb = if add { "adds" } else { "copies" };
    let name = file.file.as_ref().map_or(".dockerignore", |file| file.name());
    let message = format!("this {verb} {:?}, which {name} leaves out of the context", source.value);
    let pattern = file.patterns.get(index).map_or("", String::as_str);
    let pattern_is = match line_of(file, index) {
        Some(line) => format!("line {line} of {name} ({pattern:?})"),
        None => format!("the pattern {pattern:?}"),
    };
    let help = if path == "." && pattern == ".*" {
        format!("{pattern_is} matches the directory . itself, too; write .?* for names that begin with a dot")
    } else {
        format!("{pattern_is} leaves it out; remove or narrow it")
    };
    ctx.warn(lint::COPY_IGNORED, at, source.span, message, Some(help));
}

fn compile(ctx: &mut Ctx<'_>, file: &IgnoreFile) -> Option<PatternMatcher> {
    match PatternMatcher::new(&file.patterns) {
        Ok(matcher) => Some(matcher),
        Err(error) => {
            let name = file.file.as_ref().map_or(".dockerignore", |file| file.name());
            ctx.errors.push(
                Diagnostic::error(codes::IGNORE_PATTERN, format!("{name} has a malformed pattern: {error}"))
                    .help("a [ must have its ], and a backslash must have a character after it"),
            );
            None
        }
    }
}

/// The line of the ignore file that pattern `index` stands on.
fn line_of(file: &IgnoreFile, index: usize) -> Option<usize> {
    let lines = parse_ignore_file(file.file.as_ref()?.text());
    let line = lines.get(index)?;
    (Some(&line.pattern) == file.patterns.get(index)).then_some(line.line)
}
