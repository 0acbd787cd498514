//! The codes of the errors of lowering. A code never changes its meaning and is never used again.

macro_rules! codes {
    ($($name:ident = $code:literal, $what:literal;)*) => {
        $(#[doc = $what] pub(crate) const $name: &str = $code;)*

        /// Every error code of lowering with what it stands for, in order.
        pub const CODES: &[(&str, &str)] = &[$(($code, $what)),*];
    };
}

codes! {
    BEFORE_FROM = "RB1101", "an instruction other than ARG before the first FROM";
    NO_STAGE = "RB1102", "the file has no stage";
    NO_SUCH_TARGET = "RB1103", "there is no such target stage";
    EMPTY_BASE = "RB1104", "the base of a stage expands to nothing";
    INVALID_REFERENCE = "RB1105", "a text is no image reference";
    INVALID_PLATFORM = "RB1106", "a text is no platform";
    EXPANSION = "RB1107", "variables cannot be expanded";
    LATER_STAGE = "RB1108", "files are taken from a stage that is defined later";
    CYCLE = "RB1109", "stages depend on each other";
    NO_SUCH_STAGE = "RB1110", "there is no stage of that number, or a number is not allowed";
    VARIABLE_IN_FROM = "RB1111", "a variable in --from";
    TRIGGER = "RB1112", "an ONBUILD trigger of a base image cannot run";
    MOUNT = "RB1113", "a field of --mount is unknown, misplaced or has an invalid value";
    MOUNT_TARGET = "RB1114", "the target of a mount is the root directory";
    NETWORK = "RB1115", "there is no such network mode";
    SECURITY = "RB1116", "there is no such security mode";
    DEVICE = "RB1117", "a field of --device is unknown or has an invalid value";
    MODE = "RB1118", "--chmod is no mode";
    OWNER = "RB1119", "an owner is given by name where there are no names";
    REMOTE_COPY = "RB1120", "COPY of a web address or git repository";
    CHECKSUM = "RB1121", "--checksum is invalid or misplaced";
    GIT_URL = "RB1122", "a git URL cannot be used";
    NO_CONTEXT = "RB1123", "there is no build context";
    PORT = "RB1124", "EXPOSE names no port";
    VOLUME = "RB1125", "a volume expands to nothing";
    SIGNAL = "RB1126", "there is no such signal";
    HEALTHCHECK = "RB1127", "a flag of HEALTHCHECK is invalid";
    EPOCH = "RB1128", "SOURCE_DATE_EPOCH is invalid";
    CHECK_OPTION = "RB1129", "the options of build checks are invalid";
    CHECK_FAILED = "RB1130", "build checks found something and error=true";
    IGNORE_PATTERN = "RB1131", "the ignore file has a malformed pattern";
    PATH = "RB1132", "a path cannot be used in the image";
    NO_SUCH_CHECK = "RB1133", "there is no such build check (a warning)";
    COMMIT = "RB1134", "a git reference is another commit than --checksum says";
    GRAPH = "RB1135", "the graph could not be built: a mistake in this program";
    NO_MOUNT_TARGET = "RB1136", "a mount without target in the root directory";
    NO_CACHE_STAGE = "RB1137", "a stage to build without the cache does not exist (a warning)";
    OTHER_FRONTEND = "RB1138", "another frontend is named than the one that is used (a warning)";
}

/// Errors that are about one instruction and nothing else.
pub(crate) const LOCAL: &[&str] = &[
    VARIABLE_IN_FROM,
    MOUNT,
    MOUNT_TARGET,
    NETWORK,
    SECURITY,
    DEVICE,
    MODE,
    REMOTE_COPY,
    CHECKSUM,
    PORT,
    VOLUME,
    SIGNAL,
    HEALTHCHECK,
];

#[cfg(test)]
mod tests {
    #[test]
    fn codes_are_counted_without_gaps() {
        for (i, (code, what)) in super::CODES.iter().enumerate() {
            assert_eq!(*code, format!("RB{}", 1101 + i), "{what}");
        }
    }
}
