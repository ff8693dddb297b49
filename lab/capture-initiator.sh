# Sourced by lab/init: Linux's own NVMe/TCP initiator doing a small, always equal piece of work that `cargo xtask capture` records.
# shellcheck disable=SC2034,SC3043
HOST_UUID=33333333-2222-3333-4444-555555555555
HOST_NQN=nqn.2014-08.org.nvmexpress:uuid:$HOST_UUID
DISK=/dev/nvme0n1

# find_out PORT: nvme-cli reads the discovery log page through a discovery controller and lets go of it
find_out() { /sbin/nvme discover -t tcp -a 10.0.2.2 -s "$1" -q "$HOST_NQN" -I "$HOST_UUID"; }
# join PORT NQN OPTIONS: one controller with one I/O queue; OPTIONS begin with a comma
join() {
  echo "transport=tcp,traddr=10.0.2.2,trsvcid=$1,nqn=$2,hostnqn=$HOST_NQN,hostid=$HOST_UUID,nr_io_queues=1,queue_size=32,keep_alive_tmo=5,ctrl_loss_tmo=0$3" > /dev/nvme-fabrics
}
# leave: an orderly shutdown of the controller
leave() {
  for c in /sys/class/nvme/nvme*; do echo 1 > "$c/delete_controller" || return 1; done
}
# until_true SECONDS COMMAND...
until_true() {
  deadline=$(($(cut -d. -f1 /proc/uptime) + $1))
  shift
  until "$@"; do
    [ "$(cut -d. -f1 /proc/uptime)" -lt "$deadline" ] || { echo "not in time: $*"; return 1; }
    usleep 100000
  done
}
disk_is_there() { [ -b "$DISK" ]; }
# ana_is STATE: what the kernel thinks of the path to namespace 1
ana_is() { [ "$(cat /sys/class/nvme/nvme0/nvme0c*n1/ana_state 2> /dev/null)" = "$1" ]; }
# pattern BYTES FIRST: numbers counted up from FIRST, one per line, cut to BYTES
pattern() { seq "$2" 100000 | head -c "$1"; }
# put BYTES OFFSET FIRST [FLAG]
put() {
  pattern "$1" "$3" > /tmp/out
  /sbin/dd if=/tmp/out of="$DISK" bs="$1" count=1 seek="$2" oflag="direct,seek_bytes$4" conv=notrunc 2> /tmp/dd.log || { cat /tmp/dd.log; return 1; }
}
# check BYTES OFFSET FIRST
check() {
  /sbin/dd if="$DISK" of=/tmp/in bs="$1" count=1 skip="$2" iflag=direct,skip_bytes 2> /tmp/dd.log || { cat /tmp/dd.log; return 1; }
  pattern "$1" "$3" > /tmp/want
  cmp /tmp/want /tmp/in || { echo "read something else at $2"; return 1; }
}
# work: every I/O command that the block layer sends
work() {
  put 2048 0 1 || return 1                 # fits the capsule
  put 4608 8192 20000 || return 1          # does not: R2T, H2CData
  put 512 65536 500 ,dsync || return 1     # Force Unit Access
  /sbin/dd if=/dev/null of="$DISK" count=0 conv=notrunc,fsync 2> /dev/null || return 1   # Flush
  check 2048 0 1 || return 1
  check 4608 8192 20000 || return 1
  /sbin/blkdiscard -f -z -o 73728 -l 8192 "$DISK" || return 1     # Write Zeroes
  /sbin/blkdiscard -f -o 131072 -l 12288 "$DISK" || return 1      # Dataset Management
  # three at once, so that answers may come in another order
  for o in 0 512 1024; do /sbin/dd if="$DISK" of=/dev/null bs=512 count=1 skip=$o iflag=direct,skip_bytes 2> /dev/null & done
  wait
}
# questions: admin commands that the kernel does not send by itself; some of them are refused, which is an answer too
questions() {
  /sbin/nvme smart-log /dev/nvme0 > /tmp/smart || return 1
  /sbin/nvme get-log --log-id=1 --log-len=64 /dev/nvme0 > /tmp/errors || return 1
  /sbin/nvme get-feature -f 7 /dev/nvme0 || return 1
  /sbin/nvme io-passthru -o 0x55 -n 1 "$DISK"
  return 0
}
[ -e /dev/nvme-fabrics ]
