"""One real service on a new XFS, with a stand-in for the manager: what the measurements use.

It needs root, for the loop mount, and a mount namespace of its own (`unshare --mount`), so that nothing stays mounted
if it is killed. All traffic goes to the loopback interface.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 4096
PATIENCE = 30.0  # seconds, for a server to start
USER = "bench"


def run(*command: str) -> str:
    """Run a program, and return its output."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True).stdout


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def vm_id(number: int) -> str:
    return f"0004fb0000060000{number:016x}"


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """A connection to the service that is kept open, with a token."""

    def __init__(self, service: "Service", token: Optional[str] = None) -> None:
        self._service = service
        self._token = token
        self._connection = http.client.HTTPSConnection(
            "127.0.0.1", service.port, context=service.tls, timeout=600
        )

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, method: str, path: str, body: Any = None, headers: Optional[Dict[str, str]] = None) -> Answer:
        """Send a request, and read the whole answer."""
        sent = dict(headers or {})
        if self._token:
            sent["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body)
        self._connection.request(method, f"/api/v1{path}" if path != "/metrics" else path, data, sent)
        answer = self._connection.getresponse()
        return Answer(answer.status, dict(answer.getheaders()), answer.read())

    def good(self, method: str, path: str, body: Any = None) -> Any:
        """As `ask`, for an answer that has to be a success."""
        answer = self.ask(method, path, body)
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.body[:300]!r}")
        return answer.json() if answer.body else None

    def drain(self, path: str) -> Tuple[int, int]:
        """Read and forget a body; return the status and its bytes."""
        headers = {"Authorization": f"Bearer {self._token}"}
        self._connection.request("GET", f"/api/v1{path}", None, headers)
        answer = self._connection.getresponse()
        total = 0
        buffer = bytearray(1 << 20)
        while True:
            read = answer.readinto(buffer)
            if not read:
                return answer.status, total
            total += read


class Service:
    """The service, its repository and its manager. Use it with `with`."""

    def __init__(self, binary: Path, config: str = "", gib: int = 8, policy: str = "") -> None:
        self.binary = binary
        self._config = config
        self._policy = policy
        self._gib = gib
        self._processes: List["subprocess.Popen[bytes]"] = []
        self.work = Path()
        self.port = 0
        self.tls = ssl.create_default_context()
        self.password = secrets.token_hex(12)
        self.token = ""

    def __enter__(self) -> "Service":
        self.work = Path(tempfile.mkdtemp(prefix="exporter-fleet.")).resolve()
        try:
            self._prepare()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.terminate()
            process.wait()
        if os.path.ismount(self.repository):
            run("umount", str(self.repository))
        shutil.rmtree(self.work)

    @property
    def repository(self) -> Path:
        return self.work / "0004fb0000030000a1b2c3d4e5f60718"

    @property
    def pid(self) -> int:
        return self._processes[-1].pid

    def _prepare(self) -> None:
        image = self.work / "image"
        with image.open("wb") as file:
            file.truncate(self._gib << 30)
        run("mkfs.xfs", "-q", "-m", "reflink=1", str(image))
        self.repository.mkdir()
        run("mount", "-o", "loop", str(image), str(self.repository))
        image.unlink()  # it goes with the mount
        (self.repository / "VirtualDisks").mkdir()
        (self.repository / "VirtualMachines").mkdir()
        run(
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=fleet", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
            "-keyout", str(self.work / "key.pem"), "-out", str(self.work / "ca.pem"),
        )  # fmt: skip
        (self.work / "key.pem").chmod(0o600)
        self.tls = ssl.create_default_context(cafile=str(self.work / "ca.pem"))
        ready = self.work / "manager.port"
        self._spawn(
            "manager",
            "python3", str(ROOT / "examples/demo/manager.py"), "--port", "0", "--cert", str(self.work / "ca.pem"),
            "--key", str(self.work / "key.pem"), "--user", USER, "--password", self.password, "--port-file", str(ready),
        )  # fmt: skip
        self._wait(ready.exists, "the manager")
        self.port = free_port()
        (self.work / "config.toml").write_text(
            f"""
db_file = "{self.work}/exporter.db"
log_file = "{self.work}/service.log"
ovm_endpoint = "https://127.0.0.1:{ready.read_text().strip()}"
[jwt]
secret = "{secrets.token_hex(32)}"
[api]
bind = "127.0.0.1"
port = {self.port}
socket = ""
[api.tls]
certificate = "{self.work}/ca.pem"
key = "{self.work}/key.pem"
[manager]
ca_certificate = "{self.work}/ca.pem"
[repositories]
paths = ["{self.repository}"]
shared = false
[metrics]
enabled = true
[policy]
min_free_space = 0
{self._policy}
{self._config.replace("WORK", str(self.work))}
"""
        )

    def _spawn(self, name: str, *command: str) -> None:
        with (self.work / f"{name}.out").open("ab") as output:
            self._processes.append(subprocess.Popen(command, stdout=output, stderr=output))

    def _wait(self, condition: Callable[[], bool], name: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            if self._processes and self._processes[-1].poll() is not None:
                raise RuntimeError(f"{name} ended: {self._output()}")
            if time.monotonic() > end:
                raise RuntimeError(f"{name} was not ready in {PATIENCE:.0f} s: {self._output()}")
            time.sleep(0.02)

    def _output(self) -> str:
        return "\n".join(file.read_text()[-2000:] for file in self.work.glob("*.out"))

    def start(self) -> None:
        self._spawn("service", str(self.binary), "--config", str(self.work / "config.toml"))
        self._wait(self._is_ready, "the service")
        with Connection(self) as connection:
            answer = connection.good("POST", "/auth/login", {"username": USER, "password": self.password})
        self.token = answer["token"]

    def stop(self) -> None:
        process = self._processes.pop()
        process.terminate()
        process.wait()

    def set_policy(self, keys: str) -> None:
        """Restart the service with other keys of `[policy]`."""
        self.stop()
        file = self.work / "config.toml"
        file.write_text(re.sub(r"min_free_space = 0\n.*", f"min_free_space = 0\n{keys}", file.read_text(), count=1))
        self.start()

    def set_shared(self, shared: bool) -> None:
        """Restart the service with this value of `repositories.shared`."""
        self.stop()
        file = self.work / "config.toml"
        file.write_text(re.sub(r"shared = \w+", f"shared = {str(shared).lower()}", file.read_text(), count=1))
        self.start()

    def _is_ready(self) -> bool:
        try:
            with Connection(self) as connection:
                return connection.ask("GET", "/healthz").status in (200, 404)
        except OSError:
            return False

    def connect(self) -> Connection:
        return Connection(self, self.token)

    def define(self, number: int, disks: int = 1, extents: int = 0, mib: int = 1) -> str:
        """Make a VM with disks of so many extents (every second block is data), or of `mib` MiB of data."""
        vm = vm_id(number)
        paths = [self.repository / "VirtualDisks" / f"{vm}-{index}.img" for index in range(disks)]
        for path in paths:
            with path.open("wb", buffering=0) as file:
                if extents:
                    file.truncate(extents * 2 * BLOCK)
                    for extent in range(extents):
                        os.pwrite(file.fileno(), b"\1" * BLOCK, extent * 2 * BLOCK)
                else:
                    for _ in range(mib):
                        file.write(os.urandom(1 << 20))
                os.fsync(file.fileno())
        folder = self.repository / "VirtualMachines" / vm
        folder.mkdir()
        listed = ", ".join(f"'file:{path},xvd{chr(97 + index)},w'" for index, path in enumerate(paths))
        uuid = f"{vm[:8]}-{vm[8:12]}-{vm[12:16]}-{vm[16:20]}-{vm[20:]}"
        (folder / "vm.cfg").write_text(
            f"OVM_simple_name = 'web-{number}'\nname = '{vm}'\nuuid = '{uuid}'\ndisk = [{listed}]\n"
            "memory = '2048'\nvcpus = 2\n"
        )
        return vm

    def cpu(self) -> float:
        """The CPU seconds of the service so far, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def snapshot(self, connection: Connection, vm: str) -> Any:
        return connection.good("POST", f"/vms/{vm}/snapshots?chunks=false", {})
