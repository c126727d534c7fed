"""The campaigns of a whole run, each made once, and the table they give."""

from tests.attacks.campaign import AFTER, CONTAINED, GROUPS, OPEN, Verdict, Verdicts, run
from tests.attacks.gaps import GAPS, gap
from tests.attacks.settings import SETTINGS, Missing, Setting

TIERS = ("strong", "standard", "none")


class Matrix:
    """Makes a campaign when it is first asked for."""

    def __init__(self) -> None:
        self._made: dict[tuple[Setting, str], Verdicts | Exception] = {}

    def verdicts(self, setting: Setting, tier: str) -> Verdicts:
        """Returns what became of all attacks. Raises Missing when the machine cannot have the tier."""
        if (setting, tier) not in self._made:
            try:
                self._made[setting, tier] = run(setting, tier)
            except Exception as error:  # whatever it was, it is told once per test and not made again for each
                self._made[setting, tier] = error
        found = self._made[setting, tier]
        if isinstance(found, Exception):
            raise found.with_traceback(None)
        return found


def names() -> dict[str, str]:
    """Returns every attack's name and the group it is in."""
    made = {attack.name: group for group, attacks in GROUPS.items() for attack in attacks}
    return made | dict.fromkeys(AFTER, "after")


def mark(name: str, verdict: Verdict | None, setting: Setting, tier: str) -> str:
    """Returns a cell of the table: `·` contained, `gap` open and named, `OPEN` open, `?` not made as written."""
    if verdict is None:
        return "–"
    if verdict.state == CONTAINED:
        return "·"
    if verdict.state == OPEN:
        return "gap" if gap(name, setting, tier) else "OPEN"
    return "?"


def table(matrix: Matrix) -> str:
    """Returns all verdicts as a Markdown table, what each group comes to, and the gaps with their reasons."""
    columns, missing = [], []
    for tier in TIERS:
        for setting in SETTINGS:
            try:
                columns.append((setting, tier, matrix.verdicts(setting, tier)))
            except Missing as reason:
                missing.append(f"* {tier}, {setting.name}: not to be had. {reason}")
    head = [f"{tier} {setting.name}" for setting, tier, _ in columns]
    lines = [f"| attack | {' | '.join(head)} |", "|---|" + "---|" * len(columns)]
    group = ""
    for name, of in names().items():
        if of != group:
            group = of
            lines.append(f"| **{of}** | " + " | ".join(_sum(of, verdicts) for _, _, verdicts in columns) + " |")
        cells = [mark(name, verdicts.get(name), setting, tier) for setting, tier, verdicts in columns]
        if set(cells) != {"·"}:
            lines.append(f"| {name} | {' | '.join(cells)} |")
    total = [_sum("", verdicts) for _, _, verdicts in columns]
    lines.append(f"| **all** | {' | '.join(total)} |")
    evidence = [
        f"* {tier}, {setting.name}, {name}: {verdict.evidence[:300]}"
        for setting, tier, verdicts in columns
        for name, verdict in verdicts.items()
        if tier != "none" and verdict.state != CONTAINED
    ]
    reasons = [f"* {', '.join(each.attacks)}: {each.reason}" for each in GAPS]
    return "\n".join([*lines, "", *missing, "", *reasons, "", *evidence])


def _sum(group: str, verdicts: Verdicts) -> str:
    states = [verdicts[name].state for name, of in names().items() if name in verdicts and of.startswith(group)]
    return f"{states.count(CONTAINED)} of {len(states)}" if states else "–"
