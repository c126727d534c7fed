"""What a client of a model gives back for one call, and the ways a call fails."""

from dataclasses import dataclass
from typing import Any, Protocol

from services.researcher.model.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it came. Token counts are the provider's; 0 when it gave none."""

    answer: str | dict[str, Any]
    input_tokens: int
    output_tokens: int
    cut: bool  # the answer ended at its longest allowed length


@dataclass(frozen=True, slots=True)
class Exchange:
    """An answer that could not be read, and what was said to that."""

    answer: str
    problem: str


class CallFailed(Exception):
    """One call gave no answer.

    Attributes:
        again: whether the same call may work a moment later.
        after: seconds the provider asked to wait; None when it named none.
        billed: whether the provider may have worked, and counted, before it failed.
    """

    def __init__(self, detail: str, *, again: bool, after: float | None = None, billed: bool = False) -> None:
        super().__init__(detail)
        self.again = again
        self.after = after
        self.billed = billed


class Caller(Protocol):
    """Makes one call of a model."""

    async def call(self, prompt: Prompt, before: Exchange | None, most: int) -> Reply:
        """Returns the answer, of at most `most` tokens. Raises CallFailed."""
