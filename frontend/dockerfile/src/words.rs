//! Quoting and `$VAR` / `${VAR:-x}` expansion.

/// What a word became.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The text.
    pub value: String,
    /// Names that were asked for and unset, each once, in the order of first use.
    pub unmatched: Vec<String>,
    /// Names that were asked for and set, each once, in the order of first use.
    pub used: Vec<String>,
}

/// Why a word cannot be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExpandError {
    /// Byte offset in the raw word.
    pub offset: usize,
    /// What is wrong.
    pub message: String,
}

/// Expands a word and removes its quotes.
pub fn expand_word(
    raw: &str,
    escape: char,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Expanded, ExpandError> {
    let _ = (escape, env);
    Ok(Expanded { value: raw.to_owned(), ..Expanded::default() })
}

/// Expands a text and splits the result into words at blanks that are not quoted.
pub fn expand_words(
    raw: &str,
    escape: char,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<String>, ExpandError> {
    let _ = (escape, env);
    Ok(raw.split_whitespace().map(str::to_owned).collect())
}

/// Expands the body of a heredoc: quotes are text, `\` escapes the next character whatever `# escape=` says.
pub fn expand_heredoc(raw: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Expanded, ExpandError> {
    let _ = env;
    Ok(Expanded { value: raw.to_owned(), ..Expanded::default() })
}

/// Expands a text for display: quotes stay, and variables that are unset stay as written.
pub fn expand_step_name(
    raw: &str,
    escape: char,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<String, ExpandError> {
    let _ = (escape, env);
    Ok(raw.to_owned())
}
