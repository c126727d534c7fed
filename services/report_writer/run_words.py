"""The pieces of a run's report: sentences, lists, tables and pictures that hold untrusted text and stay what they are.

What comes in is plain text; what goes out is markdown.
"""

import re
from collections.abc import Iterable, Sequence

from services.report_writer.escape import inline

LIST_ITEMS = 50  # shown of a list or table
_CODE = re.compile(r"(?<!\\)`")  # where a code span begins in what `inline` returns
_PICTURED = "¦"  # instead of a pipe in a code span, where no backslash keeps it from ending the cell


def cell(text: str) -> str:
    """Returns a text as one cell of a table (GFM): `inline`, and no pipe ends it."""
    shown = inline(text)
    return inline(text.replace("|", _PICTURED)) if _CODE.search(shown) else shown


def table(head: Sequence[str], lines: Iterable[Sequence[str]], limit: int = LIST_ITEMS) -> str:
    """Returns a table of cells that are markdown already, "" without lines. What is beyond the limit is counted."""
    found = list(lines)
    if not found:
        return ""
    shown = ["| " + " | ".join(line) + " |\n" for line in (head, ["---"] * len(head), *found[:limit])]
    return "".join(shown) + more(len(found) - limit)


def bullets(lines: Iterable[str], limit: int = LIST_ITEMS) -> str:
    """Returns a list of lines that are markdown already. What is beyond the limit is counted."""
    found = [line for line in lines if line]
    return "".join(f"- {line}\n" for line in found[:limit]) + more(len(found) - limit)


def more(left_out: int) -> str:
    """Returns a paragraph that says how many are not shown, "" when all are."""
    return f"\n… and {left_out:,} more.\n" if left_out > 0 else ""


def paragraph(*sentences: str) -> str:
    """Returns sentences that are markdown already as one paragraph, "" without any."""
    found = " ".join(sentence for sentence in sentences if sentence)
    return f"{found}\n" if found else ""


def several(names: Sequence[str], limit: int = 12) -> str:
    """Returns plain names as markdown, with commas; what is beyond the limit is counted."""
    shown = ", ".join(inline(name) for name in names[:limit])
    left_out = len(names) - limit
    return f"{shown} and {left_out:,} more" if left_out > 0 else shown


def counted(count: int, what: str) -> str:
    """Returns `1 row`, `2 rows`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def size(count: int) -> str:
    """Returns a number of bytes as people read it."""
    for unit, factor in (("MB", 1_000_000), ("kB", 1_000)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count} B"
