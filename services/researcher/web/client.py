"""Asks an address of the web once: judged, connected to as judged, never through a proxy, no cookies kept."""

import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path

from services.researcher.watch import Watch
from services.researcher.web.guard import Guard, Target
from services.researcher.web.wire import Answer, Limits, Request, exchange

VERSION = "0.1"
_SECONDS = re.compile("[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Client:
    """What every request has in common. Thread-safe."""

    guard: Guard
    tls: ssl.SSLContext
    agent: str  # the User-Agent header

    def ask(self, target: Target, request: Request, limits: Limits, watch: Watch) -> Answer:
        """Makes one request; follows nothing. Raises Refused, Unreadable, Cancelled, OutOfTime."""
        asked = replace(request, headers={"User-Agent": self.agent, **request.headers})
        return exchange(target, self.guard.addresses(target), asked, limits, self.tls, watch)


def agent(contact: str) -> str:
    """Returns a User-Agent that says what asks and, when the operator gives it, whom to turn to."""
    return f"ConductorResearcher/{VERSION}" + (f" (+{contact})" if contact else "")


def tls(ca_file: Path | None) -> ssl.SSLContext:
    """Returns a context that verifies certificates and names, against the system's authorities and those of a file."""
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context


def plain(headers: Mapping[str, str]) -> tuple[str, str]:
    """Returns the media type of an answer, lower case without parameters, and its charset or ""."""
    kind, _, parameters = headers.get("content-type", "").partition(";")
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return kind.strip().lower(), value.strip().strip("\"'").lower()
    return kind.strip().lower(), ""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds that a Retry-After header asks to wait (RFC 9110 10.2.3), None when there is none."""
    value = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(moment.timestamp() - time.time(), 0.0)
