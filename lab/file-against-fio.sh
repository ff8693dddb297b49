#!/bin/bash
# file:// against fio's io_uring engine on one file, in turns on one core, every other turn the other way round.
#   lab/file-against-fio.sh FILE [CORE] [TURNS]
# FILE is written (1 GiB, made if it is not there); needs fio and target/release/polypath-bench.
set -euo pipefail
file=$(realpath -m "${1:?FILE, on the disk to be measured}") core=${2:-1} turns=${3:-9}
bench=${BENCH:-target/release/polypath-bench}
[ -e "$file" ] || dd if=/dev/urandom of="$file" bs=4M count=256 oflag=direct status=none

peer() {
    taskset -c "$core" fio --name=turn --filename="$file" --ioengine=io_uring --direct=1 --bs=4k --rw="$1" --iodepth="$2" \
        --numjobs=1 --thread --norandommap --randrepeat=0 --gtod_reduce=1 --time_based --runtime=1 \
        --output-format=terse --terse-version=3 "${@:3}" | awk -F';' '{ print $8 + $49 }'
}

ours() {
    "$bench" run --path "file://$file?bs=4096" --rw "$1" --bs 4k --qd "$2" --time 1 --ramp 200ms --cpus "$core" --json - 2>/dev/null |
        awk -F'[:,]' '/^  "iops":/ { print $2 + 0 }'
}

median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

printf '%-10s %4s %10s %10s %10s  %s\n' rw QD fio fixed ours 'ours/fio, ours/fixed (medians of pairs)'
for depth in 1 32 128; do
    for rw in randread randwrite; do
        rates=$(for turn in $(seq "$turns"); do
            if ((turn % 2)); then
                a=$(peer $rw $depth) b=$(peer $rw $depth --registerfiles --fixedbufs) c=$(ours $rw $depth)
            else
                c=$(ours $rw $depth) b=$(peer $rw $depth --registerfiles --fixedbufs) a=$(peer $rw $depth)
            fi
            echo "$a $b $c"
        done)
        column() { awk "{ print $1 }" <<<"$rates" | median; }
        printf '%-10s %4s %10.0f %10.0f %10.0f  %.2f %.2f\n' $rw $depth "$(column '$1')" "$(column '$2')" "$(column '$3')" \
            "$(column '$3 / $1')" "$(column '$3 / $2')"
    done
done
