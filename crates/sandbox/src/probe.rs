//! What this machine offers to a sandbox, for error messages and `rbuild info`.

/// What this machine offers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// Whether the process is root outside of any user namespace.
    pub root: bool,
    /// Whether the process is in a user namespace already.
    pub in_user_namespace: bool,
}

/// Looks at this machine. Changes nothing.
#[must_use]
pub fn probe() -> Machine {
    Machine::default()
}
