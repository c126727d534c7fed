"""The Python client of `conductor.v1.Researcher`, for operators: sources, researches, and whether citations still hold.

It talks to the Researcher itself: the edge does not route to workers. Every method raises ConductorError.
"""

from collections.abc import Iterable, Iterator

from conductor.v1 import researcher_pb2, researcher_pb2_grpc

from client.calls import Connection

DEFAULT_RESEARCHER = "127.0.0.1:50052"
VERIFY_S = 120.0  # a source may be a large file, or a page that comes slowly


class ResearcherClient:
    """A connection to a Researcher. Calls that are safe to repeat are repeated while nothing can be reached.

    Args:
        target: host:port of the Researcher.
        timeout: seconds one try of a call may take.
        retry_for: seconds to go on repeating a call while it is unavailable.
        resume_for: seconds to go on resuming a stream from which nothing comes.
    """

    def __init__(
        self,
        target: str = DEFAULT_RESEARCHER,
        timeout: float = 30.0,
        retry_for: float = 3.0,
        resume_for: float = 30.0,
    ) -> None:
        self._connection = Connection(target, timeout, retry_for, resume_for)
        self._stub = researcher_pb2_grpc.ResearcherStub(self._connection.channel)

    def __enter__(self) -> "ResearcherClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and every stream on it."""
        self._connection.channel.close()

    # Sources

    def sources(self) -> list[researcher_pb2.Source]:
        """Returns all sources, by name."""
        answer = self._connection.repeated(self._stub.ListSources, researcher_pb2.ListSourcesRequest())
        return list(answer.sources)

    def add_source(
        self,
        name: str,
        path: str,
        *,
        kind: researcher_pb2.SourceKind.ValueType = researcher_pb2.SOURCE_KIND_FOLDER,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
    ) -> researcher_pb2.Source:
        """Adds a source, or replaces the added one of this name; `path` is `<root>/<path>`."""
        request = researcher_pb2.AddSourceRequest(name=name, kind=kind, path=path, include=include, exclude=exclude)
        return self._connection.repeated(self._stub.AddSource, request)

    def index_source(self, name: str) -> Iterator[researcher_pb2.IndexSourceResponse]:
        """Yields how far the indexing of a source is, and last the source. Leaving it early stops the work."""
        request = researcher_pb2.IndexSourceRequest(name=name)
        return self._connection.streamed(self._stub.IndexSource, request)

    def remove_source(self, name: str) -> None:
        """Removes a source. Tried once: a repeat could not tell its own success from a source that never was."""
        self._connection.once(self._stub.RemoveSource, researcher_pb2.RemoveSourceRequest(name=name))

    # Researches

    def research(self, research_id: str) -> researcher_pb2.ResearchRecord:
        """Returns a research as far as it has come."""
        request = researcher_pb2.GetResearchRequest(research_id=research_id)
        return self._connection.repeated(self._stub.GetResearch, request)

    def watch(self, research_id: str, after_sequence: int = 0) -> Iterator[researcher_pb2.ResearchResponse]:
        """Yields the events of a research behind a sequence, each once, over as many broken connections as it takes.

        The result is the last one.
        """
        request = researcher_pb2.WatchResearchRequest(research_id=research_id, after_sequence=after_sequence)
        for event in self._connection.resumed(self._stub.WatchResearch, request):
            yield event
            if event.WhichOneof("event") == "result":
                return

    def cancel(self, research_id: str) -> researcher_pb2.ResearchRecord:
        """Stops a research; what it found by then is its result. Does nothing to one that ended."""
        request = researcher_pb2.CancelResearchRequest(research_id=research_id)
        return self._connection.repeated(self._stub.CancelResearch, request)

    def verify(self, citation: researcher_pb2.Citation) -> researcher_pb2.VerifyCitationResponse:
        """Reads the source of a citation again and says whether the quote still stands there."""
        request = researcher_pb2.VerifyCitationRequest(citation=citation)
        return self._connection.repeated(self._stub.VerifyCitation, request, VERIFY_S)
