//! Diagnostics as text: headline, source line with carets, notes, advice.

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use crate::{Diagnostic, Severity};

/// How to render.
#[derive(Clone, Copy, Debug)]
pub struct RenderOptions {
    /// ANSI colours.
    pub color: bool,
    /// Columns of the terminal.
    pub width: usize,
}

/// One diagnostic as text of several lines, without a final newline.
#[must_use]
pub fn render(diagnostic: &Diagnostic, options: RenderOptions) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let mut group = level
        .primary_title(&diagnostic.message)
        .id(diagnostic.code)
        .elements([] as [Snippet<'_, annotate_snippets::Annotation<'_>>; 0]);
    if let Some((file, span)) = &diagnostic.place {
        let mut range = span.range();
        let text = file.text();
        range.end = range.end.min(text.len());
        range.start = range.start.min(range.end);
        // A line that ends the place does not begin another one.
        if let Some(marked) = text.get(range.clone()) {
            range.end = range.start + marked.trim_end_matches(['\n', '\r']).len();
        }
        group = group.element(
            Snippet::source(text)
                .path(file.name())
                .fold(true)
                .annotation(AnnotationKind::Primary.span(range)),
        );
    }
    for note in &diagnostic.notes {
        group = group.element(Level::NOTE.message(note));
    }
    if let Some(help) = &diagnostic.help {
        group = group.element(Level::HELP.message(help));
    }
    let renderer = if options.color { Renderer::styled() } else { Renderer::plain() };
    renderer.term_width(options.width).render(&[group])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SourceFile, Span};

    #[test]
    fn shows_file_line_caret_cause_and_remedy() {
        let file = SourceFile::new("Dockerfile", "FROM a\nCPOY x y\n");
        let diagnostic = Diagnostic::error("RB1001", "unknown instruction \"CPOY\"")
            .at(&file, Span::new(7, 11))
            .note("instructions start a line")
            .help("did you mean COPY?");
        let text = render(&diagnostic, RenderOptions { color: false, width: 80 });
        for part in [
            "error[RB1001]: unknown instruction",
            "Dockerfile:2:1",
            "CPOY x y",
            "^^^^",
            "note: instructions",
            "help: did you mean COPY?",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }

    #[test]
    fn places_of_several_lines_are_marked_from_the_first_to_the_last() {
        let body: String = (0..40).map(|i| format!("    line {i}; \\\n")).collect();
        let text = format!("FROM a\nRUN one && \\\r\n    two\r\nRUN {body}    last\nRUN b\n");
        let file = SourceFile::new("Dockerfile", text.as_str());
        let of = |first: &str, last: &str| {
            let span = Span::new(text.find(first).unwrap(), text.find(last).unwrap() + last.len());
            render(&Diagnostic::error("E", "m").at(&file, span), RenderOptions { color: false, width: 80 })
        };
        let short = of("RUN one", "two\r\n");
        assert!(short.contains("2 | / RUN one && \\\n3 | |     two\n  | |_______^"), "{short}");
        let long = of("RUN     line", "last");
        assert!(long.contains(" 4 | / RUN     line 0; \\") && long.contains("44 | |     last"), "{long}");
        assert!(long.lines().count() < 12, "{long}");
    }

    #[test]
    fn places_out_of_the_text_do_not_panic() {
        let file = SourceFile::new("Dockerfile", "é");
        for (start, end) in [(0, 99), (98, 99), (2, 2), (0, 0)] {
            let diagnostic = Diagnostic::warning("W", "m").at(&file, Span::new(start, end));
            assert!(render(&diagnostic, RenderOptions { color: false, width: 80 }).contains("warning"));
        }
    }
}
