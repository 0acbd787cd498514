//! The codes of the parser's errors. A code never changes its meaning and is never used again.

macro_rules! codes {
    ($($name:ident = $code:literal, $what:literal;)*) => {
        $(#[doc = $what] pub(crate) const $name: &str = $code;)*

        /// Every error code of the parser with what it stands for, in order.
        pub const CODES: &[(&str, &str)] = &[$(($code, $what)),*];
    };
}

codes! {
    EMPTY = "RB1001", "the file is empty";
    NO_INSTRUCTIONS = "RB1002", "the file has comments and blank lines only";
    LONG_LINE = "RB1003", "a line is longer than 65535 bytes";
    DUPLICATE_DIRECTIVE = "RB1004", "a parser directive is given twice";
    INVALID_ESCAPE = "RB1005", "`# escape=` is neither a backslash nor a backtick";
    UNKNOWN_INSTRUCTION = "RB1006", "no such instruction";
    UNKNOWN_FLAG = "RB1007", "the instruction has no such flag";
    DUPLICATE_FLAG = "RB1008", "a flag is given twice";
    FLAG_WITHOUT_VALUE = "RB1009", "a flag lacks its value";
    FLAG_NOT_BOOLEAN = "RB1010", "a flag is neither true nor false";
    JSON_NOT_STRINGS = "RB1011", "a JSON array holds something else than strings";
    NO_ARGUMENTS = "RB1012", "an instruction needs at least one argument";
    NOT_ONE_ARGUMENT = "RB1013", "an instruction needs exactly one argument";
    NO_DESTINATION = "RB1014", "COPY or ADD without a destination";
    FROM_ARGUMENTS = "RB1015", "FROM has neither one nor three arguments";
    NO_EQUALS_SIGN = "RB1016", "a word of ENV or LABEL lacks its `=`";
    NO_VALUE = "RB1017", "ENV or LABEL with a name only";
    BLANK_NAME = "RB1018", "an empty name before `=`";
    UNTERMINATED_HEREDOC = "RB1019", "a heredoc without its last line";
    HEREDOC_DESTINATION = "RB1020", "a heredoc where the destination should be";
    SHELL_NOT_JSON = "RB1021", "SHELL is not in JSON form";
    HEALTHCHECK_NONE_ARGUMENTS = "RB1022", "HEALTHCHECK NONE with arguments";
    HEALTHCHECK_TYPE = "RB1023", "HEALTHCHECK is neither NONE nor CMD";
    HEALTHCHECK_NO_COMMAND = "RB1024", "HEALTHCHECK CMD without a command";
    ONBUILD_CHAIN = "RB1025", "ONBUILD of ONBUILD";
    ONBUILD_TRIGGER = "RB1026", "an instruction that cannot be an ONBUILD trigger";
    EMPTY_VOLUME = "RB1027", "VOLUME with an empty path";
    MALFORMED_MOUNT = "RB1028", "the fields of --mount or --device are not comma-separated values";
    INVALID_HEREDOC = "RB1029", "a heredoc's delimiter cannot be read";
    NOT_ONE_INSTRUCTION = "RB1030", "a text that should hold one instruction holds none or several";
    STAGE_NAME = "RB1031", "a text cannot be the name of a stage";
}

/// Lint: a stage's name is not in lower case.
pub(crate) const STAGE_NAME_CASING: &str = "StageNameCasing";
/// Lint: `AS` is not in the case of `FROM`.
pub(crate) const FROM_AS_CASING: &str = "FromAsCasing";
/// Lint: a blank line inside a continued instruction.
pub(crate) const NO_EMPTY_CONTINUATION: &str = "NoEmptyContinuation";
/// Lint: `MAINTAINER`.
pub(crate) const MAINTAINER_DEPRECATED: &str = "MaintainerDeprecated";
/// Lint, experimental: a comment above `FROM` or `ARG` that does not describe it.
pub(crate) const INVALID_DEFINITION_DESCRIPTION: &str = "InvalidDefinitionDescription";

#[cfg(test)]
mod tests {
    #[test]
    fn codes_are_counted_without_gaps() {
        for (i, (code, what)) in super::CODES.iter().enumerate() {
            assert_eq!(*code, format!("RB{}", 1001 + i), "{what}");
        }
    }
}
