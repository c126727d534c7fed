"""A wire between two processes that can be cut: a TCP relay on a loopback port."""

import asyncio
import contextlib

PIECE_BYTES = 64 * 1024


class Wire:
    """Relays connections to `target` (host:port), which may be set after the wire has its own address.

    Silent, it delivers nothing and loses nothing, as a network that holds packets back until it is mended. Broken, it
    resets every connection and takes no new one.
    """

    def __init__(self) -> None:
        self.target = ""
        self.address = ""
        self._flows = asyncio.Event()
        self._flows.set()
        self._broken = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut(silently=False)

    def cut(self, *, silently: bool) -> None:
        self._flows.clear()
        if not silently:
            self._broken = True
            for writer in list(self._writers):
                writer.transport.abort()

    def mend(self) -> None:
        self._broken = False
        self._flows.set()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._broken:
            writer.transport.abort()
            return
        host, _, port = self.target.rpartition(":")
        try:
            there, back = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, back}
        self._writers |= ends
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        self._writers -= ends

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # either side may go away at any moment; so does the other then
            while piece := await source.read(PIECE_BYTES):
                await self._flows.wait()
                sink.write(piece)
                await sink.drain()
        sink.close()
