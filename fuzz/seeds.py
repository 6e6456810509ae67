#!/usr/bin/env python3
"""Makes seeds for the fuzzers: the databases of the tests, and pickles of similar values.

usage: seeds.py FIXTURES CORPUS
"""

import json
import pathlib
import pickle
import shutil
import sys

LARGEST = 24_000  # bytes; longer inputs only slow the fuzzers down

fixtures, corpus = map(pathlib.Path, sys.argv[1:])
databases, pickles = corpus / "berkeley_db", corpus / "pickle"
for folder in (databases, pickles):
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
