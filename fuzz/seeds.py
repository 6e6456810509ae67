#!/usr/bin/env python3
"""Makes seeds for the fuzzers: the databases of the tests, pickles of similar values, and small qcow2 images.

usage: seeds.py FIXTURES CORPUS
"""

import json
import pathlib
import pickle
import shutil
import struct
import sys

LARGEST = 24_000  # bytes; longer inputs only slow the fuzzers down

fixtures, corpus = map(pathlib.Path, sys.argv[1:])
databases, pickles, images = corpus / "berkeley_db", corpus / "pickle", corpus / "qcow2"
for folder in (databases, pickles, images):
    folder.mkdir(parents=True, exist_ok=True)

for file in fixtures.glob("*/*"):
    if file.name in ("repository", "server") and 0 < file.stat().st_size <= LARGEST:
        shutil.copyfile(file, databases / f"seed-{file.parent.name}-{file.name}")

for file in fixtures.glob("*/expected.json"):
    content = json.loads(file.read_text())
    values = [*content["repos"][:2], content.get("server"), [1, 1 << 40, -1, 1.5, None, True, ("é", b"\xff")]]
    for number, value in enumerate(values):
        for protocol in range(6):
            seed = pickles / f"seed-{file.parent.name}-{number}-{protocol}"
            try:
                seed.write_bytes(pickle.dumps(value, protocol))
            except OSError as error:
                sys.exit(f"{seed}: {error}")

# Pickles that Python 3 does not write: strings of Python 2, and opcodes that the parser rejects.
for number, source in enumerate([
    b"(dp1\nS'alias'\np2\nS'caf\\xc3\\xa9 \\'\\n'\np3\nsS'version'\nI3\nsS'is_master'\nI01\ns.",
    b"}q\x01(U\x05aliasq\x02T\x03\x00\x00\x00abcq\x03U\x01bL5L\nU\x01cF1.5\nu.",
    b"(lp0\nI1\naV\\u00e9\\ud83d\\ude00\nag0\na.",
    b"cos\nsystem\n(S'true'\ntR.",
]):
    (pickles / f"seed-python2-{number}").write_bytes(source)


def image(version, cluster_bits, backing, entries):
    """An image whose L1 table is in cluster 1, with one L2 table in cluster 2, with these entries, and data behind it."""
    cluster = 1 << cluster_bits
    size = cluster * (cluster // 8) * 2
    extension = struct.pack(">II8sQ", 0xE2792ACA, 5, b"qcow2", 0)
    header_len = 104 if version == 3 else 72
    name_at = header_len + len(extension) if backing else 0
    header = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", version, name_at, len(backing), cluster_bits, size, 0, 2, cluster,
        3 * cluster, 1, 0, 0)
    if version == 3:
        header += struct.pack(">QQQII", 0, 0, 0, 4, header_len)
    tables = [header + extension + backing, struct.pack(">QQ", 2 * cluster | 1 << 63, 0)]
    tables.append(b"".join(struct.pack(">Q", entry) for entry in entries))
    return b"".join(table.ljust(cluster, b"\0") for table in tables) + b"data".ljust(4 * cluster, b"\0")


for number, (version, bits, backing, entries) in enumerate([
    (3, 9, b"", [3 << 9 | 1 << 63, 4 << 9 | 1 << 63, 0, 1, 6 << 9 | 1, 5 << 9]),
    (3, 9, b"../base", [0, 0, 1, 1, 3 << 9, 5 << 9]),
    (2, 9, b"base", [3 << 9, 0, 1 << 62 | 3 << 9]),
    (3, 12, b"base", [3 << 12 | 1 << 63, 4 << 12 | 1 << 63]),
]):
    (images / f"seed-{number}").write_bytes(image(version, bits, backing, entries))
