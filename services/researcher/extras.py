"""What is there only when its extra is installed: `semantic` finds by meaning, `rerank` reads passages closely."""

from collections.abc import Collection

from services.common.config import ConfigError
from services.researcher import rerank, semantic
from services.researcher.protocol import Encoder, Reranker


def encoder() -> Encoder | None:
    """Returns the encoder of the extra `semantic`; None when it is not installed. Raises ConfigError: it is broken."""
    return semantic.installed()


def reranker() -> Reranker | None:
    """Returns the re-ranker of the extra `rerank`; None when it is not installed. Raises ConfigError: it is broken."""
    return rerank.installed()


def chosen(names: Collection[str]) -> tuple[Encoder | None, Reranker | None]:
    """Returns what the operator chose of the two. Raises ConfigError for what is not installed, or broken."""
    found = encoder() if "semantic" in names else None, reranker() if "rerank" in names else None
    for name, tool in zip(("semantic", "rerank"), found, strict=True):
        if name in names and tool is None:
            text = (
                f"RESEARCHER_EXTRAS names {name}, which is not installed: run `make setup EXTRAS=1`, or leave it out."
            )
            raise ConfigError(text)
    return found
