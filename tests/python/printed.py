"""What a program prints, compared with what its reader was told."""

from __future__ import annotations

from collections.abc import Sequence


def assert_printed(printed: str, lines: Sequence[str], *, in_any_order: bool) -> None:
    if not in_any_order:
        assert printed.splitlines() == list(lines)
        return
    # print() writes the text and the line end apart: what two threads print at once may share a line.
    rest = printed
    for line in sorted(lines, key=len, reverse=True):
        assert line in rest, printed
        rest = rest.replace(line, "", 1)
    assert rest == "\n" * len(lines), printed
