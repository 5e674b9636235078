//! stub
use crate::cli::args::ConnectArgs;
use crate::error::Result;
use clap::Args;
use std::ffi::OsString;
/// x
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// x
    pub remote: OsString,
    /// How to connect.
    #[command(flatten)]
    pub connect: ConnectArgs,
}
/// x
/// # Errors
/// x
pub fn run(_: &DoctorArgs) -> Result<u8> {
    Ok(0)
}
