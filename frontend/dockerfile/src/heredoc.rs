//! Openers of here-documents: which words of a line announce a body, and under which name. Always lexed with
//! `\` as the escape character, whatever `# escape=` says.

use crate::words::{delimiter_words, shell_words};
use crate::{Command, ExpandError, Heredoc, RunInstr};

/// `<<EOF` and its variants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Opener {
    pub(crate) name: String,
    pub(crate) chomp: bool,
    pub(crate) expand: bool,
    pub(crate) fd: u32,
}

impl Opener {
    /// With the body `raw`.
    pub(crate) fn with_body(self, raw: &str, span: rbuild_diag::Span) -> Heredoc {
        let content = if self.chomp { chomped(raw) } else { raw.to_owned() };
        Heredoc {
            name: self.name,
            chomp: self.chomp,
            expand: self.expand,
            fd: self.fd,
            content,
            raw: raw.to_owned(),
            span,
        }
    }
}

/// The openers of a line, in order. A line that does not lex as shell words has none.
pub(crate) fn in_line(line: &str) -> Result<Vec<Opener>, ExpandError> {
    let mut found = Vec::new();
    for word in shell_words(line).unwrap_or_default() {
        found.extend(in_word(&word)?);
    }
    Ok(found)
}

/// What a single word opens: digits, `<<`, perhaps `-`, and a delimiter that is one word.
pub(crate) fn in_word(word: &str) -> Result<Option<Opener>, ExpandError> {
    let digits = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
    let (fd, rest) = word.split_at(digits);
    let Some(rest) = rest.strip_prefix("<<") else { return Ok(None) };
    let (rest, chomp) = match rest.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let rest = rest.trim_start_matches(['\t', '\n', '\x0c', '\r', ' ']);
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let plain = delimiter_words(rest, false)?;
    let [name] = plain.as_slice() else { return Ok(None) };
    // A quote that is gone in one reading and there in the other did quote something.
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    let expand = delimiter_words(rest, true)?.first().is_some_and(|kept| quotes(kept) == quotes(name));
    let fd = if fd.is_empty() { 0 } else { fd.parse().unwrap_or(u32::MAX) };
    Ok(Some(Opener { name: name.clone(), chomp, expand, fd }))
}

/// Without the tabs in front of each line.
pub(crate) fn chomped(body: &str) -> String {
    body.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}

impl RunInstr {
    /// The first heredoc, when the command is nothing but its opener: its body is then the script itself.
    #[must_use]
    pub fn sole_heredoc(&self) -> Option<&Heredoc> {
        match &self.command {
            Command::Shell(text) if matches!(in_word(&text.value), Ok(Some(_))) => self.heredocs.first(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(line: &str) -> String {
        let openers = in_line(line).unwrap();
        let show = |o: Opener| {
            let chomp = if o.chomp { "-" } else { "" };
            let raw = if o.expand { "" } else { " raw" };
            format!("{}<<{chomp}{}{raw}", o.fd, o.name)
        };
        openers.into_iter().map(show).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn openers() {
        for (line, expected) in [
            ("RUN <<EOF", "0<<EOF"),
            ("RUN <<-EOF", "0<<-EOF"),
            ("RUN << EOF", "0<<EOF"),
            ("RUN 3<<EOF cat", "3<<EOF"),
            ("RUN 99999999999<<EOF", "4294967295<<EOF"),
            ("RUN cat <<A - <<B >x", "0<<A, 0<<B"),
            ("RUN <<'EOF'", "0<<EOF raw"),
            ("RUN <<\"EOF\"", "0<<EOF raw"),
            ("RUN <<E\"O\"F", "0<<EOF raw"),
            ("RUN <<'one two'", "0<<one two raw"),
            ("RUN <<eo\\'f", "0<<eo'f"),
            ("RUN <<'e'o\\'f", "0<<eo'f raw"),
            ("RUN <<$EOF", "0<<$EOF"),
            ("RUN <<${EOF:-x}", "0<<${EOF:-x}"),
            ("RUN cat<<EOF", ""),
            ("RUN \"<<EOF\"", ""),
            ("RUN '<<EOF'", ""),
            ("RUN \\<<EOF", ""),
            ("RUN <<<EOF", ""),
            ("RUN <<\"\"", ""),
            ("RUN <<", ""),
            ("RUN <<-", ""),
            ("RUN it's <<EOF", ""),
            ("RUN ${x@Q} <<EOF", ""),
            ("RUN a<b <<EOF", "0<<EOF"),
        ] {
            assert_eq!(show(line), expected, "{line}");
        }
    }

    #[test]
    fn chomping_removes_tabs_only() {
        assert_eq!(chomped("\t\ta\n \tb\n\t\n\tc\td"), "a\n \tb\n\nc\td");
    }
}
