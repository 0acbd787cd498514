//! Explanations: scripts of build, change, `build --explain`.

use crate::command::check_script;
use crate::common::{require_root, require_sandbox};

#[test]
fn causes_are_named() {
    if require_root() {
        check_script("why.txt");
    }
}

#[test]
fn causes_of_commands_are_named() {
    if require_sandbox() {
        check_script("why_run.txt");
    }
}
