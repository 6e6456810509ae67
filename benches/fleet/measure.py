"""Measure at the real service the costs that the simulation needs and that docs/benchmarks.md does not have.

    sudo unshare --mount --propagation private python3 benches/fleet/measure.py [BINARY] [NAME ...]

Prints a line for each figure. docs/scale.md and costs.py have them.
"""

from __future__ import annotations

import http.server
import os
import ssl
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Callable, Dict, List

from real import ROOT, USER, Connection, Service

BINARY = ROOT / "target/release/coriolis-ovm-exporter"


def timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.monotonic()
    work()
    return (time.monotonic() - began) * 1e3


def median(times: List[float]) -> float:
    return statistics.median(times)


def creations(binary: Path) -> None:
    """A creation, by disks and by extents; a deletion; a comparison."""
    print("| disks | extents of each | create, ms | clones, ms | delete, ms | compare, ms |")
    with Service(binary, gib=24) as service, service.connect() as client:
        number = 0
        shapes = ((1, 100), (2, 100), (4, 100), (8, 100), (1, 1000), (1, 10_000), (4, 10_000), (1, 100_000))
        for disks, extents in shapes:
            number += 1
            vm = service.define(number, disks=disks, extents=extents)
            created, frozen, deleted, compared = [], [], [], []
            base = ""
            for _ in range(5):
                before = clone_seconds(client)
                began = time.monotonic()
                snapshot = service.snapshot(client, vm)["id"]
                created.append((time.monotonic() - began) * 1e3)
                frozen.append((clone_seconds(client) - before) * 1e3)
                if base:
                    path = f"/vms/{vm}/snapshots/{snapshot}?compareTo={base}"
                    compared.append(timed(lambda path=path: client.good("GET", path)))  # type: ignore[misc]
                    path = f"/vms/{vm}/snapshots/{base}"
                    deleted.append(timed(lambda path=path: client.good("DELETE", path)))  # type: ignore[misc]
                base = snapshot
            row = [median(times) for times in (created, frozen, deleted, compared)]
            print(f"| {disks} | {extents:,} | " + " | ".join(f"{time:.1f}" for time in row) + " |", flush=True)


def metric(client: Connection, name: str) -> float:
    text = client.ask("GET", "/metrics").body.decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def clone_seconds(client: Connection) -> float:
    return metric(client, "ovm_exporter_clone_seconds_sum")


def contention(binary: Path) -> None:
    """The clones of 8 VMs in one repository, by how many are made at once. Medians of 3 rounds."""
    print("| creations at once | extents | all, s | the longest freeze, s | the mean freeze, s |")
    # A hook that says that it quiesced, so that each snapshot has its own freeze_ms.
    with Service(binary, gib=24, config=HOOKS) as service:
        install_hook(service, 0)
        vms = [service.define(number, extents=20_000) for number in range(8)]
        rows: Dict[int, List[List[float]]] = {}
        for _ in range(3):
            for at_once in (1, 2, 4, 8):
                service.set_policy(f"snapshot_concurrency = {at_once}")
                began = time.monotonic()
                answers = together(service, vms)
                took = time.monotonic() - began
                frozen = [answer["freeze_ms"] / 1e3 for answer in answers]
                rows.setdefault(at_once, []).append([took, max(frozen), statistics.mean(frozen)])
                with service.connect() as client:
                    for vm in vms:
                        client.good("DELETE", f"/vms/{vm}/snapshots")
        for at_once, rounds in rows.items():
            took, longest, mean = (median(list(times)) for times in zip(*rounds))
            print(f"| {at_once} | 20,000 | {took:.2f} | {longest:.2f} | {mean:.2f} |", flush=True)


HOOKS = '[hooks]\ndirectory = "WORK/hooks.d"\n'


def install_hook(service: Service, seconds: float) -> None:
    """A program that takes `seconds` to quiesce."""
    folder = service.work / "hooks.d"
    folder.mkdir()
    program = folder / "10-wait"
    program.write_text(f"#!/bin/sh\n[ \"$1 $2\" = 'snapshot-create pre' ] || exit 0\necho quiesced\nsleep {seconds}\n")
    program.chmod(0o755)
    service.stop()
    service.start()


def together(service: Service, vms: List[str]) -> List[Dict[str, float]]:
    """A snapshot of each VM, all requested at once."""
    answers: List[Dict[str, float]] = []

    def one(vm: str) -> None:
        with service.connect() as client:
            answers.append(service.snapshot(client, vm))

    threads = [threading.Thread(target=one, args=(vm,)) for vm in vms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == len(vms)
    return answers


def polls(binary: Path) -> None:
    """The requests with which a product looks at a host, by the number of VMs."""
    print("| VMs | snapshots | request | ms | CPU ms | bytes |")
    with Service(binary, gib=8) as service, service.connect() as client:
        count = 0
        for vms in (20, 200, 640):
            new = [service.define(number, extents=2) for number in range(count, vms)]
            count = vms
            time.sleep(3)  # recently written definitions are not cached
            for vm in new:
                for _ in range(2):
                    service.snapshot(client, vm)
            time.sleep(6)  # the state for the metrics is read every 5 s
            vm = new[0]
            before = service.cpu()
            times = [timed(lambda vm=vm: service.snapshot(client, vm)) for _ in range(20)]  # type: ignore[misc]
            cpu = (service.cpu() - before) * 50
            name = "POST /vms/{vm}/snapshots"
            print(f"| {vms} | {2 * vms} | `{name}` | {median(times):.2f} | {cpu:.1f} | |", flush=True)
            snapshot = client.good("GET", f"/vms/{vm}/snapshots?chunks=false")[0]["id"]
            for path in (
                "/capabilities", "/repositories", "/vms", f"/vms/{vm}", f"/vms/{vm}/snapshots?chunks=false",
                f"/vms/{vm}/snapshots/{snapshot}?chunks=false", "/status", "/metrics",
            ):  # fmt: skip
                size = len(client.ask("GET", path).body)
                before = service.cpu()
                times = [timed(lambda path=path: client.ask("GET", path)) for _ in range(100)]  # type: ignore[misc]
                cpu = (service.cpu() - before) * 10
                name = path.replace(vm, "{vm}").replace(snapshot, "{snapshot}")
                print(f"| {vms} | {2 * vms} | `GET {name}` | {median(times):.2f} | {cpu:.1f} | {size:,} |", flush=True)


def log_ins(binary: Path) -> None:
    """A log-in and a handshake, each with a new connection, and a refused creation."""
    with Service(binary) as service:
        body = {"username": USER, "password": service.password}

        def log_in() -> None:
            with Connection(service) as connection:
                connection.good("POST", "/auth/login", body)

        def handshake() -> None:
            with Connection(service) as connection:
                connection.ask("GET", "/healthz")

        for name, work in (("log-in on a new connection", log_in), ("handshake and /healthz", handshake)):
            before = service.cpu()
            times = [timed(work) for _ in range(200)]
            print(f"{name}: {median(times):.2f} ms, CPU {(service.cpu() - before) * 5:.2f} ms", flush=True)
    with Service(binary, config=HOOKS) as service:
        install_hook(service, 20)
        vm = service.define(1)
        for _ in range(4):
            creation = threading.Thread(target=lambda: service.connect().ask("POST", f"/vms/{vm}/snapshots"))
            creation.daemon = True
            creation.start()
        time.sleep(1)
        with service.connect() as client:
            before = service.cpu()
            times = [timed(lambda: refused(client, vm)) for _ in range(200)]
            print(f"a refused creation: {median(times):.2f} ms, CPU {(service.cpu() - before) * 5:.2f} ms", flush=True)


def refused(client: Connection, vm: str) -> None:
    answer = client.ask("POST", f"/vms/{vm}/snapshots")
    assert answer.status == 429 and answer.headers["retry-after"] == "10", (answer.status, answer.headers)


def scans(binary: Path) -> None:
    """A service without its database examines all manifests."""
    print("| manifests | cold, s | warm, s |")
    for vms in (200, 1000):
        with Service(binary, gib=8) as service:
            with service.connect() as client:
                for number in range(vms):
                    service.snapshot(client, service.define(number, extents=2))
            times = []
            for cold in (True, False):
                service.stop()
                (service.work / "exporter.db").unlink()
                os.sync()
                if cold:
                    Path("/proc/sys/vm/drop_caches").write_text("3")
                service.start()
                with service.connect() as client:
                    began = time.monotonic()
                    found = client.good("POST", "/adopt?manifests=true&dryRun=true")["adopted"]
                    times.append(time.monotonic() - began)
                    assert len(found) == vms, len(found)
            print(f"| {vms:,} | {times[0]:.2f} | {times[1]:.2f} |", flush=True)


def downloads(binary: Path) -> None:
    """The CPU of downloads and their rate, from the page cache, by the number of streams."""
    print("| streams | MiB/s | CPU s/GiB of the service |")
    with Service(binary, gib=4) as service, service.connect() as client:
        vm = service.define(1, mib=1024)
        snapshot = service.snapshot(client, vm)
        path = f"/vms/{vm}/snapshots/{snapshot['id']}/disks/{snapshot['disks'][0]['name']}"
        client.drain(path)
        for streams in (1, 4, 12):
            before, began = service.cpu(), time.monotonic()
            threads = [threading.Thread(target=lambda: service.connect().drain(path)) for _ in range(streams)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took = time.monotonic() - began
            print(f"| {streams} | {streams * 1024 / took:.0f} | {(service.cpu() - before) / streams:.2f} |", flush=True)


def webhooks(binary: Path) -> None:
    """Events to one receiver, which answers at once."""
    received: List[float] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # otherwise each answer waits 40 ms

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            received.append(time.monotonic())
            self.send_response(204)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    hook = f"""
[[notifications.webhooks]]
name = "bench"
url = "https://127.0.0.1:{server.server_port}/"
secret = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
events = ["snapshot.*"]
ca_certificate = "WORK/ca.pem"
"""
    with Service(binary, config=hook) as service, service.connect() as client:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(service.work / "ca.pem", service.work / "key.pem")
        vms = [service.define(number, extents=2) for number in range(100)]
        for vm in vms:
            service.snapshot(client, vm)
        for vm in vms:
            client.good("DELETE", f"/vms/{vm}/snapshots")
        # All of them wait now; the receiver is not reachable by TLS before this.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        before, end = service.cpu(), time.monotonic() + 120
        while len(received) < 200 and time.monotonic() < end:
            time.sleep(0.05)
        assert len(received) == 200, len(received)
        took = received[-1] - received[0]
        cpu = (service.cpu() - before) * 5
        print(f"200 events that waited: {199 / took:.0f} a second, CPU {cpu:.2f} ms each", flush=True)
        began = time.monotonic()
        service.snapshot(client, vms[0])
        while len(received) < 201:
            time.sleep(0.001)
        print(f"from the request of a creation to its event: {(received[-1] - began) * 1e3:.0f} ms", flush=True)
        server.shutdown()


def sharing(binary: Path) -> None:
    """What `repositories.shared` costs, by the snapshots of the repository. Medians; the two modes take turns."""
    print("| snapshots | shared | create, ms | list of the VM, ms | a document, ms |")
    with Service(binary, gib=24) as service:
        big, small = service.define(1, extents=2), service.define(2, extents=2)
        made = 0
        for wanted in (10, 1000, 5000):
            service.set_shared(False)
            with service.connect() as client:
                for _ in range(wanted - made):
                    last = service.snapshot(client, big)["id"]
            made = wanted
            times: Dict[bool, List[List[float]]] = {False: [[], [], []], True: [[], [], []]}
            for turn in range(6):
                shared = turn % 2 == 1
                service.set_shared(shared)
                time.sleep(3)  # the start is over, and the folder has settled
                requests = (f"/vms/{big}/snapshots?chunks=false", f"/vms/{big}/snapshots/{last}?chunks=false")
                with service.connect() as client:
                    for path, found in zip(requests, times[shared][1:]):
                        for _ in range(10):
                            found.append(timed(lambda path=path: client.good("GET", path)))  # type: ignore[misc]
                    for _ in range(20):
                        times[shared][0].append(timed(lambda: service.snapshot(client, small)))
                    client.good("DELETE", f"/vms/{small}/snapshots")
            for shared, columns in times.items():
                row = " | ".join(f"{median(column):.1f}" for column in columns)
                print(f"| {made:,} | {str(shared).lower()} | {row} |", flush=True)


ALL = {work.__name__: work for work in (creations, contention, polls, log_ins, scans, downloads, webhooks, sharing)}


def main() -> None:
    arguments = sys.argv[1:]
    binary = Path(arguments.pop(0)) if arguments and "/" in arguments[0] else BINARY
    unknown = [name for name in arguments if name not in ALL]
    if unknown:
        sys.exit(f"no such measurement: {', '.join(unknown)}; there are {', '.join(ALL)}")
    if os.geteuid() != 0:
        sys.exit("this mounts XFS: run it as root")
    for name in arguments or ALL:
        print(f"\n## {name}: {(ALL[name].__doc__ or '').strip()}\n", flush=True)
        ALL[name](binary)


if __name__ == "__main__":
    main()
