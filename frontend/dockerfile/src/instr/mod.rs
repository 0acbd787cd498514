//! The instructions: one file each, or one for those that are read alike. Each takes the flags and arguments of
//! its line and makes its node; what is wrong goes to the context.

mod arg;
mod command;
mod copy;
mod csv;
mod from;
mod healthcheck;
mod key_value;
mod list;
mod onbuild;
mod run;
mod value;

use rbuild_diag::{Span, Spanned, nearest};

use crate::context::Context;
use crate::flags::{Flags, RawFlag, Table, take};
use crate::text::{Slice, is_blank};
use crate::{Heredoc, InstructionKind, codes, json};

/// Every keyword with its form, in the order in which suggestions prefer them.
const KEYWORDS: [(&str, &str); 18] = [
    ("FROM", "FROM image AS name"),
    ("RUN", "RUN command"),
    ("COPY", "COPY source… destination"),
    ("ADD", "ADD source… destination"),
    ("ENV", "ENV key=value…"),
    ("ARG", "ARG name=default…"),
    ("LABEL", "LABEL key=value…"),
    ("WORKDIR", "WORKDIR path"),
    ("USER", "USER name:group"),
    ("EXPOSE", "EXPOSE port/protocol…"),
    ("VOLUME", "VOLUME path…"),
    ("CMD", "CMD command"),
    ("ENTRYPOINT", "ENTRYPOINT command"),
    ("SHELL", "SHELL [\"/bin/sh\", \"-c\"]"),
    ("STOPSIGNAL", "STOPSIGNAL signal"),
    ("HEALTHCHECK", "HEALTHCHECK CMD command, or HEALTHCHECK NONE"),
    ("ONBUILD", "ONBUILD instruction"),
    ("MAINTAINER", "MAINTAINER name"),
];

/// The names of all instructions.
fn names() -> impl Iterator<Item = &'static str> {
    KEYWORDS.into_iter().map(|(name, _)| name)
}

/// How an instruction is written.
fn form_of(name: &str) -> String {
    let form = KEYWORDS.iter().find(|(known, _)| *known == name).map_or(name, |(_, form)| form);
    format!("write {form}")
}

/// No flags.
const NONE: Table = &[];

/// An instruction's line, cut into its parts.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    /// The first word.
    pub(crate) keyword: Slice<'a>,
    /// It in upper case, when there is such an instruction.
    name: Option<&'static str>,
    /// The flags in front of the arguments.
    pub(crate) flags: Vec<RawFlag>,
    /// The arguments, without blanks around them.
    pub(crate) rest: Slice<'a>,
}

impl<'a> Head<'a> {
    /// Cuts `line`, which is not blank.
    pub(crate) fn split(line: Slice<'a>, escape: char) -> Self {
        let line = line.trim();
        let end = line.text().find(is_blank).unwrap_or(line.text().len());
        let (flags, rest) = take(line.from(end), escape);
        let keyword = line.sub(0..end);
        let name = names().find(|name| name.eq_ignore_ascii_case(keyword.text()));
        Self { keyword, name, flags, rest }
    }

    /// Whether there is such an instruction.
    pub(crate) fn is_known(&self) -> bool {
        self.name.is_some()
    }

    /// Whether `<<` may open heredocs in this line.
    pub(crate) fn takes_heredocs(&self, escape: char) -> bool {
        match self.name {
            Some("RUN" | "COPY" | "ADD") => !matches!(json::array(self.rest.text()), json::Json::Strings(_)),
            Some("ONBUILD") => {
                let inner = Head::split(self.rest, escape);
                inner.name != Some("ONBUILD") && inner.takes_heredocs(escape)
            }
            _ => false,
        }
    }

    /// The place of the keyword and everything behind it.
    fn span(&self) -> Span {
        self.keyword.span().join(self.rest.span())
    }
}

/// What stands around an instruction.
#[derive(Debug)]
pub(crate) struct Around<'a> {
    /// The whole logical line, blanks included.
    pub(crate) line: Slice<'a>,
    /// Bodies that follow it.
    pub(crate) heredocs: Vec<Heredoc>,
    /// Comment lines above it.
    pub(crate) comments: &'a [Spanned<String>],
    /// From the keyword to the end of the last line.
    pub(crate) span: Span,
}

/// Makes an instruction of its parts. An unknown one is `Invalid`; saying so is left to the caller.
pub(crate) fn parse(cx: &mut Context<'_>, head: &Head<'_>, around: Around<'_>) -> InstructionKind {
    use InstructionKind as Kind;
    match head.name {
        Some("FROM") => from::parse(cx, head, around.comments),
        Some("RUN") => run::parse(cx, head, around.heredocs),
        Some("COPY") => copy::parse(cx, head, around.heredocs, copy::Which::Copy),
        Some("ADD") => copy::parse(cx, head, around.heredocs, copy::Which::Add),
        Some("ENV") => key_value::parse(cx, head, "ENV").map_or(Kind::Invalid, Kind::Env),
        Some("LABEL") => key_value::parse(cx, head, "LABEL").map_or(Kind::Invalid, Kind::Label),
        Some("ARG") => arg::parse(cx, head, around.comments),
        Some("WORKDIR") => value::parse(cx, head, "WORKDIR").map_or(Kind::Invalid, Kind::Workdir),
        Some("USER") => value::parse(cx, head, "USER").map_or(Kind::Invalid, Kind::User),
        Some("STOPSIGNAL") => value::parse_stopsignal(cx, head).map_or(Kind::Invalid, Kind::StopSignal),
        Some("MAINTAINER") => value::parse_maintainer(cx, head).map_or(Kind::Invalid, Kind::Maintainer),
        Some("EXPOSE") => list::parse_expose(cx, head).map_or(Kind::Invalid, Kind::Expose),
        Some("VOLUME") => list::parse_volume(cx, head).map_or(Kind::Invalid, Kind::Volume),
        Some("CMD") => command::parse(cx, head, "CMD").map_or(Kind::Invalid, Kind::Cmd),
        Some("ENTRYPOINT") => command::parse(cx, head, "ENTRYPOINT").map_or(Kind::Invalid, Kind::Entrypoint),
        Some("SHELL") => command::parse_shell(cx, head).map_or(Kind::Invalid, Kind::Shell),
        Some("HEALTHCHECK") => healthcheck::parse(cx, head).map_or(Kind::Invalid, Kind::Healthcheck),
        Some("ONBUILD") => onbuild::parse(cx, head, around).map_or(Kind::Invalid, Kind::Onbuild),
        _ => Kind::Invalid,
    }
}

/// What to do about an unknown instruction.
pub(crate) fn suggestion(keyword: &str) -> Option<String> {
    if let Some(near) = nearest(keyword, names()) {
        return Some(format!("did you mean {near}?"));
    }
    // A blank that is none: it came along from a web page or a word processor.
    let blank = keyword.find(char::is_whitespace)?;
    let (before, after) = keyword.split_at(blank);
    let c = after.chars().next()?;
    let known = names().any(|name| name.eq_ignore_ascii_case(before));
    known.then(|| format!("U+{:04X} follows {before} in place of a blank; replace it", u32::from(c)))
}

/// Refuses all flags.
fn no_flags(cx: &mut Context<'_>, head: &Head<'_>) {
    Flags::check(cx, head.keyword.text(), &head.flags, NONE);
}

/// Reports that there are no arguments.
fn needs_arguments(cx: &mut Context<'_>, head: &Head<'_>, name: &str) {
    let message = format!("{name} requires at least one argument");
    cx.error(codes::NO_ARGUMENTS, head.keyword.span(), message, form_of(name));
}

/// Reports that a JSON array holds something else than strings.
fn not_strings(cx: &mut Context<'_>, place: Slice<'_>) {
    let message = "when using JSON array syntax, arrays must be comprised of strings only";
    let diagnostic = cx.diagnostic(codes::JSON_NOT_STRINGS, place.span(), message);
    cx.report_form(diagnostic.help("put double quotes around it"));
}
