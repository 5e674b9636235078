//! One message of any kind: decoded, encoded, decoded again.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealift_fuzz::messages(input));
