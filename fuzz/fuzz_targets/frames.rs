//! A stream of frames, as a connection reads it.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealift_fuzz::frames(input));
