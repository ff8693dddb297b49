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
