"""Subscribers that resume from their own cursor whenever their stream breaks, and record every message."""

import asyncio
from collections.abc import AsyncGenerator

from conductor.v1 import event_pb2

from tests.chaos.edge import Edge
from tests.chaos.history import Heard, Opened

PAUSE_S = (0.05, 0.5)  # before a stream is opened again


class Subscriber:
    """Follows the log from its beginning, over gRPC or as Server-Sent Events. `cursor` is how far it has come.

    Args:
        project_id: follow only this project; empty for everything.
    """

    def __init__(self, edge: Edge, *, over_sse: bool = False, project_id: str = "") -> None:
        self.edge = edge
        self.cursor = 0
        self._over_sse, self._project_id = over_sse, project_id

    async def work(self) -> None:
        """Follows until it is cancelled. Hangs up by itself now and then."""
        history, luck = self.edge.history, self.edge.luck
        while True:
            patience = luck.choice((5, 50, 10**9))
            history.add(Opened(self.edge.who, history.now(), self.cursor, self._project_id))
            stream = self._stream()
            async for event in stream:
                history.add(Heard(self.edge.who, history.now(), event))
                self.cursor = max(self.cursor, event.sequence)
                patience -= 1
                if not patience:
                    break
            await stream.aclose()
            await asyncio.sleep(luck.uniform(*PAUSE_S))

    def _stream(self) -> AsyncGenerator[event_pb2.Event, None]:
        if self._over_sse:
            return self.edge.sse(self.cursor)
        return self.edge.events(self.cursor, self._project_id)
