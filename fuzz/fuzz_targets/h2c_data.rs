#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| polypath_nvmf_tcp::fuzzing::h2c_data(data));
