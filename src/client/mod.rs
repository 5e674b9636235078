//! The client: what the arguments mean, what is to be moved where, and what is told about it.
//!
//! [`remote`] and [`plan`] turn arguments into a plan before anything moves; [`walk`] finds the local files of an
//! upload while the first of them already move; [`event`] is what whoever watches gets to see.

pub mod event;
pub mod link;
pub mod plan;
pub mod remote;
pub mod walk;
