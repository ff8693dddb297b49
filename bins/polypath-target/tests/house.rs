//! The order of the house: media, faults and what all connections share know no protocol, and the protocols do not know each other.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};

/// Rooms and files, and what none of them may name.
const ORDER: [(&[&str], &[&str]); 3] = [
    (
        &["media", "faults", "store.rs", "shared.rs", "mail.rs", "out.rs"],
        &[
            "crate::nvme",
            "crate::iscsi",
            "crate::rooms",
            "crate::conn",
            "crate::shell",
            "polypath_nvme",
            "polypath_iscsi",
            "polypath_scsi",
        ],
    ),
    (&["nvme"], &["crate::iscsi", "crate::rooms", "crate::shell", "polypath_iscsi", "polypath_scsi"]),
    (&["iscsi"], &["crate::nvme", "crate::rooms", "crate::shell", "polypath_nvme"]),
];

#[test]
fn no_import_runs_back() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (rooms, others) in ORDER {
        let mut files = Vec::new();
        rooms.iter().for_each(|room| collect(&source.join(room), &mut files));
        assert!(!files.is_empty(), "{rooms:?} are not there");
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            for other in others {
                assert!(!text.contains(other), "{} names {other}", file.display());
            }
        }
    }
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    if path.is_file() {
        return files.push(path.into());
    }
    for entry in std::fs::read_dir(path).unwrap() {
        collect(&entry.unwrap().path(), files);
    }
}
