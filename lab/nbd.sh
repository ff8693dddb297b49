# Sourced by lab/init: a guest that lives on one NBD disk, which the kernel's own client reaches.
DISK=/dev/nbd0
# shellcheck source=lab/vhost-blk.sh
. /vhost-blk.sh
# nbd_connect PORT NAME BLOCK CONNECTIONS: an export of the host becomes the disk
nbd_connect() {
  /sbin/nbd-client 10.0.2.2 "$1" "$DISK" -N "$2" -b "$3" -C "$4" -p || return 1
  blockdev --getsize64 "$DISK"
}
# nbd_disconnect: in order, with NBD_CMD_DISC
nbd_disconnect() { /sbin/nbd-client -d "$DISK"; }
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
