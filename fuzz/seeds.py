#!/usr/bin/env python3
"""Writes the first inputs of the targets of SCSI, iSCSI and NBD to fuzz/corpus, cut from golden octets (crates/iscsi/tests/captures,
crates/scsi/tests/golden) or written down here. Inputs that are there already stay."""
import hashlib
import pathlib
import re
import struct

ROOT = pathlib.Path(__file__).resolve().parent
CRATES = ROOT.parent / "crates"


def put(target, name, octets):
    folder = ROOT / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(octets)


def pdus(octets, header_digest):
    """Basic header and all, data, of every PDU of one direction."""
    while len(octets) >= 48:
        opcode, ahs, length = octets[0] & 0x3F, octets[4] * 4, int.from_bytes(octets[5:8], "big")
        digest = 4 if header_digest and opcode not in (0x03, 0x23) else 0
        head = 48 + ahs + digest
        end = head + (length + 3) // 4 * 4
        yield opcode, digest, octets[:end], octets[head : head + length]
        octets = octets[end:]


def iscsi():
    seen = set()
    for file in sorted((CRATES / "iscsi/tests/captures").glob("*/*.bin")):
        for opcode, digest, pdu, data in pdus(file.read_bytes(), "header-digest" in file.parent.name):
            kind = (opcode, pdu[1], digest, len(data) > 0)
            if kind not in seen and len(pdu) < 1200:
                seen.add(kind)
                name = f"golden-{opcode:02x}-{pdu[1]:02x}-{digest}-{int(len(data) > 0)}"
                put("iscsi_pdu", name, bytes([4 | (1 if digest else 0)]) + pdu)
            if opcode in (0x03, 0x23, 0x04, 0x24) and data:
                put("iscsi_text", "golden-" + hashlib.sha1(data).hexdigest()[:8], data)
    step = lambda flags, text: bytes([flags]) + struct.pack(">H", len(text)) + text
    proof = b"CHAP_I=9\0CHAP_C=0x0102030405060708090a0b0c0d0e0f10\0"
    put("iscsi_login_target", "mutual", bytes([0x83]) + step(1, b"InitiatorName=iqn.2026-01.lab:i\0TargetName=iqn.2026-01.lab:t\0AuthMethod=CHAP\0")
        + step(0, b"CHAP_A=5\0") + step(17, proof) + step(5, b"InitialR2T=No\0"))
    put("iscsi_login_target", "none", bytes([0x80]) + step(9, b"InitiatorName=iqn.2026-01.lab:i\0TargetName=iqn.2026-01.lab:t\0AuthMethod=None\0HeaderDigest=CRC32C,None\0"))
    put("iscsi_login_initiator", "mutual", bytes([0x82]) + step(0, b"AuthMethod=CHAP\0") + step(0, b"CHAP_A=5\0" + proof) + step(17, b"")
        + step(5, b"InitialR2T=No\0ImmediateData=Yes\0MaxBurstLength=512\0FirstBurstLength=512\0DefaultTime2Wait=2\0"))
    put("iscsi_login_initiator", "none", bytes([0xB0]) + step(1, b"AuthMethod=None\0TargetPortalGroupTag=1\0")
        + step(5, b"HeaderDigest=CRC32C\0DataDigest=CRC32C\0InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength=65536\0"))
    put("iscsi_discovery", "list", bytes([0]) + step(2, b"TargetName=iqn.") + step(1, b"2026-01.lab:t\0TargetAddress=10.0.0.1:3260,1\0"))
    put("iscsi_discovery", "server", bytes([128, 1]) + step(1, b"SendTargets=All\0") + step(5, b""))
    # Steps of fuzzing/connection.rs; the first octet is what was negotiated.
    u16 = lambda n: struct.pack("<H", n)
    conversations = {
        "read": [0xC8, 0, 3, 255, 7, 0, 0, 0, 0, *u16(4096), 7, 0, 7, *u16(1024), *u16(4096)],
        "read-digests": [0xCB, 0, 3, 255, 7, 0, 3, *u16(0), *u16(4096), 5, 0, 0],
        "write-immediate": [0xC8, 2, 3, 60, 3, 255, 5, 0, 0],
        "write-r2t": [0xCF, 1, 3, 255, 6, 0, 0, *u16(0), *u16(4096), 3, 255, 6, 0, 1, *u16(1024), *u16(4096), 3, 9, 3, 255, 5, 0, 0],
        "sense": [0xC8, 0, 3, 255, 5, 0, 5],
        "abort": [0xC8, 1, 1, 3, 200, 11, 8, 3, 255, 9, 0x80, 0, 1, 0, 0],
        "ping": [0xC8, 8, 1, 3, 255, 8, 4, 3, 255, 8, 2, 0x80, *u16(1)],
        "events": [0xC8, 10, 2, 10, 4, 10, 6, 10, 1, 11, 0x80, 3, 255],
    }
    for name, octets in conversations.items():
        put("iscsi_connection", name, bytes(octets))


def scsi():
    kinds = {0x12: 1, 0x25: 3, 0x9E: 3, 0xA0: 3, 0x1A: 4, 0x5A: 4, 0xA3: 5, 0xA4: 5, 0x5E: 6, 0x5F: 6, 0x42: 7}
    text = "".join((CRATES / "scsi/tests/golden" / f).read_text() for f in ("commands.txt", "errors.txt"))
    seen = set()
    for entry in re.split(r"^\[", text, flags=re.M)[1:]:
        words = dict(re.findall(r"^(cdb|in|out|sense) ([0-9a-f]+)$", entry, flags=re.M))
        cdb = bytes.fromhex(words["cdb"])
        name = entry.split("]")[0].rsplit(".lun", 1)[0]
        key = (cdb[0], cdb[1] & 31, cdb[2] if cdb[0] == 0x12 else 0)
        if key not in seen:
            seen.add(key)
            put("scsi_command", f"golden-{key[0]:02x}-{key[1]:02x}-{key[2]:02x}", cdb)
        for what in ("in", "out", "sense"):
            if what in words and (what == "sense" or cdb[0] in kinds) and len(words[what]) < 1200:
                kind = 0 if what == "sense" else 2 if cdb[0] == 0x12 and cdb[1] & 1 else kinds[cdb[0]]
                data = bytes([kind]) + bytes.fromhex(words[what])
                put("scsi_data", "golden-" + hashlib.sha1(data).hexdigest()[:8], data)
        assert name


def nbd():
    option = lambda number, data: struct.pack(">QII", 0x49484156454F5054, number, len(data)) + data
    export = struct.pack(">I", 4) + b"disk" + struct.pack(">HHH", 2, 0, 3)
    contexts = struct.pack(">I", 4) + b"disk" + struct.pack(">II", 1, 15) + b"base:allocation"
    flags = struct.pack(">I", 3)
    put("nbd_handshake", "go", flags + option(8, b"") + option(10, contexts) + option(6, export) + option(7, export))
    put("nbd_handshake", "old", flags + option(3, b"") + option(1, b"disk"))
    put("nbd_handshake", "abort", flags + option(5, b"") + option(99, b"x" * 40) + option(2, b""))
    for command in range(0, 9):
        put("nbd_decoders", f"request-{command}", struct.pack(">IHHQQI", 0x25609513, command & 1, command, 7, 4096 * command, 4096))
    put("nbd_decoders", "option", struct.pack(">QII", 0x49484156454F5054, 7, 14))
    put("nbd_decoders", "export", export)
    put("nbd_decoders", "contexts", contexts)
    put("nbd_decoders", "flags", flags)


iscsi()
scsi()
nbd()
