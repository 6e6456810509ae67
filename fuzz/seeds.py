#!/usr/bin/env python3
"""Makes the inputs that the fuzz targets start with: seeds, and the kept corpora (fuzz/corpora, an archive for each target).

usage: seeds.py REPOSITORY CORPUS         fills the folders of CORPUS
       seeds.py REPOSITORY CORPUS --keep  replaces the archives by the inputs in CORPUS
"""

import io
import json
import pathlib
import pickle
import random
import shutil
import struct
import sys
import tarfile

LARGEST = 24_000  # bytes; longer inputs only slow the fuzzers down
LARGEST_KEPT = 2_048  # bytes

repository, corpus = map(pathlib.Path, sys.argv[1:3])
fixtures, archives = repository / "tests/fixtures/ovs-agent-db", repository / "fuzz/corpora"

if sys.argv[3:] == ["--keep"]:
    for folder in sorted(corpus.iterdir()):
        # The inputs of a target are similar, so they are compressed as one.
        with tarfile.open(archives / f"{folder.name}.tar.xz", "w:xz", preset=9) as archive:
            for file in sorted(folder.iterdir()):
                if file.stat().st_size <= LARGEST_KEPT:
                    # Without times and owners, equal inputs make equal archives.
                    info = tarfile.TarInfo(file.name[:16])
                    info.size = file.stat().st_size
                    archive.addfile(info, io.BytesIO(file.read_bytes()))
    sys.exit()

for archive in archives.glob("*.tar.xz"):
    with tarfile.open(archive) as kept:
        folder = corpus / archive.name.removesuffix(".tar.xz")
        folder.mkdir(parents=True, exist_ok=True)
        for member in kept:
            (folder / f"kept-{pathlib.Path(member.name).name}").write_bytes(kept.extractfile(member).read())


def folder_of(target):
    folder = corpus / target
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def seed(target, inputs):
    for number, content in enumerate(inputs):
        content = content if isinstance(content, bytes) else content.encode()
        (folder_of(target) / f"seed-{number}").write_bytes(content)


databases, pickles, images = map(folder_of, ("berkeley_db", "pickle", "qcow2"))

for file in fixtures.glob("*/*"):
    if file.name in ("repository", "server") and 0 < file.stat().st_size <= LARGEST:
        shutil.copyfile(file, databases / f"seed-{file.parent.name}-{file.name}")

for file in fixtures.glob("*/expected.json"):
    content = json.loads(file.read_text())
    values = [*content["repos"][:2], content.get("server"), [1, 1 << 40, -1, 1.5, None, True, ("é", b"\xff")]]
    for number, value in enumerate(values):
        for protocol in range(6):
            (pickles / f"seed-{file.parent.name}-{number}-{protocol}").write_bytes(pickle.dumps(value, protocol))

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

VM = "0004fb00000600000000000000000001"
SNAPSHOT = "00000000-0000-0000-0000-000000000007"

seed("vm_cfg", [
    f"name = '{VM}'\nuuid = '{VM}'\nOVM_simple_name = u'web \\u00e9'\nmemory = '2048'\nvcpus = 2\nboot = 'cdn'\n"
    "disk = ['file:/OVS/a.img,xvda,w', 'phy:/dev/mapper/b,xvdb:cdrom,r!', ',hda:cdrom,r']\n"
    "vif = ['mac=00:21:f6:aa:bb:cc,bridge=10238073c2,ip=10.0.0.5']\nvfb = ['type=vnc,vncpasswd=secret']\n",
    "# password: secret\na = {'password': 'x', 1: (1, 2.5, None, True)} # b\nb = r'x' \"y\" '\\x41'\nc = 0x1F\n",
    "disk = [\n  'tap:aio:/OVS/a.img,hda,w!',\n]\nurl = 'https://user:pw@host/'\nlong = \'\'\'a\nb\'\'\'\n",
])
seed("ovsmeta", [
    '{"a.img": {"OBJECT_TYPE": "VIRTUAL_DISK", "SIMPLE_NAME": "data \\u00e9", "SIZE": 1},'
    ' "cd.iso": {"OBJECT_TYPE": "VIRTUAL_CDROM", "SIMPLE_NAME": null}, "odd.img": ["VIRTUAL_DISK"]}',
])
seed("config", [
    (repository / "config.example.toml").read_text(),
    'db_file = 7\n[api]\nprot = 5544\n[[access.rules]]\nusers = ["a*"]\nrole = "reader"\nvms = ["0004*"]\n'
    'labels = {job = "x"}\n[policy]\nmin_free_space = "5%"\nexport_wait = "1h"\n[hooks]\ntimeout = "1m"\n',
])
seed("manifest", [json.dumps({
    "version": 1, "snapshot_id": SNAPSHOT, "vm_id": VM, "sequence": 7, "created_at": "2024-05-01T10:20:30.123456789Z",
    "created_by": "admin", "exporter": "host-0123456789abcdef", "consistency": "quiesced", "freeze_ms": 17,
    "disks": [{"name": "a.img", "repository": "r", "source": "VirtualDisks/a.img", "size": 4096, "inode": 131,
               "changed_at": "2024-05-01T10:20:30Z", "modified_at": "2024-05-01T10:20:30Z", "volume": "a5" * 16,
               "map_digest": "5a" * 32}],
    "hooks": [{"name": "fsfreeze", "kind": "directory", "stage": "pre", "outcome": "ok", "duration_ms": 1,
               "detail": ""}],
    "labels": {"job": "nightly"}, "description": "x", "definition": {"format": "vm.cfg", "networks": [{"mac": "x"}]},
})])


def text(value):
    return bytes([len(value)]) + value.encode()


# The fields of `StoredRecord` in src/store/record.rs, as postcard writes them.
disk = text("a.img") + text("r") + text("d/a") + b"\x80\x20\x05\x02"
seed("record", [
    bytes([state]) + text(VM) + b"\x05\x02" + text("admin") + b"\x01" + disk + text("crash") + b"\x00" + hooks
    + b"\x01\x01" + b"\xa5" * 16 + b"\x01\x02\x01" + b"\x5a" * 32 + b"\x01" + text("k") + text("v") + b"\x01" + text("d")
    for state in range(3)
    for hooks in (b"\x00", b"\x01" + text("a") + text("sync") + text("pre") + text("ok") + b"\x07" + text("200 OK"))
])
# Size and method, then headers: `Range`, `If-Range`, `If-Match`, `If-None-Match`, and both dates.
DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"
seed("conditions", [
    struct.pack("<QB", 1000, method) + b"\n".join(bytes([6 + name]) + value for name, value in headers)
    for method in range(3)
    for headers in (
        [(0, b"bytes=0-499, -1,900-")], [(0, b"bytes=1-2"), (1, b'"a%20tag"')], [(0, b"bytes=5-"), (1, DATE)],
        [(2, b'W/"a", "a%20tag"'), (3, b"*")], [(3, b'"x,y", W/"a%20tag"')], [(4, DATE), (5, DATE)],
    )
])
generator = random.Random(7)
seed("fiemap", [generator.randbytes(size) for size in (50, 100, 200, 400, 800) for _ in range(8)])

route = f"/api/v1/vms/{VM}/snapshots"
disk = f"{route}/{SNAPSHOT}/disks/a.img"
bodies = {
    "/api/v1/auth/login": '{"username": "a", "password": "b", "refresh": true}',
    "/api/v1/auth/refresh": '{"refresh_token": "%s"}' % ("A" * 64),
    "/api/v1/auth/revoke": '{"user": "a", "issued_before": "2024-05-01T10:20:30Z"}',
    "/api/v1/snapshots": '{"vms": ["%s"], "labels": {"a": "b"}, "ttl": "1h"}' % VM,
    f"{route}/{SNAPSHOT}/lease": '{"ttl": "1h"}',
    f"{disk}/tickets": '{"ttl": "1h", "ops": ["read", "map"]}',
}
seed("http_requests", [
    *(f"{line} HTTP/1.1\r\nHost: x\r\n{headers}\r\n" for line, headers in [
        ("GET /", "Accept: text/html\r\n"), ("GET /healthz", ""), ("GET /readyz", ""), ("GET /metrics", ""),
        ("GET /api/v1/vms?x=%41", ""), (f"GET /api/v1/vms/{VM}", ""), ("GET /api/v1/status", ""),
        ("GET /api/v1/capabilities", ""), ("GET /api/v1/repositories", ""), (f"GET {route}?chunks=false&label=a%3Db", ""),
        (f"GET {route}/{SNAPSHOT}?compareTo={SNAPSHOT}&squashChunks=true", ""), (f"GET {disk}", "Range: bytes=0-9,20-29\r\n"),
        (f"HEAD {disk}", 'If-None-Match: "x"\r\n'), (f"GET {disk}", "If-Range: x\r\nRange: bytes=5-\r\n"),
        (f"GET {disk}/chunks?pageSize=5", "Accept: application/x-ndjson\r\n"),
        (f"GET {disk}/checksum?algorithm=sha256&blockSize=4096&blocks=true", ""), (f"GET {disk}", "Want-Content-Digest: sha-256=1\r\n"),
        (f"GET {disk}/tickets", ""), (f"GET /t/{'A' * 43}/a.img", ""), (f"GET /t/{'A' * 43}/a.img/chunks", ""),
        ("POST /api/v1/auth/logout", "Authorization: Basic eDp4\r\nContent-Length: 0\r\n"),
        ("OPTIONS *", ""), ("POST /api/v1/adopt?dryRun=true", "Content-Length: 0\r\n"),
    ]),
    *(f"POST {path} HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\nContent-Length: {len(body)}\r\n\r\n{body}"
      for path, body in bodies.items()),
    "POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 3 + "GET / HTTP/1.0\r\n\r\n",
])
