#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| polypath_iscsi::fuzzing::iscsi_login_initiator(data));
