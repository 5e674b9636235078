//! The command line: the only place, with `main`, that prints, exits or reads the environment.

pub mod certs;
