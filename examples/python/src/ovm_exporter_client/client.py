"""The API of coriolis-ovm-exporter over HTTPS.

The names and the order of the arguments are those of the example client of the original exporter, so programs
that use it only change the import. Arguments after `*` are new.
"""

import json
import threading
import uuid
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union, cast
from urllib.parse import quote, urlsplit

import requests

from .disk import DiskReader
from .documents import Capabilities, Checksum, Chunk, Json, Repository, Snapshot, Vm
from .errors import USAGE, ClientError, ServiceError, parse
from .retries import BROKEN, TRANSIENT, Attempts

CONNECT_TIMEOUT = 30  # seconds
CALL_TIMEOUT = 900    # seconds for a response: a snapshot runs hooks, a comparison reads disks
LOGIN = "/auth/login"
REFRESH = "/auth/refresh"
LOGOUT = "/auth/logout"
ELSEWHERE = (502, 503, 504)  # statuses after which another host of a pool is asked
Query = Dict[str, Union[str, int]]


class Client:
    """The exporter. Several threads can use one client; each has its own connection.

    It does not follow redirects: they could leak the token. It ignores the environment's proxies, certificates
    and `.netrc`.
    """

    def __init__(self, endpoint: str, token: Optional[str], *, cacert: Optional[str] = None,
                 insecure: bool = False) -> None:
        """Use a token that is known already. `cacert` is the PEM file of the CA of the service's certificate.

        The `endpoint` may be several URLs with commas between them: the hosts of one pool. If one fails, the
        next one is asked.
        """
        self._hosts = [base_of(url.strip()) for url in endpoint.split(",")]
        self._current = 0
        self._verify: Union[bool, str] = False if insecure else cacert or True
        self._token = token
        self._credentials: Optional[Json] = None
        self._refresh_token: Optional[str] = None
        self._renewal = threading.Lock()
        self._threads = threading.local()

    @classmethod
    def login(cls, endpoint: str, username: str, password: str, *, cacert: Optional[str] = None,
              insecure: bool = False) -> "Client":
        """Exchange the credentials for a token. They are kept, to log in again when the token expires."""
        client = cls(endpoint, None, cacert=cacert, insecure=insecure)
        # Older services ignore "refresh", and answer with a token that lasts longer.
        client._credentials = {"username": username, "password": password, "refresh": True}
        client._log_in()
        return client

    @property
    def host(self) -> str:
        """The name of the host, or those of a pool."""
        return ", ".join(name for name, _ in self._hosts)

    @property
    def token(self) -> str:
        """The current token."""
        return self._token or ""

    # --- The methods of the original client

    def get_vms(self) -> List[Vm]:
        """List the virtual machines."""
        return cast(List[Vm], self._call("GET", route("vms")))

    def get_vm(self, vmID: str) -> Vm:
        """Return a virtual machine."""
        return cast(Vm, self._call("GET", route("vms", vmID)))

    def create_snapshot(self, vmID: str, *, disks: Optional[Sequence[str]] = None,
                        exclude_disks: Optional[Sequence[str]] = None, ttl: Optional[str] = None,
                        idempotency_key: Optional[str] = None, chunks: bool = True) -> Snapshot:
        """Take a snapshot.

        The request has an idempotency key. If the response is lost and the service knows such keys, the request
        is sent again and returns the same snapshot.
        """
        body = {name: value for name, value in (
            ("disks", disks and list(disks)), ("exclude_disks", exclude_disks and list(exclude_disks)), ("ttl", ttl),
        ) if value is not None}
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        attempts = Attempts(self.host)
        while True:
            try:
                return cast(Snapshot, self._once("POST", route("vms", vmID, "snapshots"), body=body or None,
                                                 query=_chunks(chunks), headers=headers))
            except TRANSIENT as error:
                attempts.failed(error)
                # Other services would make a second snapshot.
                if "idempotency-key" not in self.get_capabilities().get("features", []):
                    raise ClientError(f"the snapshot may exist, a retry could make a second one: {error}") from error

    def get_snapshots(self, vmID: str, *, chunks: bool = True) -> List[Snapshot]:
        """List the snapshots of a virtual machine, oldest first. Without the chunks, this is much faster."""
        return cast(List[Snapshot], self._call("GET", route("vms", vmID, "snapshots"), query=_chunks(chunks)))

    def get_snapshot(self, vmID: str, snapshotID: str, compare_to: Optional[str] = None, squash: bool = False, *,
                     chunks: bool = True) -> Snapshot:
        """Return a snapshot. With `compare_to`, its chunks are the changes since that older snapshot."""
        query: Query = {"squashChunks": str(squash), **_chunks(chunks)}
        if compare_to is not None:
            query["compareTo"] = compare_to
        return cast(Snapshot, self._call("GET", route("vms", vmID, "snapshots", snapshotID), query=query))

    def get_disk_size(self, vmID: str, snapID: str, diskID: str) -> int:
        """Return the size of a disk in bytes."""
        return self.open_disk(vmID, snapID, diskID).size

    def download_chunk(self, vmID: str, snapID: str, diskID: str, offset: int, length: int) -> bytes:
        """Return a range of a disk. For many ranges use `open_disk`, which does not mix two versions of a disk."""
        disk = DiskReader(self, route("vms", vmID, "snapshots", snapID, "disks", diskID), None, None)
        return b"".join(block for _, block in disk.read(offset, offset + length))

    # --- The other routes

    def open_disk(self, vmID: str, snapID: str, diskID: str) -> DiskReader:
        """Return a reader of one version of a disk."""
        path = route("vms", vmID, "snapshots", snapID, "disks", diskID)
        headers = Attempts(self.host).run(lambda: self.send("HEAD", path).headers)
        size, etag = headers.get("Content-Length", ""), headers.get("ETag", "")
        if not size.isdigit():
            raise ClientError(f"{diskID}: the service does not say its size")
        if not etag.startswith('"'):  # If-Range needs a strong tag
            raise ClientError(f"{diskID}: no strong ETag, so bytes of two versions could mix")
        return DiskReader(self, path, int(size), etag)

    def iter_chunks(self, vmID: str, snapID: str, diskID: str, *, compare_to: Optional[str] = None,
                    refine: Optional[int] = None) -> Iterator[Chunk]:
        """Yield the chunks of one disk while the service finds them. This holds one chunk in memory at a time."""
        path = route("vms", vmID, "snapshots", snapID, "disks", diskID, "chunks")
        query: Query = {} if compare_to is None else {"compareTo": compare_to}
        if refine is not None:
            query["refine"] = refine
        attempts, at = Attempts(self.host), 0
        while True:
            try:
                wanted = {"Accept": "application/x-ndjson"}
                with self.send("GET", path, query={**query, "startingOffset": at}, headers=wanted) as answer:
                    for line in answer.iter_lines():
                        chunk = cast(Chunk, parse(line, path))
                        at = chunk["start"] + chunk["length"]
                        attempts.progressed()
                        yield chunk
                    return
            except TRANSIENT as error:
                attempts.failed(error)

    def get_checksum(self, vmID: str, snapID: str, diskID: str, *, start: int, length: int, block_size: int,
                     algorithm: str = "sha256") -> Checksum:
        """Return the checksums of the blocks of a part of a disk. The service computes them from its files."""
        query: Query = {"algorithm": algorithm, "start": start, "length": length, "blockSize": block_size,
                        "blocks": "true"}
        path = route("vms", vmID, "snapshots", snapID, "disks", diskID, "checksum")
        return cast(Checksum, self._call("GET", path, query=query))

    def delete_snapshot(self, vmID: str, snapshotID: str) -> None:
        """Delete a snapshot. This succeeds too if it is already deleted."""
        self._call("DELETE", route("vms", vmID, "snapshots", snapshotID))

    def delete_snapshots(self, vmID: str) -> None:
        """Delete all snapshots of a virtual machine. The next backup is then a full one."""
        self._call("DELETE", route("vms", vmID, "snapshots"))

    def lease_snapshot(self, vmID: str, snapshotID: str, ttl: str) -> str:
        """Keep a snapshot that would expire for `ttl` from now, such as "2h". Return the end of the lease."""
        path = route("vms", vmID, "snapshots", snapshotID, "lease")
        return str(self._call("POST", path, body={"ttl": ttl})["expires_at"])

    def release_snapshot(self, vmID: str, snapshotID: str) -> None:
        """End the lease of a snapshot."""
        self._call("DELETE", route("vms", vmID, "snapshots", snapshotID, "lease"))

    def logout(self) -> None:
        """End the log-in: its token, and the tokens that renew it, are no longer accepted."""
        with self._renewal:
            answer = self._request("POST", LOGOUT, self._token, None, None, None, CALL_TIMEOUT)
            refresh, self._refresh_token = self._refresh_token, None
            if answer.status_code == 401 and refresh is not None:
                # The token has expired, but the log-in has not: only one of its valid tokens can end it.
                answer.close()
                self._keep(self._for_tokens(REFRESH, {"refresh_token": refresh}))
                answer = self._request("POST", LOGOUT, self._token, None, None, None, CALL_TIMEOUT)
            with successful(answer):
                self._token = self._refresh_token = None

    def get_capabilities(self) -> Capabilities:
        """Return the service's version, features and limits."""
        return cast(Capabilities, self._call("GET", route("capabilities")))

    def get_repositories(self) -> List[Repository]:
        """List the repositories of the host."""
        return cast(List[Repository], self._call("GET", route("repositories")))

    def get_status(self) -> Json:
        """Return the running and queued work, and the free space."""
        return cast(Json, self._call("GET", route("status")))

    # --- Requests

    def send(self, method: str, path: str, *, query: Optional[Query] = None, body: Optional[Json] = None,
             headers: Optional[Dict[str, str]] = None, timeout: int = CALL_TIMEOUT) -> requests.Response:
        """Send one request once, and log in again if the token is refused. Return a 2xx response, its body unread."""
        token = self._token
        answer = self._request(method, path, token, query, body, headers, timeout)
        if answer.status_code == 401 and self._credentials:
            answer.close()
            with self._renewal:
                if self._token == token:  # else another thread has renewed it
                    self._renew()
                token = self._token
            answer = self._request(method, path, token, query, body, headers, timeout)
        return successful(answer)

    def _call(self, method: str, path: str, *, query: Optional[Query] = None, body: Optional[Json] = None) -> Any:
        """Return the JSON of a response. Only for requests that are safe to repeat."""
        return Attempts(self.host).run(lambda: self._once(method, path, query=query, body=body))

    def _once(self, method: str, path: str, *, query: Optional[Query] = None, body: Optional[Json] = None,
              headers: Optional[Dict[str, str]] = None) -> Any:
        with self.send(method, path, query=query, body=body, headers=headers) as answer:
            return parse(whole_body(answer) or "null", f"{method} {path}")

    def _renew(self) -> None:
        """Replace the token: with the refresh token, which can be used once, or with the password."""
        refresh, self._refresh_token = self._refresh_token, None
        if refresh is not None:
            try:
                self._keep(self._for_tokens(REFRESH, {"refresh_token": refresh}))
                return
            except TRANSIENT:
                pass  # If the response was lost, the refresh token is used up.
        self._log_in()

    def _log_in(self) -> None:
        """Replace the token. It is safe to repeat a log-in."""
        self._keep(Attempts(self.host).run(lambda: self._for_tokens(LOGIN, self._credentials)))

    def _for_tokens(self, path: str, body: Optional[Json]) -> Any:
        with successful(self._request("POST", path, None, None, body, None, CALL_TIMEOUT)) as answer:
            return parse(whole_body(answer), "the log-in")

    def _keep(self, said: Any) -> None:
        token = said.get("token") if isinstance(said, dict) else None
        if not isinstance(token, str) or not token:
            raise ClientError("the response to the log-in has no token")
        refresh = said.get("refresh_token")
        self._token, self._refresh_token = token, refresh if isinstance(refresh, str) else None

    def _request(self, method: str, path: str, token: Optional[str], query: Optional[Query], body: Optional[Json],
                 headers: Optional[Dict[str, str]], timeout: int) -> requests.Response:
        sent = {"Accept-Encoding": "identity", **(headers or {})}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if body is not None:
            sent["Content-Type"] = "application/json"
        asked = self._current
        try:
            answer = self._session().request(
                method, self._hosts[asked][1] + path, params=query, data=None if body is None else json.dumps(body),
                headers=sent, timeout=(CONNECT_TIMEOUT, timeout), allow_redirects=False, stream=True)
        except BROKEN:
            self._go_on(asked)
            raise
        if answer.status_code in ELSEWHERE:
            self._go_on(asked)
        return answer

    def _go_on(self, failed: int) -> None:
        """Ask the next host of the pool, unless another thread does that already."""
        if self._current == failed:
            self._current = (failed + 1) % len(self._hosts)

    def _session(self) -> requests.Session:
        """Return the session of this thread: `requests` does not promise that threads can share one."""
        session: Optional[requests.Session] = getattr(self._threads, "session", None)
        if session is None:
            session = self._threads.session = requests.Session()
            session.trust_env = False  # a .netrc would replace the token
            session.verify = self._verify
        return session


def base_of(url: str) -> Tuple[str, str]:
    """Return the host of a URL, and the start of the URLs of its API."""
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ClientError("the URL of the service must look like https://host:5544", USAGE)
    path = parts.path.rstrip("/")
    return parts.hostname, f"https://{parts.netloc}{path}" + ("" if path.endswith("/api/v1") else "/api/v1")


def route(*components: str) -> str:
    """Return a path. Each component is quoted, so that no name can reach another resource."""
    if any(component in ("", ".", "..") for component in components):
        raise ClientError(f"an empty name, '.' or '..' in {'/'.join(components)}", USAGE)
    return "".join("/" + quote(component, safe="") for component in components)


def successful(answer: requests.Response) -> requests.Response:
    """Return a 2xx response; raise the error of any other."""
    if 200 <= answer.status_code < 300:
        return answer
    with answer:
        raise ServiceError(answer)


def whole_body(answer: requests.Response) -> str:
    """Return the body as text. A body that is shorter than its Content-Length is a broken connection."""
    content, expected = answer.content, answer.headers.get("Content-Length")
    if expected is not None and expected != str(len(content)):
        raise requests.ConnectionError(f"the connection broke after {len(content)} of {expected} bytes")
    return content.decode("utf-8", "replace")


def _chunks(wanted: bool) -> Query:
    return {} if wanted else {"chunks": "false"}
