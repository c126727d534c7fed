"""How documents are cut into passages."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.researcher.documents import Text
from services.researcher.passages import split
from services.researcher.watch import Watch
from tests.asking import extracted
from tests.properties import examples


def split_text(name: str, text: str) -> tuple[Text, list[Any]]:
    page = extracted(name, text.encode())
    return page, list(split(page, Watch(10)))


BLOCKS = st.sampled_from(
    ["# One\n", "## Two\n\n", "Title\n===\n", "Word. ", "Next!\n", "\n\n", "- item\n", "```\ncode\n```\n", "<!--",
     "-->", "x" * 700, "word " * 150, "é🚰", "\r\n", "| a | b |\n", "[x]: y\n", "<script>", "</script>", "\t", "1. a\n"]
)  # fmt: skip


@examples(150)
@given(st.lists(BLOCKS | st.text(max_size=5).map(lambda text: text.replace("\0", "")), max_size=30).map("".join))
def test_passages_are_slices_in_order_and_cover_what_is_visible(text: str) -> None:
    text = text.encode("utf-8", "replace").decode().removeprefix("\ufeff")
    page, passages = split_text("a.md", text)
    assert page.text == text
    position = 0
    for passage in passages:
        assert page.text[passage.start : passage.start + len(passage.text)] == passage.text
        assert passage.start >= position and 0 < len(passage.text) <= 1_600
        position = passage.start + len(passage.text)
        for heading in passage.headings:
            assert passage.start <= heading.start < position
    visible = "".join(page.text[start:end] for start, end in page.visible)
    assert "".join("".join(passage.text for passage in passages).split()) == "".join(visible.split())


def test_long_sections_are_cut_where_paragraphs_end() -> None:
    paragraph = "A sentence of some words that goes on. " * 5
    _, passages = split_text("a.md", "# Head\n\n" + f"{paragraph}\n\n" * 40)
    assert len(passages) > 3
    for passage in passages[:-1]:
        assert 1_200 <= len(passage.text) <= 1_600 and passage.text.endswith("\n\n")
        assert [heading.text for heading in passage.above] == ["Head"]


def test_headings_of_markdown() -> None:
    page, _ = split_text("a.md", "# A #\n\n## B\n```\n# no\n```\nC\n---\n\n#no\n\n| x |\n---\n\n# D\n")
    assert [(heading.level, heading.text) for heading in page.outline.headings] == [
        (1, "A"), (2, "B"), (2, "C"), (1, "D"),
    ]  # fmt: skip
