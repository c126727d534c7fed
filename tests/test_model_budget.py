"""Asking a model keeps to its plan, its budget, its room, and its settings; the key is shown nowhere."""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from services.common.config import ConfigError
from services.researcher.model.configure import configured
from services.researcher.protocol import Evidence, ModelBudget, ModelFailed
from services.researcher.watch import Watch
from tests.model_runs import BUDGET, CLAIMS, KEY, QUESTIONS, claims, impatient, run, served
from tests.model_stub import (
    Endpoint,
    chat,
)

__all__ = ["impatient", "served"]


pytest.importorskip("pydantic_ai", reason="the extra `llm` is not installed")


def test_a_plan_is_bounded_and_clean(served: Endpoint) -> None:
    asked = ["  Which\u200b port?\n", "Which port?", "", "x" * 900, *(f"question {number}?" for number in range(30))]
    served.then(chat({"questions": asked}))
    planned = run(served).plan("Which port?", ("docs",), Watch(20))
    assert planned[0] == "Which port?" and len(planned) == 6
    assert max(map(len, planned)) == 200 and len(set(planned)) == 6
    assert "docs" in json.dumps(served.requests[0])


def test_an_empty_plan_is_the_objective(served: Endpoint) -> None:
    served.then(chat({"questions": []}))
    assert list(run(served).plan("Which port?", (), Watch(20))) == ["Which port?"]


def test_a_plan_leaves_the_last_call_for_the_claims(served: Endpoint) -> None:
    made = run(served.then(chat(CLAIMS)), ModelBudget(1, 100_000, 0))
    assert list(made.plan("Which port?", (), Watch(20))) == ["Which port?"]
    assert served.requests == [] and len(claims(made)) == 1


def test_no_calls_means_none(served: Endpoint) -> None:
    made = run(served.then(chat(CLAIMS)), ModelBudget(0, 100_000, 0))
    for ask in (lambda: claims(made), lambda: made.plan("Which port?", (), Watch(20))):
        with pytest.raises(ModelFailed, match="All 0 calls"):
            ask()
    assert served.requests == []


def test_a_budget_of_tokens_is_kept_before_a_call(served: Endpoint) -> None:
    made = run(served.then(chat(CLAIMS)), ModelBudget(8, 1000, 0))
    with pytest.raises(ModelFailed, match="model tokens"):
        claims(made)
    assert served.requests == [] and made.usage.calls == 0


def test_a_budget_of_tokens_is_kept_after_a_call(served: Endpoint) -> None:
    told = {"prompt_tokens": 4000, "completion_tokens": 1900, "total_tokens": 5900}
    made = run(served.then(chat(CLAIMS, told)), ModelBudget(8, 6500, 0), max_output=2000)
    claims(made)
    assert made.usage.input_tokens == 4000 and made.usage.output_tokens == 1900
    with pytest.raises(ModelFailed, match="model tokens"):
        claims(made)
    assert len(served.requests) == 1


def test_a_budget_of_money_is_kept(served: Endpoint) -> None:
    options = {"input_price": 3.0, "output_price": 15.0, "max_output": 1000}
    made = run(served.then(chat(CLAIMS)), ModelBudget(8, 100_000, 20_000), **options)
    claims(made)
    assert made.usage.cost_micros == 120 * 3 + 30 * 15
    assert served.requests[0]["max_completion_tokens"] <= 1000
    poor = run(served, ModelBudget(8, 100_000, 100), **options)
    with pytest.raises(ModelFailed, match=r"money|evidence"):
        claims(poor)
    assert len(served.requests) == 1


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": 10**18, "completion_tokens": 10**18, "total_tokens": 10**18},
        {"prompt_tokens": 10**40, "completion_tokens": 3, "total_tokens": 3},
        {"prompt_tokens": -500, "completion_tokens": -5, "total_tokens": -505},
        {"prompt_tokens": "many", "completion_tokens": None, "total_tokens": 1.5},
    ],
)
def test_a_count_that_cannot_be_true_is_not_believed(usage: Any, served: Endpoint) -> None:
    made = run(served.then(chat(CLAIMS, usage)))
    try:
        assert len(claims(made)) == 1
    except ModelFailed as told:
        assert str(told).endswith(".")
    assert 100 < made.usage.input_tokens < 20_000
    assert 0 <= made.usage.output_tokens < 10_000


def test_evidence_that_has_no_room_is_left_out_from_its_end(served: Endpoint) -> None:
    many = tuple(Evidence(number, "Title", (), f"passage{number} " + "word " * 300) for number in range(1, 200))
    made = run(served.then(chat({"claims": []})), context=8000, max_output=1000)
    made.synthesize("Which port?", QUESTIONS, many, Watch(20))
    said = json.dumps(served.requests[0])
    assert "passage1 " in said and "passage199" not in said
    assert len(said) < 8000 * 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "name"),
        ({"name": "m"}, "url"),
        ({"name": "", "url": "http://127.0.0.1/v1"}, "name"),
        ({"name": "m", "url": "ftp://host/v1"}, "url"),
        ({"name": "m", "url": "http://user:pass@host/v1"}, "url"),
        ({"name": "m", "url": "http://host/v1?key=secret"}, "url"),
        ({"name": "m", "url": "http://host:notaport/v1"}, "url"),
        ({"name": "m", "url": "http://host/v1", "key": "TEST_NO_SUCH_KEY"}, "TEST_NO_SUCH_KEY"),
        ({"name": "m", "url": "http://host/v1", "timeout": -1}, "timeout"),
        ({"name": "m", "url": "http://host/v1", "input_price": "cheap"}, "input_price"),
        ({"name": "m", "url": "http://host/v1", "input_price": float("nan")}, "input_price"),
        ({"name": "m", "url": "http://host/v1", "output": "xml"}, "output"),
        ({"name": "m", "url": "http://host/v1", "temperature": 1}, "temperature"),
        ({"adapter": "gemini", "name": "m", "url": "http://host/v1"}, "adapter"),
        ({"adapter": 5}, "adapter"),
        ({"adapter": "no.such.module:Class"}, "no.such.module"),
        ({"adapter": "json:NoClass"}, "json:NoClass"),
        ({"adapter": "builtins:dict"}, "run"),
    ],
)
def test_settings_that_cannot_be_used_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as failed:
        configured(options)
    assert "pass" not in str(failed.value).replace("password", "") and "secret" not in str(failed.value)


def test_nothing_of_a_model_is_imported_before_one_is_configured() -> None:
    program = "import sys, services.researcher.__main__, services.researcher.claims\n"
    program += "print([name for name in ('pydantic_ai', 'openai', 'anthropic', 'httpx2') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "services.researcher.model.client", raising=False)
    monkeypatch.setitem(sys.modules, "pydantic_ai", None)
    monkeypatch.setitem(sys.modules, "pydantic_ai.direct", None)
    with pytest.raises(ConfigError, match=r"pip install 'conductor\[llm\]'"):
        configured({"name": "m", "url": "http://127.0.0.1:1/v1"})


class Own:
    """Somebody else's adapter."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def run(self, budget: ModelBudget) -> str:
        return f"{self.options['name']} {budget.calls}"


def test_somebody_elses_adapter_is_a_class_and_a_line() -> None:
    assert configured({"adapter": "tests.test_model_budget:Own", "name": "mine"}).run(BUDGET) == "mine 8"  # type: ignore[comparison-overlap]


def test_a_key_is_shown_nowhere(served: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_MODEL_KEY", KEY)
    made = run(served.then(chat(CLAIMS)), key="TEST_MODEL_KEY")
    claims(made)
    assert served.headers[0]["authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(vars(made)) and KEY not in str(made.__dict__.get("_options"))
