"""What a client may ask of the server, and how it is refused."""

from __future__ import annotations

import hmac
from dataclasses import asdict, dataclass

from project.errors import InputError

REFUSALS = {
    401: "the token is missing or wrong",
    413: "the body is too large",
    422: "the request is no search, or one that is too large",
    502: "the engine failed",
    503: "too many queries wait",
    504: "the deadline is over",
}


@dataclass(frozen=True)
class Limits:
    """What one client may ask for, and what waits."""

    max_queries: int = 256
    """Queries in a request."""
    max_query_chars: int = 10_000
    """Characters of a query."""
    max_topk: int = 1000
    """Hits a query."""
    max_body_bytes: int = 8_000_000
    """Bytes of a request."""
    max_waiting: int = 2048
    """Queries that wait for the engine; what comes then is refused with status 503."""
    batch: int = 64
    """Queries that the engine is given together, at most."""
    deadline_s: float = 30.0
    """Seconds after which a request is given up with status 504."""
    cache_hits: int = 100_000
    """Hits that are kept in memory for queries that come again; 0 keeps none."""

    def check(self) -> None:
        """Refuse limits under which nothing could be answered."""
        for name, value in asdict(self).items():
            if value < (0 if name == "cache_hits" else 1e-3 if name == "deadline_s" else 1):
                raise InputError(f"limits.{name} is {value}; give more")


class Refusal(Exception):
    """A request that is not answered: a status of `REFUSALS` and one sentence."""

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


def authorise(header: str, token: str | None) -> None:
    """Refuse a request whose `Authorization` does not hold the token; None lets everybody in."""
    if token and not hmac.compare_digest(header.encode(), f"Bearer {token}".encode()):
        raise Refusal(401, "this server wants 'Authorization: Bearer TOKEN' with its token", **{"www-authenticate": "Bearer"})
