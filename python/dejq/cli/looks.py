"""How tables and progress look. Piped: plain and whole. On a terminal: cut to its width, in colours where rich is.

rich comes with the extra ``[cli]``. The words are the same without it, and with ``NO_COLOR``.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TextIO

from dejq._secrets import scrub
from dejq.cli.talk import progress, visible

if TYPE_CHECKING:
    from rich.console import Console

# By the word that stands in a cell: nothing is said by colour alone.
STYLES = {
    "ok": "green",
    "warn": "yellow",
    "error": "bold red",
    "ready": "bold",
    "running": "cyan",
    "finished": "green",
    "failed": "red",
    "cancelled": "magenta",
}

_GAP = "  "
# What is left of a column that gives way.
NARROWEST = 12


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        name: Stands above it.
        is_number: Its cells stand to the right.
        gives_way: Its cells are cut when the terminal is too narrow.
        is_spare: It is left out then, if it has nothing but zeros.
    """

    name: str
    is_number: bool = False
    gives_way: bool = False
    is_spare: bool = False


def show_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, wraps: bool = False) -> None:
    """Prints a table on stdout.

    Args:
        columns: In order. If none has a name, there is no head.
        rows: A cell for each column.
        wraps: On a terminal, the last column goes on in further lines; otherwise, what does not fit is cut.
    """
    cells = [[visible(scrub(cell)).replace("\n", " ") for cell in row] for row in rows]
    width = _width_of(sys.stdout)
    if wraps and width is not None:
        cells = list(_wrapped(cells, width))
    lines = list(layout(columns, cells, width))
    has_head = any(column.name for column in columns)
    console = _console(sys.stdout)
    if console is None:
        print("\n".join("".join(line).rstrip() for line in lines[not has_head :]), flush=True)
        return
    from rich.text import Text

    for place, line in enumerate(lines):
        if has_head or place:
            style = "" if place else "bold"
            text = Text.assemble(*((cell, style or STYLES.get(cell.strip(), "")) for cell in line))
            text.rstrip()
            console.print(text, soft_wrap=True)


def layout(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None = None) -> Iterator[list[str]]:
    """The cells of each line, the head first, padded so that they stand one below the other.

    Args:
        columns: In order.
        rows: A cell for each column.
        width: What a line may have; ``None``: whatever it takes.
    """
    table = [[column.name for column in columns], *rows]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]

    def too_much() -> int:
        shown = [size for size in widths if size]
        return 0 if width is None else sum(shown) + len(_GAP) * (len(shown) - 1) - width

    if too_much() > 0:
        for place, column in enumerate(columns):
            if column.is_spare and all(row[place] in ("0", "–") for row in rows):
                widths[place] = 0
        for place, column in reversed(list(enumerate(columns))):
            if column.gives_way and (excess := too_much()) > 0:
                widths[place] = max(widths[place] - excess, min(NARROWEST, widths[place]))
    for row in table:
        line = [
            cut(cell, size).rjust(size) if column.is_number else cut(cell, size).ljust(size)
            for column, cell, size in zip(columns, row, widths, strict=True)
            if size
        ]
        room = sys.maxsize if width is None else width
        parts = line[:1]
        for cell in line[1:]:
            room -= len(parts[-1]) + len(_GAP)
            if room > 0:
                parts += [_GAP, cut(cell, room)]
        yield parts


def _wrapped(rows: Sequence[list[str]], width: int) -> Iterator[list[str]]:
    """Rows whose last cells fit, and further ones with what did not."""
    before = sum(max(map(len, cells)) + len(_GAP) for cells in list(zip(*rows, strict=True))[:-1])
    for row in rows:
        for place, part in enumerate(textwrap.wrap(row[-1], max(width - before, 2 * NARROWEST))):
            yield [*("" if place else cell for cell in row[:-1]), part]


def cut(text: str, width: int) -> str:
    """What fits into a width, with a sign that there is more."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…" * (width > 0)


@contextmanager
def shown_progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Shows on a terminal how far something has come; gives a function that is told so.

    Args:
        what: What is done: "requeueing".
        total: How much there is to do, if that is known.
    """
    console = _console(sys.stderr)
    if console is None:
        of = "" if total is None else f" of {total:,}"
        try:
            yield lambda done: progress(f"{what} {done:,}{of} …")
        finally:
            progress("")
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    some = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    parts = some if total is not None else (TextColumn("{task.completed:,}"),)
    with Progress(TextColumn("{task.description}"), *parts, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def clear_screen() -> None:
    """Before a table that replaces the one before it, on a terminal."""
    if sys.stdout.isatty():
        print("\x1b[H\x1b[2J", end="", flush=True)


def _width_of(stream: TextIO) -> int | None:
    return shutil.get_terminal_size().columns if stream.isatty() else None


def _console(stream: TextIO) -> Console | None:
    """rich's, if it is installed and `stream` is a terminal."""
    if not stream.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=stream, highlight=False, markup=False, emoji=False)
