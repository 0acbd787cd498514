//! Single flight: of those who would do the same work at the same time, in this process or in others, one does it.

use rbuild_digest::Digest;

use crate::{CancelToken, Result};

/// The right to do some work. Dropping it lets the next one in.
pub trait Flight: Send {}

/// Lets one at a time do a piece of work.
pub trait Flights: Send + Sync {
    /// Waits until nobody does `work`. `waiting` is called once if somebody does. One that dies lets the next one in.
    ///
    /// # Errors
    /// `Cancelled`, or if it cannot be known.
    fn enter(&self, work: &Digest, waiting: &dyn Fn(), cancel: &CancelToken) -> Result<Box<dyn Flight>>;
}

/// Nobody else is there.
pub struct Alone;

impl Flight for Alone {}

impl Flights for Alone {
    fn enter(&self, _: &Digest, _: &dyn Fn(), _: &CancelToken) -> Result<Box<dyn Flight>> {
        Ok(Box::new(Self))
    }
}
