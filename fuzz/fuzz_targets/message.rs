#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    turnix_fuzz::targets::message(data);
});
