use super::*;
use polypath::block::{Access, CacheDomain, DeviceInfo, Geometry, Identifier, Identity, Limits};

const SECOND: Duration = Duration::from_secs(1);
const ONE: &str = "/run/one.sock";
const TWO: &str = "/run/two.sock";

/// The folder at `at`, in a boot that was `uptime` ago.
fn folder(at: &Path, boot: &str, uptime: Duration) -> StateDir {
    let mut state = StateDir::open(at).unwrap();
    state.boot = Boot { id: boot.into(), from: (state.boot.uptime(), uptime) };
    state
}

fn begin(state: &StateDir, disk: &str, bound: Duration) -> SocketMark {
    begin_at(state, disk, ONE, bound)
}

fn begin_at(state: &StateDir, disk: &str, socket: &str, bound: Duration) -> SocketMark {
    Arc::new(state.claim(disk, bound).unwrap()).begin(socket, false, &[]).unwrap()
}

/// What a path shows: a disk of identity `id`, and how often its cache has lost its power.
fn shown(id: u8, power: u32, bound: Duration) -> Shown {
    Shown::new(&info(id, power), bound, false)
}

fn info(id: u8, power: u32) -> DeviceInfo {
    let cache_domain = CacheDomain::since("nvme:nqn:serial", &power.to_string());
    DeviceInfo {
        geometry: Geometry { block_size: 512, blocks: 100 },
        limits: Limits { write_cache: true, ..Limits::UNLIMITED },
        identity: Identity { identifiers: vec![Identifier::Uuid([id; 16])], cache_domain },
        access: Access::Optimized,
        max_queues: 1,
        max_depth: 1,
    }
}

/// A second less at most, for what has passed meanwhile; a mark counts begun milliseconds.
fn is_about(left: Duration, expected: Duration) -> bool {
    left <= expected + Duration::from_millis(1) && left + SECOND > expected
}

fn file(at: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(at.join("d.json")).unwrap()).unwrap()
}

/// An end in order says that its own daemon left nothing; what one before it may have in flight has its time.
#[test]
fn only_an_end_in_order_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(&dir.path().join("new/folder"), "b", 100 * SECOND);
    let mark = begin(&state, "vm 1/a", 15 * SECOND);
    assert!(!mark.unclean() && mark.hold().left().is_zero() && !mark.write_through());
    drop(mark);
    let mark = begin(&state, "vm 1/a", 3 * SECOND);
    assert!(mark.unclean() && is_about(mark.hold().left(), 15 * SECOND), "as long as that one said");
    drop(mark);
    let mark = begin(&state, "vm 1/a", 3 * SECOND);
    assert!(mark.unclean() && is_about(mark.hold().left(), 15 * SECOND), "its successor was killed as well");
    mark.end(Vec::new()).unwrap();
    drop(mark);
    let mark = begin(&state, "vm 1/a", 3 * SECOND);
    assert!(!mark.unclean() && is_about(mark.hold().left(), 15 * SECOND), "those that were killed have their time");
    mark.end(Vec::new()).unwrap();
    assert!(!begin(&state, "vm%201", SECOND).unclean(), "another disk");
    drop(mark);
    let later = folder(&dir.path().join("new/folder"), "b", 120 * SECOND);
    let mark = begin(&later, "vm 1/a", 3 * SECOND);
    assert!(!mark.unclean() && mark.hold().left().is_zero(), "it is over");
}

/// A daemon that ends in order before the time of its predecessor's requests has passed: they land when they land.
#[test]
fn an_end_in_order_does_not_shorten_what_a_predecessor_may_have_in_flight() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", 100 * SECOND);
    drop(begin(&state, "d", 15 * SECOND));
    let second = begin(&state, "d", 15 * SECOND);
    assert!(second.hold().left() > 14 * SECOND, "the first was killed");
    second.end(Vec::new()).unwrap();
    drop(second);
    assert_eq!(file(dir.path())["clean"], true);
    let third = begin(&state, "d", 15 * SECOND);
    assert!(third.hold().left() > 10 * SECOND, "its changes would go first, and the first one's land on top of them");
}

/// What is passed through lands as late as a write, whether somebody serves the disk or not.
#[test]
fn a_command_that_was_killed_in_the_middle_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", 100 * SECOND);
    let claim = || Arc::new(state.claim("d", SECOND).unwrap());
    let killed = claim();
    assert_eq!(killed.begin_passing(&[shown(1, 0, 15 * SECOND)]).unwrap(), Duration::ZERO);
    assert_eq!((&file(dir.path())["clean"], &file(dir.path())["passing"]), (&false.into(), &true.into()));
    drop(killed);
    let mark = claim();
    let socket = mark.begin(ONE, false, &[]).unwrap();
    assert!(is_about(socket.hold().left(), 15 * SECOND), "{:?}", socket.hold().left());
    assert!(!socket.unclean(), "nobody was killed on a socket");
    assert!(is_about(mark.begin_passing(&[]).unwrap(), 15 * SECOND), "and so is it before another one is sent");
    mark.end_passing().unwrap();
    assert_eq!(file(dir.path())["clean"], false, "it is served");
    socket.end(Vec::new()).unwrap();
    drop((socket, mark));
    let word = file(dir.path());
    assert!(word["clean"] == true && word["passing"].is_null(), "{word}");
}

#[test]
fn the_time_of_a_boot_counts_and_the_age_of_this_boot_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let hold = |boot, uptime: Duration| begin(&folder(dir.path(), boot, uptime), "d", 15 * SECOND).hold().left();
    assert_eq!(hold("first", 1000 * SECOND), Duration::ZERO);
    assert!(is_about(hold("first", 1000 * SECOND), 15 * SECOND), "in the same boot");
    assert!(is_about(hold("second", 5 * SECOND), 10 * SECOND), "it ended before this boot");
    assert!(is_about(hold("third", SECOND), 14 * SECOND));
    assert!(hold("fourth", 500 * SECOND).is_zero(), "long ago");
    assert!(begin(&folder(dir.path(), "fifth", 500 * SECOND), "d", SECOND).unclean(), "all the same");
}

#[test]
fn what_the_guest_said_and_a_longer_bound_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", SECOND);
    let mark = begin(&state, "d", SECOND);
    mark.set_write_through(true).unwrap();
    mark.mark.raise_bound(7 * SECOND).unwrap();
    mark.mark.raise_bound(2 * SECOND).unwrap();
    drop(mark);
    let mark = begin(&state, "d", SECOND);
    assert!(mark.write_through() && is_about(mark.hold().left(), 7 * SECOND));
    mark.end(Vec::new()).unwrap();
    drop(mark);
    assert!(begin(&state, "d", SECOND).write_through(), "also after an end in order");
}

#[test]
fn each_socket_has_a_word_of_its_own_and_a_new_one_the_strictest() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", SECOND);
    let one = begin(&state, "d", SECOND);
    let two = one.mark.begin(TWO, false, &[]).unwrap();
    one.set_write_through(true).unwrap();
    two.set_write_through(true).unwrap();
    two.set_write_through(false).unwrap();
    assert_eq!(file(dir.path())["write_through"], true, "for who looks at the disk as a whole");
    let three = one.mark.begin("/run/three.sock", false, &[]).unwrap();
    assert!(
        one.write_through() && !two.write_through() && three.write_through(),
        "it may be the first one by another name"
    );
}

/// A killed daemon left two sockets. One is served again, and ended in order; the other one long after that.
#[test]
fn what_was_left_on_a_socket_waits_for_that_socket() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", SECOND);
    let one = begin(&state, "d", SECOND);
    drop((one.mark.begin(TWO, false, &[]).unwrap(), one));
    let one = begin(&state, "d", SECOND);
    assert!(one.unclean());
    one.end(vec![1, 3]).unwrap();
    drop(one);
    let one = begin(&state, "d", SECOND);
    assert_eq!((one.unclean(), one.orphans()), (false, vec![1, 3]), "rings that nobody has seen since");
    let two = one.mark.begin(TWO, false, &[]).unwrap();
    assert!(two.unclean(), "nobody has served it since");
    let three = one.mark.begin("/run/three.sock", false, &[]).unwrap();
    assert!(!three.unclean(), "nobody was killed there");
    assert_eq!(file(dir.path())["clean"], false);
    for (mark, clean) in [(&one, false), (&two, false), (&three, true)] {
        mark.end(Vec::new()).unwrap();
        assert_eq!(file(dir.path())["clean"], clean, "when the last one has ended");
    }
    drop((one, two, three));
    let one = begin(&state, "d", SECOND);
    assert!(!one.unclean() && one.orphans().is_empty());
    assert!(!one.mark.begin(TWO, false, &[]).unwrap().unclean());
}

#[test]
fn a_socket_that_could_not_be_served_leaves_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", SECOND);
    let mark = begin(&state, "d", SECOND);
    mark.undo().unwrap();
    drop(mark);
    assert_eq!(file(dir.path())["clean"], true);
    let mark = begin(&state, "d", 9 * SECOND);
    assert!(!mark.unclean() && mark.hold().left().is_zero());
    drop(mark);
    let mark = begin(&state, "d", 9 * SECOND);
    mark.undo().unwrap();
    drop(mark);
    let mark = begin(&state, "d", 9 * SECOND);
    assert!(mark.unclean() && mark.hold().left() > 7 * SECOND, "the one before was killed all the same");
}

#[test]
fn a_socket_that_was_left_behind_is_as_good_as_a_mark() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", SECOND);
    let stale = |socket| Arc::new(state.claim("d", 9 * SECOND).unwrap()).begin(socket, true, &[]).unwrap();
    let mark = stale(ONE);
    assert!(mark.unclean() && is_about(mark.hold().left(), 9 * SECOND));
    drop(mark);
    // The mark knows of that one. It ran in a boot whose requests have landed.
    let state = folder(dir.path(), "c", 100 * SECOND);
    let claim = |socket| Arc::new(state.claim("d", 9 * SECOND).unwrap()).begin(socket, true, &[]).unwrap();
    let mark = claim(ONE);
    assert!(mark.unclean() && mark.hold().left().is_zero());
    let two = mark.mark.begin(TWO, true, &[]).unwrap();
    assert!(two.unclean() && is_about(mark.hold().left(), 9 * SECOND), "and for all sockets of the disk");
}

#[test]
fn a_successor_learns_how_long_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", SECOND);
    let mark = begin(&state, "d", 5 * SECOND);
    mark.mark.raise_bound(30 * SECOND).unwrap();
    assert!(mark.hold().left().is_zero(), "nobody was killed");
    mark.end(Vec::new()).unwrap();
    drop(mark);
    drop(begin(&state, "d", 5 * SECOND));
    let mark = begin(&state, "d", 5 * SECOND);
    mark.mark.record(&[shown(1, 1, 20 * SECOND)]).unwrap();
    assert!(is_about(mark.hold().left(), 20 * SECOND), "its paths are those of the one that was killed");
    mark.end(Vec::new()).unwrap();
    drop(mark);
    assert!(is_about(begin(&state, "d", SECOND).hold().left(), 20 * SECOND));
}

#[test]
fn what_a_path_shows_is_written_before_it_is_covered() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", SECOND);
    let mark = begin(&state, "d", 5 * SECOND).mark;
    let first = shown(1, 7, 5 * SECOND);
    assert!(!mark.covers(&first), "neither the disk nor its cache");
    mark.record(std::slice::from_ref(&first)).unwrap();
    assert!(mark.covers(&first));
    assert_eq!(file(dir.path())["caches"]["nvme:nqn:serial"]["name"], "nvme:nqn:serial#7");
    for (what, other) in
        [("bound", shown(1, 7, 6 * SECOND)), ("power", shown(1, 8, SECOND)), ("disk", shown(2, 7, SECOND))]
    {
        assert!(!mark.covers(&other), "{what}");
    }
    assert_eq!(mark.disk().unwrap().speaks_against(&info(1, 9)), None);
    mark.record(&[shown(2, 7, 100 * SECOND)]).unwrap();
    assert!(mark.covers(&first) && !mark.covers(&shown(2, 7, SECOND)), "another disk is refused, and changes nothing");
    let why = mark.disk().unwrap().speaks_against(&info(2, 7)).unwrap();
    assert!(why.contains("uuid.0202") && why.contains("uuid.0101"), "{why}");
    let mut larger = info(1, 7);
    larger.geometry.block_size = 4096;
    assert!(mark.disk().unwrap().speaks_against(&larger).unwrap().contains("4096"));
    mark.record(&[Shown::new(&info(2, 7), SECOND, true)]).unwrap();
    assert!(mark.covers(&shown(2, 7, SECOND)), "the operator has said so");
    mark.let_go();
    assert!(mark.record(&[shown(2, 7, 900 * SECOND)]).is_err(), "somebody else may have it");
    assert!(state.known("d").unwrap().speaks_against(&info(1, 7)).is_some());
    state.forget("d").unwrap();
    assert_eq!(state.known("d"), None);
}

/// (The one before has flushed, the count has changed, the guest is owed.)
#[test]
fn a_loss_of_power_between_two_daemons_is_owed_to_each_guest_if_something_may_be_lost() {
    for (flushed, power, owed) in [(false, 2, true), (false, 1, false), (true, 2, false)] {
        let dir = tempfile::tempdir().unwrap();
        let state = folder(dir.path(), "b", SECOND);
        let one = begin(&state, "d", SECOND);
        let two = one.mark.begin(TWO, false, &[]).unwrap();
        one.mark.record(&[shown(1, 1, SECOND)]).unwrap();
        assert!(!one.owed().is_owed() && !two.owed().is_owed());
        one.end(Vec::new()).unwrap();
        two.end(Vec::new()).unwrap();
        if flushed {
            one.mark.flushed().unwrap();
        }
        drop((one, two));
        let one = begin(&state, "d", SECOND);
        one.mark.record(&[shown(1, power, SECOND)]).unwrap();
        assert_eq!(one.owed().is_owed(), owed, "{flushed} {power}");
        one.end(Vec::new()).unwrap();
        drop(one);
        let one = begin(&state, "d", SECOND);
        let two = one.mark.begin(TWO, false, &[]).unwrap();
        assert_eq!((one.owed().is_owed(), two.owed().is_owed()), (owed, owed), "until they have heard");
    }
}

/// While a daemon runs, its disk tells the guests; whoever comes after a kill does not know whether they have heard.
#[test]
fn a_loss_of_power_under_a_daemon_that_is_killed_is_owed_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", SECOND);
    let mark = begin(&state, "d", SECOND);
    mark.mark.record(&[shown(1, 1, SECOND)]).unwrap();
    mark.mark.record(&[shown(1, 2, SECOND)]).unwrap();
    assert!(!mark.owed().is_owed());
    drop(mark);
    let mark = begin(&state, "d", SECOND);
    assert!(mark.owed().is_owed());
    mark.end(Vec::new()).unwrap();
    mark.mark.lost().unwrap();
    drop(mark);
    assert!(begin(&state, "d", SECOND).owed().is_owed(), "a last flush that has found a loss");
}

#[test]
fn a_disk_has_one_daemon_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (folder(dir.path(), "b", SECOND), folder(dir.path(), "b", SECOND));
    let mark = begin(&one, "d", SECOND);
    assert!(other.claim("d", SECOND).unwrap_err().contains("another polypathd"));
    std::os::unix::fs::symlink("/dev/null", dir.path().join("f.lock")).unwrap();
    let error = other.claim("f", SECOND).unwrap_err();
    let folder = dir.path().display().to_string();
    assert!(["\"f\"", "cannot be locked", "link", &folder].iter().all(|word| error.contains(word)), "{error}");
    assert!(other.claim("e", SECOND).is_ok());
    mark.mark.let_go();
    assert!(other.claim("d", SECOND).is_ok());
}

#[test]
fn a_mark_that_cannot_be_read_is_taken_for_the_worst() {
    for bytes in [&b""[..], b"{", b"\xff\xfe", b"{\"clean\":true}"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("d.json"), bytes).unwrap();
        let mark = begin(&folder(dir.path(), "b", 100 * SECOND), "d", 9 * SECOND);
        assert!(mark.unclean() && mark.write_through() && is_about(mark.hold().left(), 9 * SECOND), "{bytes:?}");
        let two = mark.mark.begin(TWO, false, &[]).unwrap();
        assert!(two.unclean() && two.write_through(), "each of its sockets");
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    assert!(StateDir::open(&dir.path().join("file")).unwrap_err().contains("--state-dir"));
}

#[test]
fn no_two_disks_share_a_file() {
    for (name, file) in [("vm1", "vm1"), ("../x", "%2e%2e%2fx"), ("a%2f", "a%252f"), ("ü", "%c3%bc"), (".", "%2e")] {
        assert_eq!(file_name(name), file);
    }
}

/// Somebody before us has left something in a cache, which loses its power under us: our own disk has acknowledged nothing that could be lost
/// there, so that it tells nobody.
#[test]
fn a_loss_of_power_of_what_a_predecessor_left_is_owed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", SECOND);
    let mark = begin(&state, "d", SECOND);
    mark.mark.record(&[shown(1, 1, SECOND)]).unwrap();
    drop(mark);
    let mark = begin(&state, "d", SECOND);
    mark.mark.record(&[shown(1, 1, SECOND)]).unwrap();
    assert!(!mark.owed().is_owed(), "it is there");
    mark.mark.record(&[shown(1, 2, SECOND)]).unwrap();
    assert!(mark.owed().is_owed(), "it is gone");
}

/// That was found out and written down, and the daemon ends in order before its guest has flushed.
#[test]
fn an_end_in_order_does_not_forget_what_was_written_down_as_owed() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", SECOND);
    let mark = begin(&state, "d", SECOND);
    mark.mark.record(&[shown(1, 1, SECOND)]).unwrap();
    drop(mark);
    let mark = begin(&state, "d", SECOND);
    mark.mark.record(&[shown(1, 1, SECOND)]).unwrap();
    mark.mark.record(&[shown(1, 2, SECOND)]).unwrap();
    mark.end(Vec::new()).unwrap();
    mark.mark.flushed().unwrap();
    drop(mark);
    assert!(begin(&state, "d", SECOND).owed().is_owed(), "nobody has told the guest");
}

/// As what a guest said of its cache: the operator calls a socket by another name, and its guest is still owed what it was owed.
#[test]
fn a_socket_by_another_name_is_owed_what_the_others_are() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", SECOND);
    let mark = begin(&state, "d", SECOND);
    mark.mark.record(&[shown(1, 1, SECOND)]).unwrap();
    mark.owed().owe();
    mark.end(Vec::new()).unwrap();
    drop(mark);
    assert_eq!(file(dir.path())["sockets"][ONE]["owed"], true);
    assert!(begin_at(&state, "d", TWO, SECOND).owed().is_owed(), "it may be the first one by another name");
}

/// The disk is let go and served again by the same daemon: what the guest of a socket has been told of, and what not, goes on.
#[test]
fn what_a_guest_was_told_outlives_the_mark_of_its_disk() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", SECOND);
    let first = begin(&state, "d", SECOND);
    let owed = first.owed();
    first.end(Vec::new()).unwrap();
    let live = first.mark.live();
    first.mark.let_go();
    drop(first);
    let next = Arc::new(state.claim("d", SECOND).unwrap());
    next.set_live(live);
    let (one, two) = (next.begin(ONE, false, &[]).unwrap(), next.begin(TWO, false, &[]).unwrap());
    owed.owe();
    assert!(one.owed().is_owed(), "the first guest is not known any more");
    assert!(!two.owed().is_owed(), "another socket is another guest");
}

/// The operator has deleted the disk: the next one of that name has lost nothing of anybody's.
#[test]
fn a_disk_that_was_deleted_is_owed_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", SECOND);
    let mark = begin(&state, "d", SECOND);
    mark.mark.record(&[shown(1, 1, SECOND)]).unwrap();
    mark.owed().owe();
    mark.end(Vec::new()).unwrap();
    drop(mark);
    state.forget("d").unwrap();
    let next = begin(&state, "d", SECOND);
    next.mark.record(&[shown(2, 5, SECOND)]).unwrap();
    assert!(!next.owed().is_owed(), "a guest of a new disk is told that something of it was lost");
}

/// Sockets come and go, and are never forgotten. What is written down must be what the next daemon can read: a mark that is too long is taken
/// for the worst by every daemon from then on.
#[test]
fn a_mark_that_is_written_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", SECOND);
    for n in 0..12 {
        // As long as those of a few thousand sockets together.
        let socket = format!("/run/{n}/{}", "x".repeat(100_000));
        let mark = begin_at(&state, "d", &socket, SECOND);
        assert!(!mark.unclean(), "all before it have ended in order, the {n}th");
        mark.end(Vec::new()).unwrap();
    }
}

/// A daemon that could not drain has removed its socket, and its disk has another name in the configuration of the next one. The guest behind
/// the socket is the same, and so is what may land: its mark is in the folder, under the other name.
#[test]
fn a_socket_on_which_somebody_was_killed_is_unclean_whatever_its_disk_is_called() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", SECOND);
    let mark = begin(&state, "vm", 15 * SECOND);
    mark.mark.record(&[shown(1, 1, 15 * SECOND)]).unwrap();
    drop(mark);
    let mark = begin(&state, "vm1", 15 * SECOND);
    mark.mark.record(&[shown(1, 1, 15 * SECOND)]).unwrap();
    assert!(mark.unclean() && mark.hold().left() > 10 * SECOND, "it is the same disk on the same socket");
}

/// A loss of power between two daemons is found as a socket begins, and then that socket cannot be served. Its guest was not told: the next
/// one that serves it is.
#[test]
fn a_socket_that_could_not_be_served_is_still_owed_what_was_found_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", SECOND);
    let mark = begin(&state, "d", SECOND);
    mark.mark.record(&[shown(1, 1, SECOND)]).unwrap();
    mark.end(Vec::new()).unwrap();
    drop(mark);
    let mark = Arc::new(state.claim("d", SECOND).unwrap()).begin(ONE, false, &[shown(1, 2, SECOND)]).unwrap();
    assert!(mark.owed().is_owed(), "its cache was dirty, and has lost its power");
    mark.undo().unwrap();
    drop(mark);
    let mark = Arc::new(state.claim("d", SECOND).unwrap()).begin(ONE, false, &[shown(1, 2, SECOND)]).unwrap();
    assert!(mark.owed().is_owed(), "nobody has told its guest");
}

/// An orchestrator gives each machine a socket with a name of its own, year after year. What is kept of them fits what is read, or it would be
/// taken for the worst one day: the disk not known, changes waiting, each socket one where somebody was killed.
#[test]
fn what_is_written_can_be_read_again_however_many_sockets_there_were() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", SECOND);
    let mark = begin(&state, "d", SECOND);
    mark.mark.record(&[shown(1, 1, SECOND)]).unwrap();
    let name = |n: usize| format!("/run/polypath/{:x<60}-{n}.sock", "");
    // All but the last by hand: each costs a write of all of them.
    mark.mark
        .change(|known| {
            for n in 0..7000 {
                known.word.sockets.insert(name(n), SocketWord::default());
            }
        })
        .unwrap();
    mark.mark.begin(&name(7000), false, &[]).unwrap().end(Vec::new()).unwrap();
    mark.end(Vec::new()).unwrap();
    drop(mark);
    assert!(state.known("d").is_some(), "which disk it is");
    let mark = begin_at(&state, "d", &name(7001), SECOND);
    assert!(!mark.unclean() && mark.hold().left().is_zero(), "all of them have ended in order");
}

/// Two sockets were served when the daemon was killed, and one of them is served no more: that it was open is said of the one that was killed,
/// once, and not of all that come after.
#[test]
fn a_socket_that_is_served_no_more_keeps_nobody_unclean() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", 100 * SECOND);
    let one = begin(&state, "d", 15 * SECOND);
    let two = one.mark.begin(TWO, false, &[]).unwrap();
    drop((one, two));
    let next = begin(&state, "d", 3 * SECOND);
    assert!(next.unclean());
    next.end(Vec::new()).unwrap();
    drop(next);
    assert_eq!((&file(dir.path())["clean"], &file(dir.path())["sockets"][TWO]["open"]), (&true.into(), &false.into()));
    assert_eq!(file(dir.path())["sockets"][TWO]["orphans"], "all", "nobody has seen its rings");
}

/// A cache that this daemon has not seen was not flushed by it, and may have lost its power since somebody wrote there.
#[test]
fn a_cache_that_nobody_has_seen_is_neither_flushed_nor_covered() {
    let dir = tempfile::tempdir().unwrap();
    let state = folder(dir.path(), "b", SECOND);
    let mark = begin(&state, "d", SECOND);
    mark.mark.record(&[shown(1, 1, SECOND)]).unwrap();
    assert!(mark.mark.covers(&shown(1, 1, SECOND)));
    drop(mark);
    let mark = begin(&state, "d", SECOND);
    assert!(!mark.mark.covers(&shown(1, 1, SECOND)), "not before it has been looked at");
    mark.mark.flushed().unwrap();
    let dirty = || file(dir.path())["caches"].as_object().unwrap().values().next().unwrap()["dirty"].clone();
    assert_eq!(dirty(), true, "no path has led there");
    mark.mark.record(&[shown(1, 1, SECOND)]).unwrap();
    assert!(mark.mark.covers(&shown(1, 1, SECOND)));
    mark.mark.flushed().unwrap();
    assert_eq!(dirty(), false);
}
