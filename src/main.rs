//! The `sealift` program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    sealift::cli::main()
}
