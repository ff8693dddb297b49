# Sourced by scripts of targets with a network card for each of their ports, which are counted from 1.
# link_down PORT: the card of that port goes deaf and dumb, nothing is closed: a silent loss
link_down() { ip link set "eth$(($1 - 1))" down; }
link_up() { ip link set "eth$(($1 - 1))" up; }

# moved PORT: bytes received on that port's card so far
moved() { cat "/sys/class/net/eth$(($1 - 1))/statistics/rx_bytes"; }
# wait_moved PORT KIB SECONDS: until that many further KiB have come in through that port
wait_moved() {
  goal=$(($(moved "$1") + $2 * 1024))
  deadline=$(($(cut -d. -f1 /proc/uptime) + $3))
  until [ "$(moved "$1")" -ge "$goal" ]; do
    [ "$(cut -d. -f1 /proc/uptime)" -lt "$deadline" ] || { echo "port $1 is $(((goal - $(moved "$1")) / 1024)) KiB short of $2 KiB after $3 s"; return 1; }
    usleep 50000
  done
}
