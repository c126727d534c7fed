"""The operator's table [model] → a model. What a model needs is imported only here, when one is configured."""

import importlib
from collections.abc import Mapping
from typing import Any, cast

from services.common.config import ConfigError
from services.researcher.model.options import ADAPTERS, parse
from services.researcher.protocol import Model


def configured(options: Mapping[str, Any]) -> Model:
    """Returns the model that the table [model] of the sources file describes.

    `adapter` is "openai" for any endpoint that speaks OpenAI's chat completions, "anthropic", or "module:Class" for
    somebody else's: the class is called with the table and must have `run` as in protocol.Model.

    Raises ConfigError for what cannot be used, a key that is not set, or the extra that is not installed.
    """
    adapter = options.get("adapter", "openai")
    if isinstance(adapter, str) and ":" in adapter:
        return _foreign(adapter, options)
    if adapter not in ADAPTERS:
        raise ConfigError(f"[model] adapter={adapter!r} is not known: give openai, anthropic or module:Class.")
    checked = parse(options)
    try:
        from services.researcher.model.client import Client

        client = Client(checked)
    except ImportError as missing:
        raise ConfigError(
            f"[model] needs the extra of language models ({missing.name} is not installed): "
            "run `pip install 'conductor[llm]'`, or take [model] out of the file."
        ) from None
    from services.researcher.model.asking import LanguageModel

    return LanguageModel(client, checked)


def _foreign(adapter: str, options: Mapping[str, Any]) -> Model:
    module, _, name = adapter.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)(options)
    except ConfigError:
        raise
    except Exception as problem:  # somebody else's code: whatever it raises, the operator must hear which line it was
        raise ConfigError(f"[model] adapter={adapter!r} cannot be used: {type(problem).__name__}: {problem}.") from None
    if not callable(getattr(made, "run", None)):
        raise ConfigError(f"[model] adapter={adapter!r} cannot be used: it has no `run` as protocol.Model has.")
    return cast(Model, made)
