#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| polypath_scsi::fuzzing::scsi_command(data));
