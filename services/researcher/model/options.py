"""The operator's table [model] → checked options."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from services.common.config import ConfigError, secret
from services.researcher.model.meter import Prices

ADAPTERS = ("openai", "anthropic")
OUTPUTS = ("schema", "tool", "text")  # how the form of an answer is asked for
ANTHROPIC_URL = "https://api.anthropic.com"
TIMEOUT = 60.0  # seconds of one call
CONTEXT = 32_768  # tokens the model takes in and gives out in one call
MAX_OUTPUT = 4096  # tokens of one answer
MIN_CONTEXT = 2048  # tokens; less holds no evidence
MAX_TIMEOUT = 3600.0

_KEYS = ("adapter", "name", "url", "key", "input_price", "output_price", "timeout", "context", "max_output", "output")


@dataclass(frozen=True, slots=True)
class Options:
    """How a model is reached and what it costs. `key` is the key itself, empty when it needs none."""

    adapter: str
    name: str
    url: str
    key: str = field(repr=False)
    prices: Prices
    timeout: float
    context: int
    max_output: int
    output: str


def parse(table: Mapping[str, Any]) -> Options:
    """Reads the table of an "openai" or "anthropic" adapter. Raises ConfigError that names the line."""
    for name in table:
        if name not in _KEYS:
            raise ConfigError(f"[model] {name} is not known: give {', '.join(_KEYS)}.")
    adapter = _one_of(table, "adapter", ADAPTERS, "openai")
    context = int(_number(table, "context", CONTEXT, MIN_CONTEXT, 10_000_000))
    return Options(
        adapter=adapter,
        name=_text(table, "name"),
        url=_url(table, ANTHROPIC_URL if adapter == "anthropic" else ""),
        key=secret(_text(table, "key")) if "key" in table else "",
        prices=Prices(_number(table, "input_price", 0, 0, 1e6), _number(table, "output_price", 0, 0, 1e6)),
        timeout=_number(table, "timeout", TIMEOUT, 0.001, MAX_TIMEOUT),
        context=context,
        max_output=min(int(_number(table, "max_output", MAX_OUTPUT, 256, 1_000_000)), context // 2),
        output=_one_of(table, "output", OUTPUTS, "tool" if adapter == "anthropic" else "schema"),
    )


def _text(table: Mapping[str, Any], name: str) -> str:
    value = table.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"[model] {name} is missing or empty: give a text.")
    return value


def _one_of(table: Mapping[str, Any], name: str, known: tuple[str, ...], default: str) -> str:
    value = table.get(name, default)
    if value not in known:
        raise ConfigError(f"[model] {name}={value!r} cannot be used: give one of {', '.join(known)}.")
    return str(value)


def _number(table: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = table.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"[model] {name}={value!r} cannot be used: give a number.")
    if not low <= value <= high:
        raise ConfigError(f"[model] {name}={value!r} cannot be used: give a number from {low:g} to {high:g}.")
    return value


def _url(table: Mapping[str, Any], default: str) -> str:
    """Checks an endpoint. A private or loopback address is the operator's own and allowed; a password in it is not:
    an address is written to logs."""
    expected = "give an address such as http://127.0.0.1:11434/v1, without a password, '?' or '#'"
    value = table.get("url", default)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"[model] url is missing: {expected}.")
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ConfigError(f"[model] url cannot be used: {expected}.") from None
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(f"[model] url cannot be used: {expected}.")
    return value.rstrip("/")
