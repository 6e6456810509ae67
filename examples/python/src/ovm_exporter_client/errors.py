"""The errors of this package. Each has a message for the user and an exit status for scripts."""

import json
from typing import Any, Dict, Union

import requests

FAILED, USAGE, MISMATCH, NO_BASE = 1, 2, 3, 4  # exit statuses


class ClientError(Exception):
    """Base class of the errors of this package."""

    def __init__(self, message: str, exit_status: int = FAILED) -> None:
        super().__init__(message)
        self.message, self.exit_status = message, exit_status

    def __str__(self) -> str:
        return self.message


class Unreachable(ClientError, requests.ConnectionError):
    """The connection failed, also after retries."""


class ServiceError(ClientError, requests.HTTPError):
    """An unsuccessful response, with the service's error message if it sent one.

    `code` is stable, see docs/api.md. The service's log has the `request_id`.
    """

    def __init__(self, response: requests.Response) -> None:
        try:
            said: Dict[str, Any] = dict(response.json())
        except (ValueError, TypeError):
            said = {}
        self.status = response.status_code
        self.code = str(said.get("code") or f"http_{self.status}")
        self.details = str(said.get("details") or "")
        self.request_id = str(said.get("request_id") or response.headers.get("X-Request-Id") or "")
        wait = response.headers.get("Retry-After", "")
        self.retry_after = int(wait) if wait.isdigit() else 0
        text = ": ".join(filter(None, (str(said.get("error") or response.reason), self.details)))
        if response.is_redirect:
            text += ": redirects are not followed, because they could leak the token"
        origin = ", request ".join(filter(None, (self.code, self.request_id)))
        super().__init__(f"{text} ({origin})")
        self.response = response


def parse(text: Union[str, bytes], source: str) -> Any:
    """Return the JSON of a response."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ClientError(f"the response to {source} is not JSON: {error}") from error
