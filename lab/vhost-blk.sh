# Sourced by lab/init: a guest that lives on one disk, which is a virtio-blk one unless DISK says otherwise.
DISK=${DISK:-/dev/vda}
# fs_make: a fresh file system, mounted on /mnt
fs_make() { /sbin/mke2fs -F -q -t ext4 "$DISK" && mount -t ext4 "$DISK" /mnt; }
# fs_write NAME MIB: a random file, its checksum kept beside the disk
fs_write() { dd if=/dev/urandom of="/tmp/$1" bs=1M count="$2" 2> /dev/null && md5sum < "/tmp/$1" > "/tmp/$1.md5" && cp "/tmp/$1" "/mnt/$1" && rm "/tmp/$1" && sync; }
# fs_check NAME: the file on the disk still has that checksum
fs_check() { have=$(md5sum < "/mnt/$1") && [ "$have" = "$(cat "/tmp/$1.md5")" ] || { echo "$1: wrote $(cat "/tmp/$1.md5"), read $have"; return 1; }; }
# fs_remount: nothing may be answered from the page cache afterwards
fs_remount() { sync && umount /mnt && echo 3 > /proc/sys/vm/drop_caches && mount -t ext4 "$DISK" /mnt; }
# fs_fsck: unmounts and checks, changing nothing
fs_fsck() { umount /mnt && /sbin/e2fsck -fn "$DISK"; }
# fs_rounds FIRST LAST MIB: write, remount, check, over and over; says ROUND N as each begins
fs_rounds() {
  round=$1
  while [ "$round" -le "$2" ]; do
    echo "ROUND $round"
    fs_write "f$((round % 3))" "$3" && fs_remount && fs_check "f$((round % 3))" || { echo "round $round failed"; return 1; }
    round=$((round + 1))
  done
  echo "ROUNDS-OK $1..$2"
}
# raw_rounds FIRST LAST MIB: direct writes and reads of fresh random data; says ROUND N as each begins
raw_rounds() {
  round=$1
  while [ "$round" -le "$2" ]; do
    echo "ROUND $round"
    dd if=/dev/urandom of=/tmp/pattern bs=1M count="$3" 2> /dev/null && want=$(md5sum < /tmp/pattern) || return 1
    dd if=/tmp/pattern of="$DISK" bs=256k oflag=direct seek=$(((round % 4) * $3 * 4)) conv=notrunc,fsync 2> /tmp/dd.log || { cat /tmp/dd.log; return 1; }
    dd if="$DISK" of=/tmp/back bs=256k iflag=direct skip=$(((round % 4) * $3 * 4)) count=$(($3 * 4)) 2> /tmp/dd.log || { cat /tmp/dd.log; return 1; }
    have=$(md5sum < /tmp/back)
    [ "$want" = "$have" ] || { echo "round $round: wrote $want, read $have"; return 1; }
    round=$((round + 1))
  done
  echo "ROUNDS-OK $1..$2"
}
# io_errors: what the kernel said about the disk; empty when all went well
io_errors() { dmesg | grep -iE 'I/O error|EXT4-fs error|Buffer I/O|JBD2.*error' ; true; }
[ -b "$DISK" ]
