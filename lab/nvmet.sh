# Sourced by lab/init: Linux's own NVMe/TCP target. Two ports (one per network card), two ram disks as namespaces 1 and 2 in ANA
# groups 1 and 2. The functions below are what a test calls while I/O runs.
NVMET=/sys/kernel/config/nvmet
NQN=nqn.2026-01.org.polypath.lab:nvmet
SUBSYSTEM=$NVMET/subsystems/$NQN

# ana PORT GROUP STATE; STATE is optimized, non-optimized, inaccessible, persistent-loss or change
ana() { echo "$3" > "$NVMET/ports/$1/ana_groups/$2/ana_state"; }
# port_down PORT: every controller of that port is deleted, its connections are closed and new ones are refused
port_down() { rm "$NVMET/ports/$1/subsystems/$NQN"; }
port_up() { ln -s "$SUBSYSTEM" "$NVMET/ports/$1/subsystems/$NQN"; }
# shellcheck source=lab/cards.sh
. /cards.sh

grep -q ' /sys/kernel/config ' /proc/mounts || mount -t configfs none /sys/kernel/config || return 1
mkdir "$SUBSYSTEM" || return 1
echo 1 > "$SUBSYSTEM/attr_allow_any_host"
echo LAB0001 > "$SUBSYSTEM/attr_serial"
echo LABTARGET > "$SUBSYSTEM/attr_model"
for i in 1 2; do
  mkdir "$SUBSYSTEM/namespaces/$i" || return 1
  printf '/dev/ram%s' "$((i - 1))" > "$SUBSYSTEM/namespaces/$i/device_path"
  echo "$i" > "$SUBSYSTEM/namespaces/$i/ana_grpid"
  echo 1 > "$SUBSYSTEM/namespaces/$i/enable" || return 1
done
for p in 1 2; do
  port=$NVMET/ports/$p
  mkdir "$port" || return 1
  echo ipv4 > "$port/addr_adrfam"
  echo tcp > "$port/addr_trtype"
  echo 0.0.0.0 > "$port/addr_traddr"
  echo "$((4419 + p))" > "$port/addr_trsvcid"
  mkdir "$port/ana_groups/2"
done
ana 1 1 optimized; ana 1 2 non-optimized
ana 2 1 non-optimized; ana 2 2 optimized
port_up 1 && port_up 2
