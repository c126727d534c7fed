"""HTTP for a model's client: no proxy from the environment, no redirect, no compression, an answer of bounded size."""

import ssl
from collections.abc import AsyncIterator
from functools import cache

import httpx2

MAX_ANSWER = 2 * 1024 * 1024  # bytes of one answer; the longest useful one is some ten thousand tokens
MAX_CONNECTIONS = 64


class TooLarge(httpx2.TransportError):
    """The answer is larger than MAX_ANSWER."""


class _Counted(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        total = 0
        async for chunk in self._inner:
            total += len(chunk)
            if total > MAX_ANSWER:
                raise TooLarge(f"more than {MAX_ANSWER} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Capped(httpx2.AsyncHTTPTransport):
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.headers["Accept-Encoding"] = "identity"
        response = await super().handle_async_request(request)
        if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            await response.aclose()
            raise TooLarge("compressed although that was not asked for")
        assert isinstance(response.stream, httpx2.AsyncByteStream)  # noqa: S101 (narrows the library's type)
        return httpx2.Response(
            response.status_code,
            headers=response.headers,
            stream=_Counted(response.stream),
            extensions=response.extensions,
        )


@cache
def _trusted() -> ssl.SSLContext:
    return ssl.create_default_context()


def http_client(timeout: float) -> httpx2.AsyncClient:
    """Returns a client whose every wait ends after `timeout` seconds; the whole call needs a deadline of its own."""
    limits = httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=4)
    transport = _Capped(verify=_trusted(), trust_env=False, limits=limits)
    return httpx2.AsyncClient(transport=transport, timeout=timeout, follow_redirects=False, trust_env=False)
