# Sourced by lab/init: Linux's own NVMe/TCP initiator with native multipath.
HOST_UUID=22222222-2222-3333-4444-555555555555

# connect ADDRESS PORT NQN: one path
connect() {
  echo "transport=tcp,traddr=$1,trsvcid=$2,nqn=$3,hostnqn=nqn.2014-08.org.nvmexpress:uuid:$HOST_UUID,hostid=$HOST_UUID,ctrl_loss_tmo=120,reconnect_delay=1,keep_alive_tmo=5" > /dev/nvme-fabrics
}
# paths: one line per path: controller, its state, its address, then NAME=ANA-STATE for each namespace
paths() {
  for c in /sys/class/nvme/nvme*; do
    [ -e "$c/state" ] || continue
    line="$(basename "$c") $(cat "$c/state") $(cat "$c/address")"
    for n in "$c"/nvme*n*; do [ -e "$n/ana_state" ] && line="$line $(basename "$n")=$(cat "$n/ana_state")"; done
    echo "$line"
  done
}
# wait_for SECONDS PATTERN COUNT: until `paths` shows PATTERN on COUNT lines
wait_for() {
  deadline=$(($(cut -d. -f1 /proc/uptime) + $1))
  until [ "$(paths | grep -c -- "$2")" = "$3" ]; do
    [ "$(cut -d. -f1 /proc/uptime)" -lt "$deadline" ] || { paths; echo "no $3 path(s) matching '$2' within $1 s"; return 1; }
    usleep 100000
  done
}
# wait_disk SECONDS: until the multipath device is there
wait_disk() {
  deadline=$(($(cut -d. -f1 /proc/uptime) + $1))
  until [ -b /dev/nvme0n1 ]; do
    [ "$(cut -d. -f1 /proc/uptime)" -lt "$deadline" ] || { paths; echo "/dev/nvme0n1 did not appear"; return 1; }
    usleep 100000
  done
}
# verified ROUND MIB: a fresh random pattern is written through the multipath device, read back past every cache and compared
verified() {
  dd if=/dev/urandom of=/tmp/pattern bs=1M count="$2" 2> /dev/null || return 1
  want=$(md5sum < /tmp/pattern)
  dd if=/tmp/pattern of=/dev/nvme0n1 bs=64k oflag=direct seek=$((($1 % 4) * $2 * 16)) conv=notrunc 2> /tmp/dd.log || { cat /tmp/dd.log; echo "write failed in round $1"; return 1; }
  # the read goes to a file first: a pipe would hide dd's status
  dd if=/dev/nvme0n1 of=/tmp/back bs=64k iflag=direct skip=$((($1 % 4) * $2 * 16)) count=$(($2 * 16)) 2> /tmp/dd.log || { cat /tmp/dd.log; echo "read failed in round $1"; return 1; }
  have=$(md5sum < /tmp/back)
  [ "$want" = "$have" ] || { echo "round $1: wrote $want, read $have"; return 1; }
}
# verified_rounds FIRST LAST MIB: says ROUND N as each begins
verified_rounds() {
  round=$1
  while [ "$round" -le "$2" ]; do echo "ROUND $round"; verified "$round" "$3" || return 1; round=$((round + 1)); done
  echo "ROUNDS-OK $1..$2"
}
[ -e /dev/nvme-fabrics ]
