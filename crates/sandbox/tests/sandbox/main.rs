//! Whole steps, for real, on a root of busybox: what a command sees, that it stays inside, and that nothing is left.
//! Tests run one after the other, so that what is left belongs to the test that left it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::print_stderr, reason = "a test that cannot run says why")]

mod devices;
mod escape;
mod lifecycle;
mod mounts;
mod network;
mod rootless;
mod space;
mod steps;
