//! Qualified names of devices, `vendor/class=name`, and which characters their parts may have.

/// Why a name is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// No `vendor/class` in front.
    #[error("it is not of the form vendor.com/class=name")]
    Form,
    /// A part is empty.
    #[error("its {0} is empty")]
    Empty(&'static str),
    /// A part begins with the wrong character.
    #[error("the {0} {1:?} must start with {2}")]
    Start(&'static str, String, &'static str),
    /// A part ends with the wrong character.
    #[error("the {0} {1:?} must end with a letter or digit")]
    End(&'static str, String),
    /// A part has a character that it may not have.
    #[error("the {0} {1:?} has the character {2:?}, which it may not have")]
    Character(&'static str, String, char),
}

/// `vendor/class[=name]` in its kind, which is checked, and the name, empty if there is none.
///
/// # Errors
/// If there is no kind, or vendor or class cannot be names.
pub fn split(qualified: &str) -> Result<(&str, &str), NameError> {
    let (kind, name) = qualified.split_once('=').unwrap_or((qualified, ""));
    check_kind(kind)?;
    Ok((kind, name))
}

/// `vendor/class`.
pub(crate) fn check_kind(kind: &str) -> Result<(), NameError> {
    let (vendor, class) = kind.split_once('/').ok_or(NameError::Form)?;
    for (what, part) in [("vendor", vendor), ("class", class)] {
        check(what, part, |c| c.is_ascii_alphabetic(), "a letter", "_-.")?;
    }
    Ok(())
}

/// The name of a device in its spec.
pub(crate) fn check_device(name: &str) -> Result<(), NameError> {
    check("name", name, |c| c.is_ascii_alphanumeric(), "a letter or digit", "_-.:")
}

fn check(
    what: &'static str,
    part: &str,
    start: impl Fn(char) -> bool,
    starts: &'static str,
    between: &str,
) -> Result<(), NameError> {
    let (Some(first), Some(last)) = (part.chars().next(), part.chars().next_back()) else {
        return Err(NameError::Empty(what));
    };
    if !start(first) {
        return Err(NameError::Start(what, part.to_owned(), starts));
    }
    if let Some(wrong) = part.chars().find(|c| !c.is_ascii_alphanumeric() && !between.contains(*c)) {
        return Err(NameError::Character(what, part.to_owned(), wrong));
    }
    if !last.is_ascii_alphanumeric() {
        return Err(NameError::End(what, part.to_owned()));
    }
    Ok(())
}
