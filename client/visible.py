"""What a command wrote → text that shows every byte of it and does nothing to a terminal.

Controls are shown as their pictures (␛, ␀), other characters that cannot be seen or that turn the reading direction by
their number (<U+202E>), and bytes that are no UTF-8 by their value (<FF>), as less(1) does.
"""

import re
from collections.abc import Iterable, Iterator

from conductor.v1 import terminal_pb2

_HIDDEN = re.compile(
    "[\x80-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f]")  # a tab stays
_BYTE = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of a byte that is no UTF-8 (PEP 383)
_MARKS = {terminal_pb2.OUTPUT_STREAM_STDOUT: "|", terminal_pb2.OUTPUT_STREAM_STDERR: "!"}


def visible(data: bytes) -> str:
    """Returns the bytes as one line in which every one of them can be seen."""
    text = _BYTE.sub(lambda found: f"<{ord(found[0]) - 0xDC00:02X}>", data.decode(errors="surrogateescape"))
    text = _HIDDEN.sub(lambda found: f"<U+{ord(found[0]):04X}>", text)
    return _CONTROL.sub(lambda found: "\u2421" if found[0] == "\x7f" else chr(0x2400 + ord(found[0])), text)


def output_lines(output: Iterable[terminal_pb2.OutputChunk]) -> Iterator[str]:
    """Yields a piece of output as lines: `|` before those of standard output, `!` before those of standard error."""
    for chunk in output:
        mark = _MARKS.get(chunk.stream, "?")
        for line in chunk.data.removesuffix(b"\n").split(b"\n"):
            yield f"    {mark} {visible(line)}"
