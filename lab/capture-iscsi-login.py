#!/usr/bin/env python3
"""Records what libiscsi's tools and tgt say to each other on the wire: the golden octets of crates/iscsi (crates/iscsi/tests/captures).

    lab/capture-iscsi-login.py FOLDER [NAME...]

needs the packages tgt and libiscsi-bin and no kernel module. It starts a tgtd of its own on a free port of the loopback interface, runs
libiscsi's tools through a proxy that keeps every octet and changes none, ends that tgtd by its process number, and writes for each
capture FOLDER/tgt-NAME/README.md and, for each TCP connection N in the order in which they were opened,
FOLDER/tgt-NAME/initiator-to-target.N.bin and target-to-initiator.N.bin.
"""

import datetime
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

TARGET = "iqn.2026-01.org.polypath.lab:"
INITIATOR = "iqn.2026-01.org.polypath.lab:initiator"
CONTROL = "4712"
LUN_BYTES = 4 << 20

# Secrets of a lab: they are in the tests, too.
USER, SECRET = "lab-user", "secret of the user"
OWN, OWN_SECRET = "lab-target", "secret of the target"

# Of a longer direction only the first PDUs are kept, up to so many octets and so many of them.
KEEP = 16 << 10
KEEP_PDUS = 60

# How long the proxy keeps the target's answer to the first command back in "nop", so that the target asks whether we are there.
HOLD_S = 2.5

# name of the capture, target (or None for discovery), query of the URL, what is run ({url} is the disk, {portal} the portal)
CAPTURES = [
    ("discovery", None, {}, ["iscsi-ls -i {initiator} {portal}"]),
    ("plain", "plain", {}, [
        "iscsi-inq -i {initiator} {url}",
        "iscsi-test-cu -d -s -i {initiator} -t SCSI.Read10.BeyondEol {url}",
        "iscsi-test-cu -d -s -i {initiator} -t SCSI.Write10.DpoFua {url}",
        "iscsi-test-cu -d -s -i {initiator} -t SCSI.CompareAndWrite.Simple {url}",
    ]),
    ("bursts", "blocks", {"keep": 72 << 10}, [
        "iscsi-perf -i {initiator} -m 1 -b 5 -t 1 {url}",
        "iscsi-test-cu -d -s -i {initiator} -t SCSI.Write16.Simple {url}",
    ]),
    ("nop", "nop", {"hold": HOLD_S}, ["iscsi-inq -i {initiator} {url}"]),
    ("tests", "plain", {}, [
        "iscsi-test-cu -d -s -i {initiator} -t iSCSI.iSCSITMF.AbortTaskSimpleAsync {url}",
        "iscsi-test-cu -d -s -i {initiator} -t iSCSI.iSCSITMF.LUNResetSimpleAsync {url}",
        "iscsi-test-cu -d -s -i {initiator} -t iSCSI.iSCSIResiduals.Read10Residuals {url}",
        "iscsi-test-cu -d -s -i {initiator} -t iSCSI.iSCSIResiduals.Write10Residuals {url}",
        "iscsi-test-cu -d -s -i {initiator} -t iSCSI.iSCSIcmdsn.iSCSICmdSnTooLow {url}",
    ]),
    ("header-digest", "digest", {}, [
        "iscsi-inq -i {initiator} {url}",
        "iscsi-test-cu -d -s -i {initiator} -t iSCSI.iSCSIResiduals.Write10Residuals {url}",
    ]),
    ("chap", "chap", {"user": USER, "secret": SECRET}, ["iscsi-inq -i {initiator} {url}"]),
    ("mutual-chap", "mutual", {"user": USER, "secret": SECRET, "own": OWN, "own_secret": OWN_SECRET},
     ["iscsi-inq -i {initiator} {url}"]),
    ("refused", "chap", {"user": USER, "secret": "not the secret"}, [
        "iscsi-inq -i {initiator} {url}",
        "iscsi-inq -i {initiator} {portal}/" + TARGET + "nowhere/1",
    ]),
]


class Connection:
    """Both directions of one TCP connection."""

    def __init__(self):
        self.to_target = bytearray()
        self.to_initiator = bytearray()


def pump(source, sink, octets, hold=0):
    turn = 0
    try:
        while data := source.recv(65536):
            octets += data
            if hold and turn == 1:
                time.sleep(hold)
            turn += 1
            sink.sendall(data)
    except OSError:
        pass
    try:
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


class Proxy:
    """Listens on a free port and hands every connection on."""

    def __init__(self, target_port, hold):
        self.target_port = target_port
        self.hold = hold
        self.connections = []
        self.threads = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                initiator, _ = self.listener.accept()
            except OSError:
                return
            target = socket.create_connection(("127.0.0.1", self.target_port))
            connection = Connection()
            self.connections.append(connection)
            for pumped in (
                (initiator, target, connection.to_target),
                (target, initiator, connection.to_initiator, self.hold),
            ):
                thread = threading.Thread(target=pump, args=pumped, daemon=True)
                thread.start()
                self.threads.append(thread)

    def finish(self):
        self.listener.close()
        for thread in self.threads:
            thread.join(timeout=10)
        return self.connections


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Tgtd:
    """A tgtd with the targets of the lab."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.port = free_port()
        self.env = dict(os.environ, TGT_IPC_SOCKET=str(self.folder / "ipc"))
        log = open(self.folder / "tgtd.log", "w")
        self.process = subprocess.Popen(
            ["tgtd", "-f", "-C", CONTROL, "--iscsi", f"portal=127.0.0.1:{self.port}"],
            env=self.env, stdout=log, stderr=log, start_new_session=True)
        self.wait()
        for tid, name in enumerate(("plain", "chap", "mutual", "digest", "nop", "blocks"), 1):
            image = self.folder / f"{name}.img"
            with open(image, "wb") as file:
                file.truncate(LUN_BYTES)
            self.admin("new", "target", "--tid", str(tid), "-T", TARGET + name)
            block = "4096" if name == "blocks" else "512"
            self.admin("new", "logicalunit", "--tid", str(tid), "--lun", "1", "-b", str(image), "--blocksize", block)
            self.admin("bind", "target", "--tid", str(tid), "-I", "ALL")
        self.admin("new", "account", "--user", USER, "--password", SECRET)
        self.admin("new", "account", "--user", OWN, "--password", OWN_SECRET)
        for tid in ("2", "3"):
            self.admin("bind", "account", "--tid", tid, "--user", USER)
        self.admin("bind", "account", "--tid", "3", "--user", OWN, "--outgoing")
        self.admin("update", "target", "--tid", "4", "--name", "HeaderDigest", "--value", "CRC32C")
        self.admin("update", "target", "--tid", "5", "--name", "nop_count", "--value", "20")
        self.admin("update", "target", "--tid", "5", "--name", "nop_interval", "--value", "1")

    def wait(self):
        for _ in range(100):
            if subprocess.run(["tgtadm", "-C", CONTROL, "--op", "show", "--mode", "sys"], env=self.env,
                              capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        raise SystemExit("tgtd does not answer: see tgtd.log")

    def admin(self, op, mode, *more):
        subprocess.run(["tgtadm", "-C", CONTROL, "--lld", "iscsi", "--op", op, "--mode", mode, *more], env=self.env, check=True)

    def end(self):
        # it ignores SIGTERM while it has targets
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def url(port, target, options):
    user = f"{options['user']}%{options['secret']}@" if "user" in options else ""
    query = []
    if "own" in options:
        query += [f"target_user={options['own']}", f"target_password={options['own_secret']}"]
    tail = "?" + "&".join(query) if query else ""
    return f"iscsi://{user}127.0.0.1:{port}/{TARGET}{target}/1{tail}"


def cut(octets, header_digest, keep):
    """The first whole PDUs, and whether that is not all."""
    at = 0
    for _ in range(KEEP_PDUS):
        if at + 48 > len(octets):
            break
        # neither tool sends additional headers or data digests, and login PDUs have no header digest
        digest = 4 if header_digest and octets[at] & 0x3f not in (0x03, 0x23) else 0
        length = int.from_bytes(octets[at + 5:at + 8], "big")
        end = at + 48 + 4 * octets[at + 4] + digest + length + -length % 4
        if end > min(len(octets), keep):
            break
        at = end
    return octets[:at], at < len(octets)


def version(package):
    return subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True, check=True).stdout


def record(folder, tgtd, name, target, options, commands):
    proxy = Proxy(tgtd.port, options.get("hold", 0))
    done = []
    for command in commands:
        places = {
            "initiator": INITIATOR,
            "portal": f"iscsi://127.0.0.1:{proxy.port}",
            "url": url(proxy.port, target, options),
        }
        words = [word.format(**places) for word in command.split()]
        result = subprocess.run(words, capture_output=True, text=True, timeout=60)
        shown = " ".join(f"'{w}'" if re.search(r"[ ?&]", w) else w for w in words).replace(str(proxy.port), "PORT")
        done.append((shown, result.returncode))
        print(f"{name}: {shown}: {result.returncode}")
    connections = proxy.finish()
    place = pathlib.Path(folder) / f"tgt-{name}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    rows = []
    for n, connection in enumerate(connections):
        digest = b"HeaderDigest=CRC32C\0" in connection.to_initiator
        row = [str(n)]
        for way, octets in (("initiator-to-target", connection.to_target), ("target-to-initiator", connection.to_initiator)):
            kept, is_cut = cut(octets, digest, options.get("keep", KEEP))
            (place / f"{way}.{n}.bin").write_bytes(kept)
            row.append(f"{len(kept)} bytes" + (f", the first of {len(octets)}" if is_cut else ""))
        rows.append("| " + " | ".join(row) + " |")
    ran = "\n".join(f"{command}        # exit status {status}" for command, status in done)
    (place / "README.md").write_text(f"""# tgt-{name}

Written by `lab/capture-iscsi-login.py {folder}`; see `crates/iscsi/tests/captures/README.md`.

| | |
| --- | --- |
| initiator | libiscsi {version("libiscsi-bin")} |
| target | tgt {version("tgt")}, one disk of {LUN_BYTES >> 20} MiB as LUN 1 |
| recorded | {datetime.date.today()} |

What was run, in order:

```text
{ran}
```

| connection | initiator to target | target to initiator |
| --- | --- | --- |
{chr(10).join(rows)}
""")


def main():
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    folder, names = sys.argv[1], sys.argv[2:]
    with tempfile.TemporaryDirectory() as work:
        tgtd = Tgtd(work)
        try:
            for name, target, options, commands in CAPTURES:
                if not names or name in names:
                    record(folder, tgtd, name, target, options, commands)
        finally:
            tgtd.end()


if __name__ == "__main__":
    main()
