//! Commands to a disk beneath, and what is said of them while it holds them.

use super::tests::{bare, capsule, conn, connect, env, finish, h2c, icreq, pair, pdus, shared, write};
use super::*;
use crate::mail::{Msg, ThreadHandle};
use crate::media::Medium;
use crate::media::beneath::testing::Rig;
use crate::out::drain;
use polypath_block::{Flags, Limits, Op};
use polypath_nvme::fabrics::CNTLID_DYNAMIC;
use polypath_nvme::properties::Register;
use polypath_nvme::sqe::{DsmRange, NSID_ALL};

/// A target whose only disk is beneath.
fn served(limits: Limits) -> (Nvme, Rig) {
    let rig = Rig::new(limits);
    let nvme = shared(|_| ());
    assert!(nvme.shared.threads.set(vec![ThreadHandle::new().unwrap()]).is_ok());
    let medium = Arc::new(Medium::Beneath(rig.disk.clone()));
    let over = |old: &Disk| Ok(Disk { medium, blocks: 4096, ..old.copy() });
    nvme.subsystems[1].store.replace(1, over).unwrap();
    (nvme, rig)
}

/// Does what the shell does, until nothing moves any more.
fn settle(nvme: &Nvme, rig: &mut Rig, conns: &mut [&mut Conn]) {
    let e = env(nvme, 0);
    loop {
        let mut moved = false;
        for c in conns.iter_mut() {
            let id = c.info.id;
            c.orders.drain(..).for_each(|order| {
                rig.order(id, order);
                moved = true;
            });
        }
        for msg in nvme.shared.threads.get().unwrap()[0].take() {
            moved = true;
            match msg {
                Msg::Quiesce { reply, .. } => {
                    for c in conns.iter_mut() {
                        c.quiesce();
                        if c.ending == Some(Ending::Now) {
                            rig.engine.abandon(c.info.id);
                        }
                    }
                    if !rig.engine.watch(|_| true, reply) {
                        nvme.shared.send(reply, Msg::Quiet { to: reply });
                    }
                }
                Msg::Quiet { to } => conns.iter_mut().filter(|c| c.info.id == to.conn).for_each(|c| c.quiet(&e)),
                _ => panic!("another message"),
            }
        }
        rig.pump();
        for reply in rig.quiet.drain(..) {
            nvme.shared.send(reply, Msg::Quiet { to: reply });
            moved = true;
        }
        for ended in rig.ended.drain(..) {
            moved = true;
            let owner = conns.iter_mut().find(|c| c.info.id == ended.conn);
            owner.unwrap().finished(&e, ended.tag, ended.result, ended.data);
        }
        if !moved {
            return;
        }
    }
}

/// Identifiers and statuses of commands that were answered.
fn answers(c: &mut Conn) -> Vec<(u16, StatusField)> {
    let responses = pdus(&drain(&mut c.out)).into_iter().filter(|(kind, ..)| *kind == kind::RESPONSE);
    responses.map(|(_, _, b)| (wire::u16_at(&b, 12), StatusField::from_raw(wire::u16_at(&b, 14) >> 1))).collect()
}

fn csts(nvme: &Nvme, rig: &mut Rig, admin: &mut Conn) -> u8 {
    admin.receive(&env(nvme, 0), &bare(Sqe::property_get(40, Register::Csts)));
    settle(nvme, rig, &mut [&mut *admin]);
    pdus(&drain(&mut admin.out))[0].2[0]
}

fn disconnect(cid: u16) -> Sqe {
    let mut octets = *Sqe::property_get(cid, Register::Csts).as_bytes();
    octets[4] = polypath_nvme::fabrics::fctype::DISCONNECT;
    Sqe::from_bytes(octets)
}

fn zeroes(cid: u16, deac: bool) -> Sqe {
    Sqe::write_zeroes(cid, 1, 3, 1, deac, false)
}

/// However often a host resets its controller while something is under way beneath, threads are asked once at a time, and the last reset is
/// over when that is quiet.
#[test]
fn resets_in_a_row_are_not_a_question_each() {
    let (nvme, mut rig) = served(Limits::UNLIMITED);
    let (mut admin, mut io) = pair(&nvme, 0);
    let e = env(&nvme, 0);
    rig.script.hold(&[Op::Write]);
    io.receive(&e, &capsule(write(1, 8, 1, true), &[5; 512]));
    settle(&nvme, &mut rig, &mut [&mut io]);
    let [off, on] = [0x0046_0000, 0x0046_0001].map(|cc| bare(Sqe::property_set(2, Register::Cc, cc)));
    for _ in 0..100 {
        admin.receive(&e, &[&off[..], &on].concat());
    }
    admin.receive(&e, &off);
    drain(&mut admin.out);
    let thread = &nvme.shared.threads.get().unwrap()[0];
    let asked = thread.take();
    assert!(asked.len() <= 2, "{} questions", asked.len());
    asked.into_iter().for_each(|msg| thread.send(msg));
    settle(&nvme, &mut rig, &mut [&mut admin, &mut io]);
    assert_eq!(csts(&nvme, &mut rig, &mut admin) & 1, 1, "a write is under way");
    rig.script.hold(&[]);
    settle(&nvme, &mut rig, &mut [&mut admin, &mut io]);
    assert_eq!((csts(&nvme, &mut rig, &mut admin), rig.script.byte(8)), (0, 5));
    finish(&nvme, [io, admin]);
    rig.finish();
}

#[test]
fn commands_are_carried_out_beneath() {
    let (nvme, mut rig) = served(Limits { write_cache: true, max_transfer_bytes: 2048, ..Limits::UNLIMITED });
    let (mut admin, mut io) = pair(&nvme, 0);
    let e = env(&nvme, 0);
    let read = |cid| capsule(Sqe::read(cid, 1, 8, 4, false).with_sgl(SglDescriptor::Transport { length: 2560 }), &[]);
    let compare = |cid, byte| {
        let sgl = SglDescriptor::InCapsule { offset: 0, length: 512 };
        capsule(Sqe::compare(cid, 1, 8, 0, false).with_sgl(sgl), &[byte; 512])
    };
    let ranges: Vec<u8> = [(20, 5), (30, 0), (40, 1)]
        .into_iter()
        .flat_map(|(slba, blocks)| DsmRange { attributes: 0, blocks, slba }.to_bytes())
        .collect();
    let dsm = Sqe::deallocate(9, 1, 2);
    let dsm = dsm.with_sgl(SglDescriptor::InCapsule { offset: 0, length: ranges.len() as u32 });
    let fua = Sqe::write(2, 1, 8, 0, true).with_sgl(SglDescriptor::InCapsule { offset: 0, length: 512 });
    let plain = Flags::empty();
    for (what, request, status, seen) in [
        (
            "write",
            capsule(write(1, 8, 5, true), &[7; 2560]),
            0,
            vec![(Op::Write, 8, 4, plain), (Op::Write, 12, 1, plain)],
        ),
        ("FUA", capsule(fua, &[6; 512]), 0, vec![(Op::Write, 8, 1, Flags::FUA)]),
        ("same", compare(3, 6), 0, vec![(Op::Compare, 8, 1, plain)]),
        ("other", compare(4, 9), StatusField::COMPARE_FAILURE.code(), vec![(Op::Compare, 8, 1, plain)]),
        ("zeroes", bare(zeroes(5, false)), 0, vec![(Op::WriteZeroes, 3, 2, plain)]),
        ("deallocate", bare(zeroes(6, true)), 0, vec![(Op::WriteZeroes, 3, 2, Flags::UNMAP)]),
        ("flush", bare(Sqe::flush(7, 1)), 0, vec![(Op::Flush, 0, 0, plain)]),
        ("flush all", bare(Sqe::flush(8, NSID_ALL)), 0, vec![(Op::Flush, 0, 0, plain)]),
        ("discard", capsule(dsm, &ranges), 0, vec![(Op::Discard, 20, 5, plain), (Op::Discard, 40, 1, plain)]),
        ("beyond", capsule(write(1, 4095, 2, true), &[7; 1024]), StatusField::LBA_OUT_OF_RANGE.code(), vec![]),
    ] {
        assert_eq!(io.receive(&e, &request), request.len());
        settle(&nvme, &mut rig, &mut [&mut io]);
        let got = answers(&mut io);
        assert_eq!(got.iter().map(|(_, status)| status.code()).collect::<Vec<_>>(), [status], "{what}");
        assert_eq!(rig.script.seen(), seen, "{what}");
    }
    io.receive(&e, &read(20));
    settle(&nvme, &mut rig, &mut [&mut io]);
    let out = drain(&mut io.out);
    assert!(out.windows(2560).any(|w| w[..512] == [6; 512] && w[512..] == [7; 2048]), "what was written comes back");
    assert!(super::data::has_write_cache(&nvme, admin.controller.as_ref().unwrap()));
    rig.script.change(|info| info.limits.write_cache = false);
    rig.pump();
    assert!(!super::data::has_write_cache(&nvme, admin.controller.as_ref().unwrap()));
    // Reads beneath are bounded, and what came is taken when there is room again.
    rig.script.hold(&[Op::Read]);
    let most = 131_072;
    let all: Vec<u8> = (0..7u16)
        .flat_map(|n| {
            capsule(Sqe::read(50 + n, 1, 0, 255, false).with_sgl(SglDescriptor::Transport { length: most }), &[])
        })
        .collect();
    io.reading = STAGE_LIMIT - 2 * most as usize;
    let taken = io.receive(&e, &all);
    assert_eq!(taken, 2 * 72, "more than that has to wait");
    rig.script.hold(&[]);
    settle(&nvme, &mut rig, &mut [&mut io]);
    drain(&mut io.out);
    io.reading = 0;
    assert_eq!(io.receive(&e, &all[taken..]), 5 * 72);
    settle(&nvme, &mut rig, &mut [&mut io]);
    assert_eq!(io.reading, 0);
    drain(&mut io.out);
    // A transfer, in two lots; its memory is its own until it is over.
    rig.script.hold(&[Op::Write]);
    io.receive(&e, &capsule(write(21, 100, 64, false), &[]));
    let ttag = wire::u16_at(&pdus(&drain(&mut io.out))[0].2, 2);
    for (offset, last) in [(0, false), (16_384, true)] {
        io.receive(&e, &h2c(21, ttag, offset, &[offset as u8 + 1; 16_384], last));
    }
    settle(&nvme, &mut rig, &mut [&mut io]);
    assert!(answers(&mut io).is_empty() && io.staged == 32_768);
    rig.script.hold(&[]);
    settle(&nvme, &mut rig, &mut [&mut io]);
    assert_eq!(answers(&mut io), [(21, StatusField::SUCCESS)]);
    assert_eq!((io.staged, rig.script.byte(131), rig.script.byte(163)), (0, 1, 1));
    drain(&mut admin.out);
    finish(&nvme, [admin, io]);
    rig.finish();
}

#[test]
fn nothing_is_called_quiet_that_is_not() {
    let (nvme, mut rig) = served(Limits::UNLIMITED);
    let (mut admin, mut io) = pair(&nvme, 0);
    let e = env(&nvme, 0);
    rig.script.hold(&[Op::Write]);
    io.receive(&e, &capsule(write(5, 8, 1, true), &[1; 512]));
    settle(&nvme, &mut rig, &mut [&mut admin, &mut io]);
    // Abort: it was not aborted, and is answered by and by.
    assert!(!io.abort(&e, 5) && answers(&mut io).is_empty());
    // The controller is reset: it goes on being ready.
    assert_eq!(csts(&nvme, &mut rig, &mut admin), 1);
    admin.receive(&e, &bare(Sqe::property_set(9, Register::Cc, 0x0046_0000)));
    settle(&nvme, &mut rig, &mut [&mut admin, &mut io]);
    drain(&mut admin.out);
    assert_eq!(io.ending, Some(Ending::Now));
    finish(&nvme, [io]);
    assert_eq!(csts(&nvme, &mut rig, &mut admin), 1, "a write is under way");
    rig.script.hold(&[]);
    assert_eq!(csts(&nvme, &mut rig, &mut admin), 1, "not looked yet");
    assert_eq!(csts(&nvme, &mut rig, &mut admin), 0);
    assert_eq!(rig.script.byte(8), 1);
    // The same with a shutdown.
    finish(&nvme, [admin]);
    let (mut admin, mut io) = pair(&nvme, 0);
    rig.script.hold(&[Op::Write]);
    io.receive(&e, &capsule(write(5, 8, 1, true), &[2; 512]));
    settle(&nvme, &mut rig, &mut [&mut admin, &mut io]);
    admin.receive(&e, &bare(Sqe::property_set(9, Register::Cc, 0x0046_4001)));
    settle(&nvme, &mut rig, &mut [&mut admin, &mut io]);
    drain(&mut admin.out);
    finish(&nvme, [io]);
    assert_eq!(csts(&nvme, &mut rig, &mut admin), 0x5, "shutdown processing occurs");
    rig.script.hold(&[]);
    settle(&nvme, &mut rig, &mut [&mut admin]);
    assert_eq!(csts(&nvme, &mut rig, &mut admin), 0x9, "complete");
    // Disconnect of a queue.
    finish(&nvme, [admin]);
    let (admin, mut io) = pair(&nvme, 0);
    rig.script.hold(&[Op::Write]);
    io.receive(&e, &capsule(write(5, 8, 1, true), &[3; 512]));
    io.receive(&e, &bare(disconnect(6)));
    settle(&nvme, &mut rig, &mut [&mut io]);
    assert!(answers(&mut io).is_empty() && io.ending.is_none());
    rig.script.hold(&[]);
    settle(&nvme, &mut rig, &mut [&mut io]);
    assert_eq!(answers(&mut io), [(5, StatusField::SUCCESS), (6, StatusField::SUCCESS)]);
    assert_eq!(io.ending, Some(Ending::AfterFlush));
    finish(&nvme, [admin, io]);
    rig.finish();
}

#[test]
fn a_lost_association_leaves_ghosts_that_new_writes_wait_for() {
    let (nvme, mut rig) = served(Limits::UNLIMITED);
    let (admin, mut io) = pair(&nvme, 0);
    let e = env(&nvme, 0);
    rig.script.hold(&[Op::Write]);
    io.receive(&e, &capsule(write(5, 8, 1, true), &[1; 512]));
    io.receive(&e, &capsule(Sqe::read(6, 1, 0, 0, false).with_sgl(SglDescriptor::Transport { length: 512 }), &[]));
    settle(&nvme, &mut rig, &mut [&mut io]);
    let id = io.info.id;
    // The keep alive expires, and the connections go with it.
    nvme.kill(admin.controller.as_ref().unwrap(), "for a test");
    finish(&nvme, [admin, io]);
    rig.engine.abandon(id);
    let mut admin = conn(11);
    let mut again = conn(12);
    let enable = bare(Sqe::property_set(2, Register::Cc, 0x0046_0001));
    admin.receive(&e, &[icreq(0), connect(0, CNTLID_DYNAMIC, 0), enable].concat());
    let cntlid = admin.controller.as_ref().unwrap().id;
    again.receive(&e, &[icreq(0), connect(1, cntlid, 0)].concat());
    drain(&mut again.out);
    rig.script.seen();
    again.receive(&e, &capsule(write(7, 8, 1, true), &[2; 512]));
    settle(&nvme, &mut rig, &mut [&mut again]);
    assert_eq!(rig.script.seen(), [], "not while the old one is under way");
    rig.script.hold(&[]);
    settle(&nvme, &mut rig, &mut [&mut again]);
    assert_eq!(answers(&mut again), [(7, StatusField::SUCCESS)]);
    assert_eq!(rig.script.byte(8), 2, "the later one is later");
    finish(&nvme, [admin, again]);
    rig.finish();
}
