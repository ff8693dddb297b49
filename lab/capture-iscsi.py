#!/usr/bin/env python3
"""Records what libiscsi asks tgt and what tgt answers: the golden octets of crates/scsi (crates/scsi/tests/golden/README.md).

    lab/capture-iscsi.py FOLDER

needs the packages tgt and libiscsi-bin and no kernel module. It starts a tgtd of its own on a free port of the loopback interface, with
three logical units in memory-sized files (a disk with thin provisioning, a disk that is read-only, one whose medium is gone), runs
libiscsi's tools and some families of its test suite through a proxy that keeps every octet (and changes none but the port in the answer to
SendTargets, which would lead past it), ends that tgtd by its process number, cuts the streams into iSCSI PDUs, and writes FOLDER/*.txt with
one of each exchange that is different.

Only the SCSI part is kept: no names, tags or addresses of the session.
"""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time

TARGET = "iqn.2026-01.org.polypath.lab:tgt"
INITIATORS = ("iqn.2026-01.org.polypath.lab:one", "iqn.2026-01.org.polypath.lab:two")
CONTROL = "4711"
DISK, READ_ONLY, NO_MEDIUM = 1, 2, 3
DISK_BYTES = 8 << 20

# Longer data are cut: what counts is at the front. Longer data of reads and writes are left out.
KEEP = 1024

TEST_FAMILIES = """
TestUnitReady Inquiry ReadCapacity10 ReadCapacity16 ReportSupportedOpcodes ModeSense6 Read6 Read10 Read12 Read16 Write10 Write12 Write16
Verify10 Verify12 Verify16 WriteSame10 WriteSame16 Unmap CompareAndWrite GetLBAStatus PrinReadKeys PrinReportCapabilities
PrinServiceactionRange ProutRegister ProutReserve ProutClear ProutPreempt PreventAllow.Simple StartStopUnit Reserve6.Simple
ReadDefectData10 ReadDefectData12
""".split()


# ---- the proxy -----------------------------------------------------------------------------------------------------------------

class Stream:
    """One direction of one connection."""

    def __init__(self):
        self.octets = bytearray()


def pump(source, sink, stream, here, there):
    try:
        while data := source.recv(65536):
            stream.octets += data
            # both ports have five digits, so that no length changes
            data = data.replace(f":{there},".encode(), f":{here},".encode())
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def serve(listener, port, connections, threads):
    here = listener.getsockname()[1]
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        server = socket.create_connection(("127.0.0.1", port))
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        there, back = Stream(), Stream()
        connections.append((there, back))
        for source, sink, stream in ((client, server, there), (server, client, back)):
            thread = threading.Thread(target=pump, args=(source, sink, stream, here, port), daemon=True)
            thread.start()
            threads.append(thread)


# ---- iSCSI (RFC 7143) ----------------------------------------------------------------------------------------------------------

def pdus(octets):
    """Basic header segments with their data; no digests were negotiated."""
    at = 0
    while at + 48 <= len(octets):
        header = bytes(octets[at:at + 48])
        additional = 4 * header[4]
        length = int.from_bytes(header[5:8], "big")
        data_at = at + 48 + additional
        if data_at + length > len(octets):
            return
        yield header, bytes(octets[data_at:data_at + length])
        at = data_at + (length + 3) // 4 * 4


def exchanges(there, back):
    """Commands with everything that belongs to them, in the order of the commands."""
    commands = []
    open_by_tag = {}
    # The streams have no common order; tags are not used again before their answer, so that both are walked one command at a time.
    answers = {}
    for header, data in pdus(back):
        opcode, tag = header[0] & 0x3F, header[16:20]
        if opcode not in (0x21, 0x25):
            continue
        row = answers.setdefault(tag, [])
        if not row or row[-1]["done"]:
            row.append({"in": bytearray(), "status": None, "sense": b"", "done": False})
        answer = row[-1]
        if opcode == 0x25:
            offset = int.from_bytes(header[40:44], "big")
            if len(answer["in"]) < offset + len(data):
                answer["in"].extend(bytes(offset + len(data) - len(answer["in"])))
            answer["in"][offset:offset + len(data)] = data
            if header[1] & 1:
                answer["status"], answer["done"] = header[3], True
        else:
            answer["status"], answer["done"] = header[3], True
            if len(data) >= 2:
                answer["sense"] = data[2:2 + int.from_bytes(data[:2], "big")]
    for header, data in pdus(there):
        opcode, tag = header[0] & 0x3F, header[16:20]
        if opcode == 0x01:
            command = {"lun": header[8:16], "cdb": header[32:48], "out": bytearray(data), "tag": tag}
            commands.append(command)
            open_by_tag[tag] = command
        elif opcode == 0x05 and tag in open_by_tag:
            offset = int.from_bytes(header[40:44], "big")
            out = open_by_tag[tag]["out"]
            if len(out) < offset + len(data):
                out.extend(bytes(offset + len(data) - len(out)))
            out[offset:offset + len(data)] = data
    for command in commands:
        row = answers.get(command.pop("tag"))
        if row and row[0]["done"]:
            yield {**command, **row.pop(0)}


# ---- what is kept --------------------------------------------------------------------------------------------------------------

LENGTHS = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}
NAMES = {
    0x00: "test-unit-ready", 0x03: "request-sense", 0x08: "read-6", 0x0A: "write-6", 0x12: "inquiry", 0x15: "mode-select-6",
    0x16: "reserve-6", 0x17: "release-6", 0x1A: "mode-sense-6", 0x1B: "start-stop-unit", 0x1E: "prevent-allow-medium-removal",
    0x25: "read-capacity-10", 0x28: "read-10", 0x2A: "write-10", 0x2F: "verify-10", 0x35: "synchronize-cache-10",
    0x37: "read-defect-data-10", 0x41: "write-same-10", 0x42: "unmap", 0x5A: "mode-sense-10", 0x5E: "persistent-reserve-in",
    0x5F: "persistent-reserve-out", 0x88: "read-16", 0x89: "compare-and-write", 0x8A: "write-16", 0x8F: "verify-16",
    0x91: "synchronize-cache-16", 0x93: "write-same-16", 0x9E: "service-action-in-16", 0xA0: "report-luns", 0xA3: "maintenance-in",
    0xA8: "read-12", 0xAA: "write-12", 0xAF: "verify-12", 0xB7: "read-defect-data-12",
}
MEDIUM = {0x08, 0x0A, 0x28, 0x2A, 0x2F, 0x41, 0x88, 0x89, 0x8A, 0x8F, 0x93, 0xA8, 0xAA, 0xAF}


def variant(cdb):
    """The octets of a command that make it another one, without addresses and lengths."""
    op = cdb[0]
    if op in MEDIUM - {0x08, 0x0A} or op in (0x35, 0x91, 0x5E, 0x9E):
        return (cdb[1],)
    if op == 0x12:
        return (cdb[1], cdb[2])
    if op in (0x1A, 0x5A):
        return (cdb[2], cdb[3])
    if op in (0x1B, 0x1E):
        return (cdb[1], cdb[4])
    if op == 0x5F:
        return (cdb[1], cdb[2])
    if op == 0xA3:
        return (cdb[1], cdb[2], cdb[3])
    return ()


def fault(exchange):
    sense = exchange["sense"]
    return (sense[2] & 15, sense[12], sense[13]) if len(sense) >= 14 else ()


def key_of(exchange):
    cdb, status = exchange["cdb"], exchange["status"]
    # one of each fault of a command is enough
    what = variant(cdb) if status == 0 or cdb[0] in (0x12, 0x5F) else ()
    return (cdb[0], what, status, fault(exchange), exchange["lun"][1] if cdb[0] == 0x12 else None)


def name_of(exchange):
    cdb = exchange["cdb"]
    parts = [NAMES.get(cdb[0], f"opcode-{cdb[0]:02x}")]
    parts += [f"{octet:02x}" for octet in variant(cdb)]
    if exchange["status"] != 0:
        parts.append(f"status-{exchange['status']:02x}")
    if fault(exchange):
        parts.append("{:x}-{:02x}{:02x}".format(*fault(exchange)))
    if exchange["lun"][1] != DISK:
        parts.append(f"lun-{exchange['lun'][1]}")
    return ".".join(parts)


def write(folder, kept):
    files = {"commands.txt": [], "errors.txt": []}
    seen = {}
    for exchange in kept:
        cdb = exchange["cdb"]
        length = LENGTHS.get(cdb[0] >> 5, 16)
        name = name_of(exchange)
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            name += f".{seen[name]}"
        lines = [f"[{name}]", f"cdb {cdb[:length].hex()}", f"status {exchange['status']:02x}"]
        for what in ("out", "in", "sense"):
            data = bytes(exchange[what])
            # long lists from libiscsi have memory that it did not initialise in their reserved fields
            if not data or (cdb[0] in MEDIUM and what != "sense") or (what == "out" and len(data) > 64):
                continue
            # what comes with an error is a buffer that was used before
            if what == "in" and exchange["status"] != 0:
                continue
            lines.append(f"{what} {data[:KEEP].hex()}")
        files["errors.txt" if exchange["status"] else "commands.txt"].append("\n".join(lines) + "\n")
    for file, entries in files.items():
        with open(os.path.join(folder, file), "w") as out:
            out.write("\n".join(sorted(entries)))
        print(f"{file}: {len(entries)} exchanges")


# ---- the run -------------------------------------------------------------------------------------------------------------------

def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def admin(*arguments):
    command = ["tgtadm", "-C", CONTROL, "--lld", "iscsi", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}: {result.stderr.strip()}")


def configure(folder):
    admin("--op", "new", "--mode", "target", "--tid", "1", "-T", TARGET)
    for lun in (DISK, READ_ONLY, NO_MEDIUM):
        path = os.path.join(folder, f"lun{lun}.img")
        with open(path, "wb") as image:
            image.truncate(DISK_BYTES)
        admin("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", str(lun), "-b", path)
    update = ("--op", "update", "--mode", "logicalunit", "--tid", "1")
    admin(*update, "--lun", str(DISK), "--params", "thin_provisioning=1,scsi_sn=polypath0001,product_id=golden")
    admin(*update, "--lun", str(READ_ONLY), "--params", "readonly=1")
    admin(*update, "--lun", str(NO_MEDIUM), "--params", "removable=1")
    admin(*update, "--lun", str(NO_MEDIUM), "--params", "online=0")
    admin("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")


def tools(port):
    url = f"iscsi://127.0.0.1:{port}/{TARGET}/"
    one, two = INITIATORS
    yield ["iscsi-ls", "-i", one, "-s", f"iscsi://127.0.0.1:{port}"]
    for lun in (0, DISK, READ_ONLY, NO_MEDIUM, 7):
        yield ["iscsi-inq", "-i", one, f"{url}{lun}"]
    for page in (0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2, 0x86, 0xC7):
        yield ["iscsi-inq", "-i", one, "-e", "1", "-c", str(page), f"{url}{DISK}"]
    yield ["iscsi-readcapacity16", "-i", one, f"{url}{DISK}"]
    for lun in (READ_ONLY, NO_MEDIUM):
        for family in ("TestUnitReady", "Write10.Simple", "ReadOnly", "NoMedia", "ModeSense6.AllPages"):
            yield ["iscsi-test-cu", "-i", one, "-I", two, "-d", "-s", "-t", f"ALL.{family}", f"{url}{lun}"]
    for family in TEST_FAMILIES:
        yield ["iscsi-test-cu", "-i", one, "-I", two, "-d", "-s", "-t", f"ALL.{family}", f"{url}{DISK}"]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = sys.argv[1]
    with tempfile.TemporaryDirectory() as work:
        os.environ["TGT_IPC_SOCKET"] = os.path.join(work, "ipc")
        port = free_port()
        log = open(os.path.join(work, "log"), "w")
        daemon = subprocess.Popen(["tgtd", "-f", "-C", CONTROL, "--iscsi", f"portal=127.0.0.1:{port}"], stdout=log, stderr=log)
        try:
            for _ in range(100):
                if subprocess.run(["tgtadm", "-C", CONTROL, "--op", "show", "--mode", "sys"], capture_output=True).returncode == 0:
                    break
                time.sleep(0.1)
            else:
                sys.exit(f"tgtd did not start: {open(log.name).read()}")
            configure(work)
            connections, threads = [], []
            listener = socket.create_server(("127.0.0.1", 0))
            threading.Thread(target=serve, args=(listener, port, connections, threads), daemon=True).start()
            for command in tools(listener.getsockname()[1]):
                try:
                    result = subprocess.run(command, capture_output=True, text=True, timeout=10)
                    print(result.returncode, " ".join(command[:1] + command[-2:]))
                except subprocess.TimeoutExpired:
                    print("timed out:", " ".join(command))
            listener.close()
        finally:
            # SIGTERM does not end a tgtd that has targets
            daemon.kill()
            daemon.wait()
    for thread in threads:
        thread.join(5)
    kept = {}
    for there, back in connections:
        for exchange in exchanges(there.octets, back.octets):
            before = kept.setdefault(key_of(exchange), exchange)
            # libiscsi asks for little first: what is whole says more
            if len(before["in"]) < len(exchange["in"]) and exchange["cdb"][0] not in MEDIUM:
                kept[key_of(exchange)] = exchange
    write(folder, kept.values())


if __name__ == "__main__":
    main()
