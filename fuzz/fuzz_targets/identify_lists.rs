#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| polypath_nvme::fuzzing::identify_lists(data));
