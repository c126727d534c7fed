"""The forms a model's answers must have (pydantic), and reading what came against them."""

import re
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_PROBLEMS = 3  # told to the model when it is asked again

_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)


class Plan(BaseModel):
    """The questions an objective consists of."""

    model_config = ConfigDict(extra="ignore")
    questions: list[str] = Field(description="the questions, in the objective's order", max_length=64)


class QuoteForm(BaseModel):
    """A quote, and the number of the evidence it is copied from."""

    model_config = ConfigDict(extra="ignore")
    evidence: int = Field(description="number of the evidence")
    quote: str = Field(description="copied from it, character for character")


class ClaimForm(BaseModel):
    """One claim with what bears it out."""

    model_config = ConfigDict(extra="ignore")
    question: int = Field(description="number of the question it answers")
    text: str = Field(description="one sentence")
    quotes: list[QuoteForm] = Field(max_length=64)


class Claims(BaseModel):
    """The claims, the most direct one first."""

    model_config = ConfigDict(extra="ignore")
    claims: list[ClaimForm] = Field(max_length=1000)


Form = TypeVar("Form", bound=BaseModel)


class Misshapen(Exception):
    """An answer does not have the form. The text says how, without repeating what it holds."""


def read(form: type[Form], answer: str | dict[str, Any]) -> Form:
    """Reads an answer, JSON as text or already parsed. Raises Misshapen."""
    try:
        if isinstance(answer, dict):
            return form.model_validate(answer)
        return form.model_validate_json(_bare(answer))
    except ValidationError as problem:
        raise Misshapen(_told(problem)) from None


def _bare(answer: str) -> str:
    """Takes off what models like to put around JSON: a fence of Markdown, a word before and after."""
    text = answer.strip()
    if not text:
        raise Misshapen("it was empty.")
    fenced = _FENCED.search(text)
    if fenced is not None and not text.startswith("{"):
        return fenced[1]
    start, end = text.find("{"), text.rfind("}")
    return text[start : end + 1] if 0 <= start < end else text


def _told(problem: ValidationError) -> str:
    told = []
    for error in problem.errors(include_url=False, include_context=False, include_input=False)[:MAX_PROBLEMS]:
        place = ".".join(str(part) for part in error["loc"]) or "answer"
        told.append(f"{place}: {error['msg']}")
    return "; ".join(told) + "."
