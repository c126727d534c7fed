"""Researchers for tests: a servicer of the whole service in this process, or a process of its own, and a stub to it."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from conductor.v1 import researcher_pb2, researcher_pb2_grpc

from services.common.config import ResearcherSettings, load
from services.common.server import Service
from services.researcher.__main__ import assembled
from services.researcher.service import FULL_NAME

PROJECT = Path(__file__).parents[1]


def settings_of(folder: Path, *roots: Path, **environ: str) -> dict[str, str]:
    """Returns the environment of a Researcher that keeps what is its own below `folder`."""
    names = {
        "RESEARCHER_LISTEN": "127.0.0.1:0",
        "RESEARCHER_ROOTS": os.pathsep.join(map(str, roots)),
        "RESEARCHER_HOME": str(folder / "home"),
        "RESEARCHER_REPORTS": str(folder / "reports"),
    }
    return names | {f"RESEARCHER_{name.upper()}": value for name, value in environ.items()}


@contextlib.asynccontextmanager
async def serving(folder: Path, *roots: Path, **environ: str) -> AsyncIterator[Any]:
    """Serves in this process and gives a stub."""
    settings = load(ResearcherSettings, settings_of(folder, *roots, **environ))
    async with assembled(settings) as servicer:
        service = Service(settings.listen, [FULL_NAME])
        researcher_pb2_grpc.add_ResearcherServicer_to_server(servicer, service.server)
        await service.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{service.port}") as channel:
                yield researcher_pb2_grpc.ResearcherStub(channel)
        finally:
            await service.stop(0)


@contextlib.asynccontextmanager
async def started(
    folder: Path, *roots: Path, before: str = "", **environ: str
) -> AsyncIterator[tuple[Any, asyncio.subprocess.Process]]:
    """Starts a Researcher as a process and gives a stub to it; kills it at the end if it still runs.

    Args:
        before: Python that its process runs first, for example to make a batch of an index smaller.
    """
    names = settings_of(folder, *roots, **environ) | {"PATH": os.environ["PATH"]}
    program = f"{before}\nfrom services.researcher.__main__ import main\nmain()"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=PROJECT, env=names, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        line = ""
        while "listening on" not in line:
            line = (await asyncio.wait_for(process.stderr.readline(), 30)).decode()
            assert line, "it ended before it listened"
        port = line.rpartition(":")[2].strip()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield researcher_pb2_grpc.ResearcherStub(channel), process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def events(call: Any) -> list[researcher_pb2.ResearchResponse]:
    """Returns all that a stream brings."""
    return [event async for event in call]
