//! The system calls that `rustix` does not wrap.

use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{self, AtFlags, FallocateFlags, OFlags, StatxFlags};
use std::io;

/// Size of a block device in bytes.
pub(super) fn device_bytes(fd: &OwnedFd) -> io::Result<u64> {
    /// `_IOR(0x12, 114, size_t)`, linux/fs.h.
    const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
    let mut bytes = 0u64;
    // SAFETY: the call writes eight bytes to `bytes`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64 as _, &mut bytes) })?;
    Ok(bytes)
}

/// Logical block size of a block device in bytes.
pub(super) fn logical_block(fd: &OwnedFd) -> io::Result<u32> {
    /// `_IO(0x12, 104)`, linux/fs.h.
    const BLKSSZGET: libc::c_ulong = 0x1268;
    let mut bytes: libc::c_int = 0;
    // SAFETY: the call writes one int to `bytes`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKSSZGET as _, &mut bytes) })?;
    u32::try_from(bytes).map_err(|_| io::Error::other("negative block size"))
}

/// Discards a range of a block device; blocks until it is done.
pub(super) fn device_discard(fd: i32, offset: u64, len: u64) -> io::Result<()> {
    /// `_IO(0x12, 119)`, linux/fs.h.
    const BLKDISCARD: libc::c_ulong = 0x1277;
    let range = [offset, len];
    // SAFETY: the call reads two u64 from `range`.
    check(unsafe { libc::ioctl(fd, BLKDISCARD as _, range.as_ptr()) })
}

/// Does the block device discard?
pub(super) fn device_discards(fd: &OwnedFd) -> bool {
    let Ok(stat) = fs::fstat(fd) else { return false };
    let (major, minor) = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
    let queue = |at: &str| std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{at}/discard_max_bytes"));
    // A partition has no queue of its own.
    let most = queue("queue").or_else(|_| queue("../queue"));
    most.is_ok_and(|text| text.trim().parse::<u64>().is_ok_and(|n| n > 0))
}

/// Does the file system punch holes? Asked beyond the end of the file, where nothing is.
pub(super) fn makes_holes(fd: &OwnedFd, bytes: u64) -> bool {
    let at = bytes.next_multiple_of(1 << 20);
    fs::fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, 4096).is_ok()
}

/// What `O_DIRECT` wants addresses and offsets to be multiples of, in bytes.
pub(super) fn direct_alignment(fd: &OwnedFd, path: &str) -> io::Result<(usize, usize)> {
    /// `STATX_DIOALIGN`, linux/stat.h, since 6.1.
    const DIOALIGN: u32 = 0x2000;
    // By descriptor; some kernels answer for block devices only by path.
    for by_path in [false, true] {
        let flags = StatxFlags::from_bits_retain(DIOALIGN);
        let answer = if by_path {
            fs::statx(fs::CWD, path, AtFlags::empty(), flags)
        } else {
            fs::statx(fd, "", AtFlags::EMPTY_PATH, flags)
        };
        if let Ok(x) = answer
            && x.stx_mask & DIOALIGN != 0
        {
            if x.stx_dio_offset_align == 0 {
                return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
            }
            return Ok((x.stx_dio_mem_align.max(1) as usize, x.stx_dio_offset_align as usize));
        }
    }
    // An older kernel, or a file system that does not say: the logical block size is what works everywhere.
    let align = logical_block(fd).unwrap_or(4096).max(512) as usize;
    Ok((align, align))
}

/// What is done to an image, as QEMU counts it (`BLK_PERM_*` and `block/file-posix.c`): whoever does it holds a shared lock on byte 100 + n
/// of the file, and whoever bears nobody else doing it one on byte 200 + n. Locks belong to the open file, not to the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Doing {
    Read = 0,
    Write = 1,
    Resize = 3,
}

/// Locks the image as QEMU does with its default of one writer: we read it, or read and write it, and nobody else writes or resizes it.
/// `Ok(false)`: somebody else holds what speaks against that. Ends with the open file.
pub(super) fn lock_image(fd: &OwnedFd, read_only: bool) -> io::Result<bool> {
    let doing = if read_only { &[Doing::Read][..] } else { &[Doing::Read, Doing::Write] };
    let alone = [Doing::Write, Doing::Resize];
    let ours = doing.iter().map(|d| 100 + *d as i64).chain(alone.iter().map(|d| 200 + *d as i64));
    for byte in ours {
        // Shared locks never conflict with each other: one that is refused is somebody's exclusive one.
        match ofd_lock(fd, libc::F_OFD_SETLK, libc::F_RDLCK, byte) {
            Ok(_) => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    // Taken first, asked then: of two that begin at once at least one sees the other.
    let against = doing.iter().map(|d| 200 + *d as i64).chain(alone.iter().map(|d| 100 + *d as i64));
    for byte in against {
        if ofd_lock(fd, libc::F_OFD_GETLK, libc::F_WRLCK, byte)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes the locks of [`lock_image`] back, those of a failed attempt too. Closing the file does the same, but the kernel keeps a file that
/// an io_uring has used open for a while after that has ended.
pub(super) fn unlock_image(fd: &OwnedFd) {
    for base in [100, 200] {
        for doing in [Doing::Read, Doing::Write, Doing::Resize] {
            // There is nothing to be done about a failure, and no file system takes locks that it does not take back.
            let _ = ofd_lock(fd, libc::F_OFD_SETLK, libc::F_UNLCK, base + doing as i64);
        }
    }
}

/// One byte of a file, by open file description. True: after `F_OFD_GETLK`, somebody else has a lock there.
fn ofd_lock(fd: &OwnedFd, command: libc::c_int, kind: libc::c_int, byte: i64) -> io::Result<bool> {
    // SAFETY: all of it is numbers, of which zero is one.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    (lock.l_type, lock.l_whence) = (kind as _, libc::SEEK_SET as _);
    (lock.l_start, lock.l_len) = (byte, 1);
    // SAFETY: the call reads `lock` and, when asking, writes to it.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), command, &mut lock) })?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// Sets `O_DIRECT` on an open file; the file system may refuse.
pub(super) fn set_direct(fd: &OwnedFd) -> io::Result<()> {
    let flags = fs::fcntl_getfl(fd)?;
    fs::fcntl_setfl(fd, flags | OFlags::DIRECT)?;
    // Some file systems take the flag and refuse the read: try one.
    let mut probe = super::bounce::Bounce::new(4096);
    match probe.try_read(fd.as_fd(), 4096) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) || error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            fs::fcntl_setfl(fd, flags)?;
            Err(error)
        }
        _ => Ok(()),
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
