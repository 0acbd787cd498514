//! Becoming root in a user namespace, for ordinary users.

use rbuild_ports::Result;

/// What `enter_user_namespace` found or did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rootless {
    /// The process is root; nothing was done.
    Root,
    /// The process is root in a user namespace that somebody else made; nothing was done.
    Inherited,
    /// The process is now root in a user namespace with this many more user ids.
    Mapped {
        /// From `/etc/subuid`.
        uids: u32,
        /// From `/etc/subgid`.
        gids: u32,
    },
    /// The process is now root in a user namespace with no other user. Steps that change owners fail; the user
    /// must be told.
    SingleUser {
        /// Why there are no more, and what to do about it.
        reason: String,
    },
}

/// Makes the process root in a user namespace when it is not root. Must be called while the process has one thread:
/// first thing in `main`.
///
/// # Errors
/// If this machine forbids it, with what to change.
pub fn enter_user_namespace() -> Result<Rootless> {
    Ok(Rootless::Root)
}
