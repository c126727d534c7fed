"""Every attack in every setting and tier: contained, or a gap that is named. Run `python -m tests.attacks` for a table.

The attacks and how they are judged are in tests/attacks. All attacks of a setting and tier are made at once, by the
first test that asks for a group of them; each test names every attack of its group that got out.
"""

import pytest

from tests.attacks.campaign import BROKE, CONTAINED, OPEN, Verdict
from tests.attacks.gaps import GAPS, gap
from tests.attacks.matrix import Matrix, names
from tests.attacks.plain import must_get_out, run_plain
from tests.attacks.settings import SETTINGS, Missing, Setting

NOT_MADE = Verdict(BROKE, "it was not made at all")


@pytest.fixture(scope="session")
def matrix() -> Matrix:
    return Matrix()


@pytest.mark.parametrize("group", dict.fromkeys(names().values()))
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
@pytest.mark.parametrize("tier", ["strong", "standard"])
def test_attacks_are_contained(matrix: Matrix, tier: str, setting: Setting, group: str) -> None:
    try:
        verdicts = matrix.verdicts(setting, tier)
    except Missing as missing:
        pytest.skip(str(missing))
    made = {name: verdicts.get(name, NOT_MADE) for name, of in names().items() if of == group}
    out = {name: verdict for name, verdict in made.items() if verdict.state != CONTAINED}
    known = {name for name, verdict in out.items() if verdict.state == OPEN and gap(name, setting, tier)}
    told = [f"{name} is {verdict.state}: {verdict.evidence}" for name, verdict in out.items() if name not in known]
    assert made and not told, "\n".join(told)


def test_attacks_get_out_where_nothing_holds() -> None:
    """What the sandbox holds must be the sandbox's doing: from an ordinary process the same attacks get out."""
    try:
        verdicts = run_plain()
    except Missing as missing:
        pytest.skip(str(missing))
    assert {name: verdict for name, verdict in verdicts.items() if verdict.state not in (CONTAINED, OPEN)} == {}
    held = [name for name, verdict in verdicts.items() if verdict.state == CONTAINED and must_get_out(name)]
    assert held == []
    assert sum(verdict.state == OPEN for verdict in verdicts.values()) > 60


def test_every_gap_names_attacks() -> None:
    assert {name for each in GAPS for name in each.attacks} <= names().keys()
