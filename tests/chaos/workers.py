"""Scripted workers for chaos runs, each a process of its own: `python -m tests.chaos.workers NAME LEDGER SEED`.

NAME is researcher or terminal. They give the known answers, take seeded time, are sometimes full, and the Terminal
writes every command it begins to the ledger, synced, before anything else: what a sandbox would never let a command do.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from conductor.v1 import researcher_pb2, researcher_pb2_grpc, terminal_pb2, terminal_pb2_grpc

from services.common.boundary import Context
from services.common.config import ResearcherSettings, TerminalSettings, load
from services.common.errors import Reason, Refusal
from services.common.server import Service, run
from tests.chaos.history import answer_of, luck_of

FULL = 0.03  # share of calls that find the worker full
SLOW = 0.15  # share of calls that take long
QUICK_S, LONG_S = (0.0, 0.3), (0.5, 2.5)
TOKEN = re.compile(r"answer to (\w+)")


class Pace:
    """Decides how long each call takes, and which is refused."""

    def __init__(self, *seed: object) -> None:
        self._luck = luck_of(*seed)

    def seconds(self) -> float:
        """Raises OVER_CAPACITY now and then."""
        if self._luck.random() < FULL:
            raise Refusal(Reason.ERROR_REASON_OVER_CAPACITY, "All hands are busy; ask again in a moment.")
        return self._luck.uniform(*(LONG_S if self._luck.random() < SLOW else QUICK_S))


class ScriptedResearcher(researcher_pb2_grpc.ResearcherServicer):
    """Finds the answer to the token that the objective names."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    async def Research(
        self, request: researcher_pb2.ResearchRequest, context: Context
    ) -> AsyncIterator[researcher_pb2.ResearchResponse]:
        seconds = self._pace.seconds()
        said = researcher_pb2.ResearchProgress(message="Reading.", step=1, total_steps=2)
        yield researcher_pb2.ResearchResponse(progress=said)
        await asyncio.sleep(seconds)
        token = TOKEN.findall(request.objective)[0]
        text = f"The answer to {token} is {answer_of(token)}."
        citation = researcher_pb2.Citation(uri="answers.md", title="Answers", quote=text, source_sha256="0" * 64)
        finding = researcher_pb2.Finding(statement=text, citations=[citation], score=1.0)
        yield researcher_pb2.ResearchResponse(result=researcher_pb2.ResearchResult(findings=[finding]))


class ScriptedTerminal(terminal_pb2_grpc.TerminalServicer):
    """Notes the command in the ledger, then answers with the hash of its token."""

    def __init__(self, pace: Pace, ledger: Path) -> None:
        self._pace = pace
        self._ledger = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    async def Run(self, request: terminal_pb2.RunRequest, context: Context) -> AsyncIterator[terminal_pb2.RunResponse]:
        seconds, token = self._pace.seconds(), request.command.env["TOKEN"]
        os.write(self._ledger, json.dumps({"call_id": request.call_id, "token": token}).encode() + b"\n")
        os.fdatasync(self._ledger)
        started = terminal_pb2.CommandStarted()
        started.started_at.GetCurrentTime()
        yield terminal_pb2.RunResponse(started=started)
        await asyncio.sleep(seconds)
        chunk = terminal_pb2.OutputChunk(
            stream=terminal_pb2.OUTPUT_STREAM_STDOUT, data=f"{answer_of(token)}\n".encode()
        )
        yield terminal_pb2.RunResponse(chunk=chunk)
        result = terminal_pb2.CommandResult(end=terminal_pb2.COMMAND_END_EXITED, exit_code=0)
        result.started_at.CopyFrom(started.started_at)
        result.ended_at.GetCurrentTime()
        yield terminal_pb2.RunResponse(result=result)

    async def GetCapabilities(
        self, request: terminal_pb2.GetCapabilitiesRequest, context: Context
    ) -> terminal_pb2.GetCapabilitiesResponse:
        return terminal_pb2.GetCapabilitiesResponse(available=True)


async def serve(stop: asyncio.Event) -> None:
    name, ledger, seed = sys.argv[1:]
    pace = Pace(seed, name, os.getpid())
    if name == "researcher":
        settings: ResearcherSettings | TerminalSettings = load(ResearcherSettings)
        service = Service(settings.listen, ["conductor.v1.Researcher"], multiplexed=True)
        researcher_pb2_grpc.add_ResearcherServicer_to_server(ScriptedResearcher(pace), service.server)
    else:
        settings = load(TerminalSettings)
        service = Service(settings.listen, ["conductor.v1.Terminal"])
        terminal_pb2_grpc.add_TerminalServicer_to_server(ScriptedTerminal(pace, Path(ledger)), service.server)
    await service.start()
    await stop.wait()
    await service.stop(settings.grace)


if __name__ == "__main__":
    run(sys.argv[1], serve)
