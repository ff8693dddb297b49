#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| polypath_nvme::fuzzing::log_discovery(data));
