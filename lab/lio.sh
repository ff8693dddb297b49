# Sourced by lab/init: LIO, the iSCSI target of Linux's kernel. One target, two portal groups (a network card each, portal 3260), one ram
# disk as LUN 0, which each portal group shows through an ALUA target port group of its own. The functions below are what a test calls
# while I/O runs.
LIO=/sys/kernel/config/target
UNIT=$LIO/core/iblock_0/disk
TARGET=$LIO/iscsi/iqn.2026-01.org.polypath.lab:lio
# shellcheck source=lab/cards.sh
. /cards.sh

# alua GROUP STATE: the target changes the access of a group by itself. 0 is active/optimized, 1 active/non-optimized, 2 standby,
# 3 unavailable, 15 transitioning (SPC-4, table 307)
alua() { echo "$2" > "$UNIT/alua/group_$1/alua_access_state"; }
# alua_is GROUP: the state of a group
alua_is() { cat "$UNIT/alua/group_$1/alua_access_state"; }
# alua_by TYPE: who changes access: 1 the target, 2 whoever asks with SET TARGET PORT GROUPS, 3 both
alua_by() { for g in 1 2; do echo "$1" > "$UNIT/alua/group_$g/alua_access_type" || return 1; done; }
# chap GROUP USER SECRET [THEIR-USER THEIR-SECRET]: who may come in, and who the target proves to be
chap() {
  echo CHAP > "$TARGET/tpgt_$1/param/AuthMethod" || return 1
  echo 1 > "$TARGET/tpgt_$1/attrib/authentication" || return 1
  printf %s "$2" > "$TARGET/tpgt_$1/auth/userid"
  printf %s "$3" > "$TARGET/tpgt_$1/auth/password"
  [ -n "$4" ] || return 0
  printf %s "$4" > "$TARGET/tpgt_$1/auth/userid_mutual"
  printf %s "$5" > "$TARGET/tpgt_$1/auth/password_mutual"
}
# digests GROUP LIST: what the target agrees to, e.g. CRC32C
digests() { echo "$2" > "$TARGET/tpgt_$1/param/HeaderDigest" && echo "$2" > "$TARGET/tpgt_$1/param/DataDigest"; }
# portal_down GROUP: its sessions are ended, and nobody may log in; portal_up: everybody may again
portal_down() { echo 0 > "$TARGET/tpgt_$1/enable"; }
portal_up() { echo 1 > "$TARGET/tpgt_$1/enable"; }
# unit_gone GROUP: nothing is left at LUN 0 there
unit_gone() { rm "$TARGET/tpgt_$1/lun/lun_0/disk"; }
# unit_back GROUP: it is there, through its target port group
unit_back() { ln -s "$UNIT" "$TARGET/tpgt_$1/lun/lun_0/disk" && echo "group_$1" > "$TARGET/tpgt_$1/lun/lun_0/alua_tg_pt_gp"; }

grep -q ' /sys/kernel/config ' /proc/mounts || mount -t configfs none /sys/kernel/config || return 1
mkdir -p /var/target/alua /var/target/pr /etc/target
mkdir -p "$UNIT" || return 1
echo udev_path=/dev/ram0 > "$UNIT/control"
printf /dev/ram0 > "$UNIT/udev_path"
echo LAB0001 > "$UNIT/wwn/vpd_unit_serial"
echo 1 > "$UNIT/enable" || return 1
for g in 1 2; do
  group=$UNIT/alua/group_$g
  mkdir "$group" || return 1
  echo "$g" > "$group/tg_pt_gp_id"
  echo 3 > "$group/alua_access_type"
  # Linux makes each command wait for this long on a path that is not optimized: 100 ms unless it is told otherwise
  echo 1 > "$group/nonop_delay_msecs"
done
alua 2 1
for g in 1 2; do
  portal_group=$TARGET/tpgt_$g
  mkdir -p "$portal_group/np/10.0.$((1 + g)).15:3260" "$portal_group/lun/lun_0" || return 1
  unit_back "$g" || return 1
  for setting in generate_node_acls=1 cache_dynamic_acls=1 demo_mode_write_protect=0 authentication=0; do
    echo "${setting#*=}" > "$portal_group/attrib/${setting%=*}" || return 1
  done
  echo CHAP,None > "$portal_group/param/AuthMethod"
  portal_up "$g" || return 1
done
