#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tupper::fuzzing::pax(bytes));
