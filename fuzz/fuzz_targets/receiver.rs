//! The receiver of a file under a list of operations.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealift_fuzz::receiver(input));
