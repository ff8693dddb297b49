#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| polypath_nvmf_tcp::fuzzing::icresp(data));
