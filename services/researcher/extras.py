"""What is there only when its extra is installed: `semantic` finds by meaning, `rerank` reads passages closely."""

from services.researcher import rerank, semantic
from services.researcher.protocol import Encoder, Reranker


def encoder() -> Encoder | None:
    """Returns the encoder of the extra `semantic`; None when it is not installed. Raises ConfigError: it is broken."""
    return semantic.installed()


def reranker() -> Reranker | None:
    """Returns the re-ranker of the extra `rerank`; None when it is not installed. Raises ConfigError: it is broken."""
    return rerank.installed()
