"""The client in a process of its own, so that what it uses is counted apart and it waits for nobody else's loop.

`python -m bench.client ADDRESS` takes lines of JSON, `[name of a function of bench.driver, argument …]`, runs each on
one connection, and answers with a line: the result and the CPU seconds of this process so far.
"""

import asyncio
import contextlib
import json
import sys
import time
from typing import Any

import grpc
import uvloop
from conductor.v1 import conductor_pb2_grpc

from bench import driver

ANSWER_BYTES = 2**26
CALL_S = 900.0  # longer than anything takes that goes well


class Client:
    """Calls functions of bench.driver in another process.

    Attributes:
        cpu_seconds: what that process had used after the last call.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.cpu_seconds = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls, address: str) -> "Client":
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-m", "bench.client", address]
        return cls(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=ANSWER_BYTES))

    async def call(self, name: str, *arguments: Any) -> Any:
        """Runs `driver.<name>(stub, *arguments)` and returns its result. Raises RuntimeError or TimeoutError."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write((json.dumps([name, *arguments]) + "\n").encode())
        async with asyncio.timeout(CALL_S):
            answer = await self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the client failed in {name}; its error stands above")
        result, self.cpu_seconds = json.loads(answer)
        return result

    async def close(self) -> None:
        """Ends the process, whatever it is doing."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


async def main(address: str) -> None:
    async with grpc.aio.insecure_channel(address, driver.CHANNEL_OPTIONS) as channel:
        stub = conductor_pb2_grpc.ConductorStub(channel)
        while line := await asyncio.to_thread(sys.stdin.readline):
            name, *arguments = json.loads(line)
            result = await getattr(driver, name)(stub, *arguments)
            print(json.dumps([result, time.process_time()]), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
