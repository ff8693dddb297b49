//! An image has one writer, and one file is not two disks.
#![allow(missing_docs)]

use polypath_block::Device;
use polypath_local::LocalError;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

fn open(uri: &str) -> Result<Arc<dyn Device>, LocalError> {
    polypath_local::open(&uri.parse().unwrap())
}

/// As containers and `mknod` make them: a lock is one of a node.
#[test]
fn a_block_device_is_written_by_one_disk_at_a_time_whatever_its_nodes() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image = folder.path().join("image");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    if std::fs::metadata(&image).unwrap().uid() != 0 {
        return;
    }
    let run = |words: &[&str]| {
        let output = std::process::Command::new(words[0]).args(&words[1..]).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let device = run(&["losetup", "--show", "-f", image.to_str().unwrap()]);
    let node = folder.path().join("node");
    let numbers = run(&["stat", "-c", "%Hr %Lr", &device]);
    let (major, minor) = numbers.split_once(' ').unwrap();
    run(&["mknod", node.to_str().unwrap(), "b", major, minor]);
    let uri = |options: &str| format!("file://{}{options}", node.display());
    let first = open(&format!("file://{device}"));
    let outcomes = ["", "?readonly=on", "?lock=off"].map(|options| open(&uri(options)).map(drop));
    drop(first);
    let (last, writer) = (open(&uri("?readonly=on")), open(&format!("file://{device}?readonly=on")));
    run(&["losetup", "-d", &device]);
    let errors = [0, 1].map(|n| outcomes[n].as_ref().unwrap_err().to_string());
    assert!(errors.iter().all(|error| error.contains("another disk of this one")), "{errors:?}");
    assert!(outcomes[2].is_ok() && last.is_ok() && writer.is_ok());
}

#[test]
fn a_file_is_written_by_one_disk_at_a_time_whatever_it_is_called() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (file, link) = (folder.path().join("disk"), folder.path().join("link"));
    std::fs::write(&file, vec![0; 1 << 20]).unwrap();
    std::fs::hard_link(&file, &link).unwrap();
    let uri = |options: &str| format!("file://{}{options}", file.display());
    let first = open(&uri("")).unwrap();
    for second in [uri(""), uri("?readonly=on"), format!("file://{}", link.display())] {
        let error = open(&second).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("another process") && error.contains("lock=off"), "{second}: {error}");
        polypath_local::check(&second.parse().unwrap()).expect("whether it could be opened is another question");
    }
    open(&uri("?lock=off")).expect("somebody who knows better");
    drop(first);
    let reader =
        open(&uri("?readonly=on")).expect("its locks have ended with it, those of the disk that was refused too");
    let other = open(&uri("?readonly=on")).expect("readers bear each other");
    assert!(open(&uri("")).is_err(), "they do not bear a writer");
    drop((reader, other));
    open(&uri("")).unwrap();
}
