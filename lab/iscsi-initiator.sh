# Sourced by lab/init: Linux's own iSCSI initiator under dm-multipath, to be measured beside another one in the same guest.
# shellcheck disable=SC2034,SC3043
DISK=/dev/dm-0

# address CARD ADDRESS: the only one of that card
address() { ip addr flush dev "$1" && ip addr add "$2/30" dev "$1" && ip link set "$1" up; }
# disks COUNT SECONDS: until that many SCSI disks are there
disks() {
  deadline=$(($(cut -d. -f1 /proc/uptime) + $2))
  until [ "$(ls -d /sys/block/sd* 2> /dev/null | wc -l)" = "$1" ]; do
    [ "$(cut -d. -f1 /proc/uptime)" -lt "$deadline" ] || { echo "no $1 disks within $2 s"; dmesg | tail -n 20; return 1; }
    usleep 100000
  done
}
# attach IQN ADDRESS...: a session through each portal, and one multipath disk that sends to the path with the shortest queue
attach() {
  target=$1
  shift
  mkdir -p /etc/iscsi /run/lock /var/lock/iscsi /var/lib/iscsi /run/lock/iscsi
  count=0
  for portal in "$@"; do
    # no path may be kept from the whole queue
    /sbin/iscsistart -i iqn.2026-01.org.polypath.lab:kernel -t "$target" -g 1 -a "$portal" -p 3260 \
      -P node.session.queue_depth=128 -P node.session.cmds_max=256 > /tmp/iscsistart.log 2>&1 || { cat /tmp/iscsistart.log; return 1; }
    count=$((count + 1))
    disks "$count" 30 || return 1
  done
  paths=
  for disk in /sys/block/sd*; do paths="$paths $(cat "$disk/dev") 1"; done
  echo "0 $(cat /sys/block/sda/size) multipath 0 0 1 1 queue-length 0 $count 1$paths" > /tmp/table
  /sbin/dmsetup --noudevsync --noudevrules create kernel /tmp/table || return 1
  for queue in /sys/block/dm-0/queue /sys/block/sd*/queue; do echo none > "$queue/scheduler"; echo 0 > "$queue/add_random"; done
  /sbin/dmsetup status kernel
}
# received: bytes that have come in through the cards to the paths
received() {
  sum=0
  for card in /sys/class/net/eth* /sys/class/net/vec*; do
    [ -e "$card" ] && read -r bytes < "$card/statistics/rx_bytes" && sum=$((sum + bytes))
  done
  echo "$sum"
}
# reads SECONDS RAMP DEPTH: random reads of the kernel's disk; all that are free go out at once and all that are done are taken at once
reads() {
  /sbin/fio --name=kernel --filename="$DISK" --ioengine=io_uring --direct=1 --rw=randread --bs=4k --iodepth="$3" --thread \
    --registerfiles --fixedbufs --iodepth_batch_submit="$3" --iodepth_batch_complete_max="$3" \
    --norandommap --randrepeat=0 --time_based --runtime="$1" --ramp_time="$2" --clat_percentiles=0 --lat_percentiles=1 \
    --percentile_list=50:99:99.9 --output-format=json
}
# complained: the end of what the last command had to say
complained() { tail -q -n 8 /tmp/report /tmp/complaints; }
# measured RAMP WINDOW COMMAND...: runs the command, which keeps a disk busy for longer than that, and prints the processor's times at
# both ends of the window, and then what the command has to say
measured() {
  ramp=$1 window=$2
  shift 2
  from=$(received)
  "$@" > /tmp/report 2> /tmp/complaints &
  load=$!
  # a program that is still being loaded is not what is measured
  until [ $(($(received) - from)) -gt 500000 ]; do
    kill -0 "$load" 2> /dev/null || { complained; return 1; }
    usleep 100000
  done
  sleep "$ramp"
  read -r before < /proc/stat
  sleep "$window"
  read -r after < /proc/stat
  kill -0 "$load" 2> /dev/null || { echo "it ended before it was measured"; complained; return 1; }
  wait "$load" || { complained; return 1; }
  echo "$before"
  echo "$after"
  cat /tmp/report
}
