"""Reports to draw and ways to read them as Markdown."""

from conductor.v1 import report_writer_pb2, researcher_pb2, terminal_pb2
from markdown_it import MarkdownIt
from markdown_it.token import Token

from services.report_writer import report


def parse(markdown: str) -> list[Token]:
    # HTML on, so that raw HTML would show up as a token; tables and strike-through as GitHub has them.
    return MarkdownIt("js-default", {"html": True, "linkify": False}).parse(markdown)


def walk(tokens: list[Token]) -> list[Token]:
    return [inner for token in tokens for inner in (token, *(token.children or ()))]


def text_of(token: Token) -> str:
    return "".join(" " if child.type == "softbreak" else child.content for child in token.children or ())


def headings(tokens: list[Token]) -> list[str]:
    return [text_of(tokens[i + 1]) for i, token in enumerate(tokens) if token.type == "heading_open"]


def links(tokens: list[Token]) -> list[tuple[str, str]]:
    """Returns where each link leads, and what it shows."""
    all_of_them = walk(tokens)
    opened = [place for place, token in enumerate(all_of_them) if token.type == "link_open"]
    return [(str(all_of_them[place].attrGet("href")), all_of_them[place + 1].content) for place in opened]


def request(objective: str = "What is durable?") -> report_writer_pb2.WriteReportRequest:
    made = report_writer_pb2.WriteReportRequest(task_id="t-1", objective=objective)
    made.provenance.correlation_id = "c-1"
    return made


def finding(statement: str, quote: str | None = None, uri: str = "docs/a.md") -> researcher_pb2.Finding:
    made = researcher_pb2.Finding(statement=statement)
    citation = made.citations.add(uri=uri, title="A", quote=statement if quote is None else quote)
    citation.locator.line_start, citation.locator.line_end = 3, 4
    citation.locator.heading_path.extend(["Promises", "Durable"])
    return made


def record(*argv: str, code: int = 0, stdout: bytes = b"", stderr: bytes = b"") -> report_writer_pb2.CommandRecord:
    result = terminal_pb2.CommandResult(end=terminal_pb2.COMMAND_END_EXITED, exit_code=code)
    return report_writer_pb2.CommandRecord(
        command=terminal_pb2.Command(argv=argv), result=result, stdout=stdout, stderr=stderr
    )


def drawn(made: report_writer_pb2.WriteReportRequest) -> str:
    return report.render(made).decode()


def everywhere(text: str) -> report_writer_pb2.WriteReportRequest:
    """A request with the text in every field a worker or a person can fill."""
    made = request(text or "x")
    found = made.findings.add(statement=text)
    citation = found.citations.add(uri=text, title=text, quote=text, source_sha256=text)
    citation.locator.heading_path.extend([text, text])
    made.findings.add(statement=f"other {text}")
    command = made.commands.add(stdout=text.encode(), stderr=text.encode())
    command.command.script = text
    command.command.env[text] = text
    command.result.isolation.layers.append(text)
    command.result.isolation.not_enforced.append(text)
    command.result.files.add(path=text, sha256=text)
    command.artifacts.add(name=f"{text}.stdout")
    command.artifacts.add(name=f"{text}.stderr").error.message = text
    citation.locator.sheet = citation.locator.cells = text
    made.answer.add(text=text, findings=[0, 1])
    made.sub_questions.add(text=text, findings=[0])
    made.sub_questions.add(text=f"2 {text}", findings=[0])
    made.contradictions.add(subject=text, one=0, other=1, detail=text)
    made.searched.add(name=text, kind=researcher_pb2.SOURCE_KIND_WEB, queries=[text, text])
    made.usage.model, made.usage.model_calls = text, 1
    made.gaps.add(kind=researcher_pb2.GAP_KIND_NOT_FOUND, subject=text, detail=text)
    made.research_id = text
    made.provenance.project_id = made.provenance.conductor_version = text
    made.provenance.workers.add(service=text, call_id=text)
    return made
