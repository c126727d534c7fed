"""A language model's endpoint on loopback that answers as it is told, or misbehaves."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[["Handler"], None]


@dataclass
class Endpoint:
    """A running endpoint: where it is, what to do with each request (the last one again and again), what came."""

    url: str = ""
    scripts: list[Script] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)  # a client hung up while it was answered
    stopped: threading.Event = field(default_factory=threading.Event)

    def then(self, *scripts: Script) -> "Endpoint":
        self.scripts += scripts
        return self


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    endpoint: Endpoint

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        number = len(self.endpoint.requests)
        self.endpoint.requests.append({"path": self.path, **json.loads(body)})
        self.endpoint.headers.append({name.lower(): value for name, value in self.headers.items()})
        try:
            self.endpoint.scripts[min(number, len(self.endpoint.scripts) - 1)](self)
        except (BrokenPipeError, ConnectionResetError):
            self.endpoint.gone.set()
            self.close_connection = True

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextlib.contextmanager
def endpoint(*scripts: Script) -> Iterator[Endpoint]:
    """Serves the scripts on a free port."""
    made = Endpoint(scripts=list(scripts))
    handler = type("Bound", (Handler,), {"endpoint": made})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


USAGE = {"prompt_tokens": 120, "completion_tokens": 30, "total_tokens": 150}


def chat(answer: Any, usage: Any = USAGE, finish: str = "stop") -> Script:
    """Answers as OpenAI's chat completions do; `answer` is text, or a value that is sent as JSON."""
    content = answer if isinstance(answer, str) else json.dumps(answer)
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content}}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    if usage is not None:
        body["usage"] = usage
    return raw(200, json.dumps(body))


def chat_tool(arguments: str) -> Script:
    """Answers with a filled-in tool, as OpenAI's chat completions do."""
    call = {"id": "t", "type": "function", "function": {"name": "claims", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "finish_reason": "tool_calls", "message": message}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": USAGE}
    return raw(200, json.dumps(body))


def message(answer: Any, usage: Any = None) -> Script:
    """Answers as Anthropic's messages do: with a filled-in tool, or with text."""
    block = {"type": "tool_use", "id": "t", "name": "claims", "input": answer}
    if isinstance(answer, str):
        block = {"type": "text", "text": answer}
    body = {
        "id": "msg",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [block],
        "stop_reason": "end_turn" if isinstance(answer, str) else "tool_use",
        "stop_sequence": None,
        "usage": usage or {"input_tokens": 120, "output_tokens": 30},
    }
    return raw(200, json.dumps(body))


def raw(status: int, body: str | bytes, **headers: str) -> Script:
    """Answers with a status and a body as they are."""
    data = body.encode() if isinstance(body, str) else body
    return lambda handler: handler.send(status, data, **headers)


def hang(handler: Handler) -> None:
    """Never answers."""
    handler.endpoint.stopped.wait(60)


def drip(handler: Handler) -> None:
    """Answers one byte every tenth of a second, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while not handler.endpoint.stopped.wait(0.1):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def hang_up(handler: Handler) -> None:
    """Closes the connection without a word."""
    handler.close_connection = True
    handler.connection.close()


def flood(size: int) -> Script:
    """Answers with a body of `size` bytes."""

    def script(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(size))
        handler.end_headers()
        for _ in range(size // 65_536 + 1):
            handler.wfile.write(b" " * 65_536)

    return script
