#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| polypath_nbd::fuzzing::nbd_decoders(data));
