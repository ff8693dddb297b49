# Sourced by lab/init: Linux's own iSCSI initiator as Debian has it, iscsid and iscsiadm over the kernel's iscsi_tcp, and dm-multipath with
# its ALUA handler. Targets listen on 127.0.0.1 of the host, which is reached under that very address: it is what they list.
# shellcheck disable=SC2034
DISK=/dev/sda
# shellcheck source=lab/vhost-blk.sh
. /vhost-blk.sh

# until_true SECONDS COMMAND...
until_true() {
  deadline=$(($(cut -d. -f1 /proc/uptime) + $1))
  shift
  until "$@"; do
    [ "$(cut -d. -f1 /proc/uptime)" -lt "$deadline" ] || { echo "not in time: $*"; dmesg | tail -n 20; return 1; }
    usleep 100000
  done
}
# disks_are COUNT: SCSI disks that are there
disks_are() { [ "$(ls -d /sys/block/sd* 2> /dev/null | wc -l)" = "$1" ]; }
# demands USER SECRET THEIR-USER THEIR-SECRET: CHAP both ways, for discovery too, and both digests; for what is discovered afterwards
demands() {
  for session in node.session discovery.sendtargets; do
    printf '%s\n' "$session.auth.authmethod = CHAP" "$session.auth.username = $1" "$session.auth.password = $2" \
      "$session.auth.username_in = $3" "$session.auth.password_in = $4"
  done >> /etc/iscsi/iscsid.conf
  printf '%s\n' "node.conn[0].iscsi.HeaderDigest = CRC32C" "node.conn[0].iscsi.DataDigest = CRC32C" >> /etc/iscsi/iscsid.conf
}
# discover PORT: what the portal there lists
discover() { /sbin/iscsiadm -m discovery -t sendtargets -p "127.0.0.1:$1"; }
# setting PORT NAME VALUE: changes what is known of a portal
setting() { /sbin/iscsiadm -m node -p "127.0.0.1:$1" -o update -n "$2" -v "$3"; }
# login PORT DISKS: a session through that portal, which is there when so many disks are
login() { /sbin/iscsiadm -m node -p "127.0.0.1:$1" --login && until_true 30 disks_are "$2"; }
# logout: all sessions end in order
logout() { /sbin/iscsiadm -m node --logoutall=all && until_true 30 disks_are 0; }
# digests: what is agreed upon in each session
digests() { /sbin/iscsiadm -m session -P 2 | grep Digest; }
# shows DISK STATE: until Linux has seen that a path gives this access
shows() { until_true 20 is "$2" "/sys/block/$1/device/access_state" || { grep . /sys/block/sd*/device/access_state; return 1; }; }
is() { [ "$(cat "$2")" = "$1" ]; }
# multipath: sda before sdb; what no path takes waits
multipath() {
  DISK=/dev/dm-0 paths=
  # one group for each path
  for path in sda sdb; do paths="$paths service-time 0 1 1 $(cat "/sys/block/$path/dev") 1"; done
  echo "0 $(cat /sys/block/sda/size) multipath 1 queue_if_no_path 1 alua 2 1$paths" > /tmp/table
  /sbin/dmsetup --noudevsync --noudevrules create mp /tmp/table || { cat /tmp/table; dmesg | tail; return 1; }
  until_true 10 test -b "$DISK"
}
# reinstate DISK GROUP: a path that was given up is tried again, which is what multipathd does, and its group is the one to use
reinstate() { /sbin/dmsetup message mp 0 "reinstate_path $(cat "/sys/block/$1/dev")" && /sbin/dmsetup message mp 0 "switch_group $2"; }
# forget: the multipath disk goes
forget() { /sbin/dmsetup --noudevsync --noudevrules remove mp; }

mkdir -p /etc/iscsi /run/lock/iscsi /var/lock/iscsi /var/lib/iscsi
echo root:x:0:0:root:/root:/bin/sh > /etc/passwd
echo InitiatorName=iqn.2026-01.org.polypath.lab:linux > /etc/iscsi/initiatorname.iscsi
printf '%s\n' "node.startup = manual" "node.session.timeo.replacement_timeout = 60" "node.conn[0].timeo.noop_out_interval = 2" \
  "node.conn[0].timeo.noop_out_timeout = 2" "node.conn[0].timeo.login_timeout = 15" "node.session.scan = auto" > /etc/iscsi/iscsid.conf
# the host's loopback instead of this guest's own
echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet
ip addr del 127.0.0.1/8 dev lo
ip route add 127.0.0.1/32 via 10.0.2.2 || return 1
/sbin/iscsid 3>&- || return 1
