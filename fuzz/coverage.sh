#!/bin/sh
# Coverage of the decoders and the connection by the committed corpus alone. Needs llvm-22 (the LLVM of the
# Rust release in use); see docs/TESTING-fuzz.md. Prints a table per source file.
set -eu
cd "$(dirname "$0")/.."
out=${CARGO_TARGET_DIR:-$PWD/target}/fuzz-coverage
profdata=${LLVM_PROFDATA:-llvm-profdata-22}
cov=${LLVM_COV:-llvm-cov-22}
command -v "$profdata" >/dev/null && command -v "$cov" >/dev/null || {
    echo "coverage: $profdata and $cov are needed (Debian: apt-get install llvm-22)" >&2
    exit 1
}
rm -rf "$out/profile" && mkdir -p "$out/profile"
run() {
    RUSTFLAGS="-C instrument-coverage" LLVM_PROFILE_FILE="$out/profile/%p-%m.profraw" \
        cargo test --quiet --target-dir "$out" "$@"
}
run -p polypath-nvme -p polypath-scsi -p polypath-nbd --test corpus
run -p polypath-nvmf-tcp -p polypath-iscsi --test all corpus::
"$profdata" merge -sparse "$out"/profile/*.profraw -o "$out/corpus.profdata"
objects=$(find "$out/debug/deps" -maxdepth 1 \( -name 'corpus-*' -o -name 'all-*' \) -type f -perm -u+x | sed 's/^/--object /')
# shellcheck disable=SC2086
"$cov" report $objects --instr-profile "$out/corpus.profdata" --show-branch-summary=false \
    --ignore-filename-regex='(registry|rustc|/tests/|tests\.rs|fuzzing\.rs|crates/(block|memory|net)/)'
