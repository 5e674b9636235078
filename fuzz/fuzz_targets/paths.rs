//! Names: checked, joined, split and shown.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealift_fuzz::paths(input));
