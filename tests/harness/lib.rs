//! What tests of whole builds share. Knows formats, directories and processes, not rbuild: what reads rbuild's outputs
//! here shares no code with what wrote them.

pub mod fixture;
pub mod images;
pub mod leaks;
pub mod normalize;
pub mod registry;
pub mod space;
