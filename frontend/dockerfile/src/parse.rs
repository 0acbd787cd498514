//! The loop over a file: directives, comments, logical lines, heredoc bodies, one instruction after another.

use rbuild_diag::{Diagnostic, SourceFile, Span, Spanned};

use crate::context::Context;
use crate::directive::{self, Name};
use crate::instr::{self, Around, Head};
use crate::logical::{self, Lines, Logical, MAX_LINE, Physical};
use crate::{
    Directives, Dockerfile, Heredoc, Instruction, InstructionKind, Parsed, ParsedInstruction, codes, heredoc,
};

/// What to do about nothing.
const BEGIN: &str = "begin with FROM image";

/// After so many unknown instructions in a row it is no Dockerfile, and no suggestions are looked for.
const MANY: usize = 100;

/// Parses a whole Dockerfile. Always returns a tree; what is wrong is in the list beside it, all of it at once.
#[must_use]
pub fn parse(source: &SourceFile) -> Parsed {
    let mut parser = Parser::new(source, '\\');
    parser.directives = Some(Vec::new());
    parser.run();
    let text = source.text();
    let span = Span::new(0, text.len());
    if text.is_empty() {
        parser.cx.error(codes::EMPTY, span, "the Dockerfile cannot be empty", BEGIN);
    } else if parser.instructions.is_empty() {
        parser.cx.error(codes::NO_INSTRUCTIONS, span, "file with no instructions", BEGIN);
    }
    let directives = Directives {
        syntax: directive::detect_syntax(text).map(|syntax| Spanned::new(syntax.cmdline, syntax.span)),
        escape: parser.cx.escape,
        check: directive::find(text, "#", Name::Check),
    };
    Parsed {
        file: Dockerfile { directives, instructions: parser.instructions },
        diagnostics: parser.cx.finish(),
    }
}

/// Parses the text of one instruction, such as an `ONBUILD` trigger from an image's config. BuildKit reads those
/// with `\` as the escape character, whatever the file that they came from says.
#[must_use]
pub fn parse_instruction(text: &str, escape: char) -> ParsedInstruction {
    let source = SourceFile::new("ONBUILD trigger", text);
    let mut parser = Parser::new(&source, escape);
    parser.run();
    if parser.instructions.len() != 1 {
        let message = format!("expected one instruction, found {}", parser.instructions.len());
        let help = "the image that holds this trigger is to be built anew";
        parser.cx.error(codes::NOT_ONE_INSTRUCTION, Span::new(0, text.len()), message, help);
    }
    let instruction = parser.instructions.into_iter().next().unwrap_or_else(|| Instruction {
        keyword: Spanned::default(),
        span: Span::new(0, text.len()),
        original: text.to_owned(),
        comments: vec![],
        kind: InstructionKind::Invalid,
    });
    let diagnostics = parser.cx.finish();
    ParsedInstruction { source, instruction, diagnostics }
}

struct Parser<'s> {
    cx: Context<'s>,
    text: &'s str,
    lines: Lines<'s>,
    /// Directives seen so far; `None` once there can be no more.
    directives: Option<Vec<Name>>,
    comments: Vec<Spanned<String>>,
    instructions: Vec<Instruction>,
    unknown: Unknown,
}

/// Unknown instructions in a row are one mistake, such as a missing continuation, and one message.
#[derive(Default)]
struct Unknown {
    first: Option<Diagnostic>,
    more: usize,
}

impl<'s> Parser<'s> {
    fn new(source: &'s SourceFile, escape: char) -> Self {
        Self {
            cx: Context::new(source, escape),
            text: source.text(),
            lines: Lines::new(source.text()),
            directives: None,
            comments: vec![],
            instructions: vec![],
            unknown: Unknown::default(),
        }
    }

    fn run(&mut self) {
        while let Some(line) = self.lines.next() {
            if logical::is_comment(line.text) {
                self.comment(&line);
            } else {
                self.directives = None;
                if let Some(logical) = Logical::read(line, &mut self.lines, self.cx.escape) {
                    self.instruction(&logical);
                    self.comments.clear();
                }
            }
        }
        self.flush_unknown();
        for span in self.lines.take_too_long() {
            let message = format!("dockerfile line greater than max allowed size of {MAX_LINE}");
            let help = "split it with a continuation, or move the text to a file and COPY it";
            self.cx.error(codes::LONG_LINE, Span { end: span.start, ..span }, message, help);
        }
    }

    fn comment(&mut self, line: &Physical<'_>) {
        if self.is_directive(line) {
            return;
        }
        let comment = logical::comment_text(line);
        if comment.value.is_empty() {
            self.comments.clear();
        } else {
            self.comments.push(comment);
        }
    }

    /// Whether a comment line is a directive; acts on it.
    fn is_directive(&mut self, line: &Physical<'_>) -> bool {
        let Some(seen) = &mut self.directives else { return false };
        let stripped = line.text.trim_start();
        let Some(found) = directive::parse(stripped, "#") else {
            self.directives = None;
            return false;
        };
        let start = line.start + (line.text.len() - stripped.len()) + found.at;
        let span = Span::new(start, start + found.value.len());
        if seen.contains(&found.name) {
            let message = format!("only one {} parser directive can be used", found.name.text());
            self.cx.error(codes::DUPLICATE_DIRECTIVE, line.span(), message, "remove this line");
            return true;
        }
        seen.push(found.name);
        if found.name == Name::Escape {
            match found.value {
                "\\" => self.cx.escape = '\\',
                "`" => self.cx.escape = '`',
                other => {
                    let message = format!("invalid escape token '{other}' does not match ` or \\");
                    let help = "write # escape=` or # escape=\\";
                    self.cx.error(codes::INVALID_ESCAPE, span, message, help);
                }
            }
        }
        true
    }

    fn instruction(&mut self, logical: &Logical<'s>) {
        let line = logical.slice();
        let head = Head::split(line, self.cx.escape);
        if let Some(blank) = logical.blank {
            let help = "remove the blank line, or make it a comment";
            self.cx.lint(codes::NO_EMPTY_CONTINUATION, blank, "empty continuation line", help);
        }
        let (heredocs, end) = self.heredocs(&head, line.text(), logical.end);
        let span = head.keyword.span().join(Span::new(end, end));
        if head.is_known() {
            self.flush_unknown();
        } else {
            self.unknown(&head);
        }
        let around = Around { line, heredocs, comments: &self.comments, span };
        let kind = instr::parse(&mut self.cx, &head, around);
        self.instructions.push(Instruction {
            keyword: head.keyword.word(),
            span,
            original: line.text().to_owned(),
            comments: self.comments.clone(),
            kind,
        });
    }

    /// The bodies that the line announces, and where the last one ends.
    fn heredocs(&mut self, head: &Head<'_>, line: &str, end: usize) -> (Vec<Heredoc>, usize) {
        let mut bodies = Vec::new();
        let mut end = end;
        if !line.contains("<<") || !head.takes_heredocs(self.cx.escape) {
            return (bodies, end);
        }
        let openers = heredoc::in_line(line).unwrap_or_else(|error| {
            let message = format!("cannot read the heredoc's delimiter: {error}");
            let diagnostic = self.cx.diagnostic(codes::INVALID_HEREDOC, head.rest.span(), message);
            self.cx.report_form(diagnostic);
            vec![]
        });
        // The first that does not end takes the rest of the file: that those after it have no body is no news.
        let mut open = false;
        for opener in openers {
            let body = logical::read_body(self.text, &mut self.lines, &opener.name, opener.chomp);
            end = body.end;
            if !body.terminated && !std::mem::replace(&mut open, true) {
                self.unterminated(head, &opener, body.near_miss);
            }
            bodies.push(opener.with_body(body.raw, body.span));
        }
        (bodies, end)
    }

    fn unterminated(&mut self, head: &Head<'_>, opener: &heredoc::Opener, near_miss: Option<Span>) {
        let diagnostic =
            self.cx.diagnostic(codes::UNTERMINATED_HEREDOC, head.rest.span(), "unterminated heredoc");
        let name = &opener.name;
        let mut diagnostic = diagnostic.help(format!("end it with a line that is {name} and nothing else"));
        if let Some((file, span)) = diagnostic.place.as_ref().map(|(file, _)| file).zip(near_miss) {
            let line = file.line_col(span.start).line;
            let chomp = if opener.chomp { "; only tabs may stand in front of it" } else { "" };
            diagnostic = diagnostic.note(format!("line {line} has blanks beside {name}{chomp}"));
        }
        self.cx.report_form(diagnostic);
    }

    fn unknown(&mut self, head: &Head<'_>) {
        let keyword = head.keyword;
        let message = format!("unknown instruction: {}", keyword.text());
        let diagnostic = self.cx.diagnostic(codes::UNKNOWN_INSTRUCTION, keyword.span(), message);
        let few = self.unknown.more < MANY;
        if let Some(help) = Some(keyword.text()).filter(|_| few).and_then(instr::suggestion) {
            self.cx.report(diagnostic.help(help));
        } else if self.unknown.first.is_some() {
            self.unknown.more += 1;
        } else {
            self.unknown.first = Some(diagnostic.help(self.advice(keyword.text())));
        }
    }

    /// What to do about a word that resembles no instruction.
    fn advice(&self, keyword: &str) -> String {
        let escape = self.cx.escape;
        match self.instructions.last() {
            _ if keyword.is_empty() => format!("remove the {escape}: nothing follows it"),
            Some(above) => {
                let name = above.keyword.value.to_uppercase();
                format!("if this belongs to the {name} above, end the line before it with {escape}")
            }
            None => BEGIN.to_owned(),
        }
    }

    fn flush_unknown(&mut self) {
        let Unknown { first: Some(diagnostic), more } = std::mem::take(&mut self.unknown) else { return };
        self.cx.report(match more {
            0 => diagnostic,
            1 => diagnostic.note("the instruction after it is unknown as well"),
            n => diagnostic.note(format!("{n} instructions after it are unknown as well")),
        });
    }
}
