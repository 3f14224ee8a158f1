"""The screen of ``dejq top``. Of the extra ``[top]``: imported by who knows that textual is there.

It shows what a client can tell and no more. A look at the store is taken on a thread; nothing here waits for one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import ClassVar

from rich.console import JustifyMethod
from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Label, Sparkline, Static

import dejq
from dejq._secrets import scrub
from dejq.cli.jobs import chain_of, facts, place
from dejq.cli.looks import NARROWEST, STYLES, cut
from dejq.cli.rates import Rates, per_minute
from dejq.cli.talk import since, span, visible
from dejq.info import State

# A page of jobs: nobody reads more.
_JOBS = 200
# Who only watches must not be what keeps a store busy: so much longer than a look took is the rest after it.
_REST = 9
# A cell of the table that nobody reads to its end.
_LONGEST = 1000
# Points of the curves.
_HISTORY = 120


@dataclass(frozen=True)
class View:
    """What the table shows.

    Attributes:
        name: Of the key.
        columns: Of the table; numbers stand to the right.
        beside: How much room they take beside the name of a type, which is cut to what is left.
        state: Of the jobs in it; ``None``: it shows types.
        actions: What can be done to these jobs.
    """

    name: str
    columns: tuple[str, ...]
    beside: int
    state: State | None = None
    actions: tuple[str, ...] = ()


VIEWS = {
    view.name: view
    for view in (
        View("types", ("TYPE", "READY", "SCHED", "BLOCKED", "RUN", "DONE/MIN", "FAILED", "OLDEST"), 57),
        View("running", ("ID", "TYPE", "FOR", "BEAT", "ATTEMPT", "CHAIN"), 73, "running", ("cancel",)),
        View("failed", ("ID", "TYPE", "ENDED", "CHAIN", "ERROR"), 82, "failed", ("requeue",)),
        View("ready", ("ID", "TYPE", "AGE", "CHAIN"), 58, "ready", ("cancel",)),
    )
}
_TEXTS = ("ID", "TYPE", "ERROR")


@dataclass
class Look:
    """What one look at the store has brought."""

    view: View
    filter: str
    stats: dejq.Stats | None = None
    jobs: list[dejq.JobInfo] = field(default_factory=list)
    # Why there is nothing to see: all of it, or of the jobs.
    error: str = ""
    no_jobs: str = ""


class Asking(ModalScreen[bool]):
    """A question that is answered by y or n."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "yes"),
        Binding("n,escape", "dismiss(False)", "no", key_display="n"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        yield Static(f"{self._question}  (y/n)", markup=False, id="question")


class Inspecting(ModalScreen[None]):
    """One job. Its body is shown only when asked for: it may be secret."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q", "dismiss", "back", key_display="esc"),
        Binding("b", "body", "show body"),
    ]

    def __init__(self, job: dejq.JobInfo, chain: list[dejq.JobInfo]) -> None:
        super().__init__()
        self._job, self._chain = job, chain

    def compose(self) -> ComposeResult:
        lines = []
        for name, text in facts(self._job, self._chain, datetime.now(timezone.utc)):
            lines += [f"{'' if place else name:<9}  {line}" for place, line in enumerate(text.split("\n"))]
        with VerticalScroll():
            yield Static(_safe("\n".join(lines)), markup=False, id="facts")
            yield Static("", markup=False, id="body")
        yield Footer(show_command_palette=False)

    def action_body(self) -> None:
        try:
            text = json.dumps(self._job.body, indent=2, ensure_ascii=False)
        except ValueError:
            text = self._job.raw_body.decode(errors="backslashreplace")
        self.query_one("#body", Static).update(visible(text))


class Table(DataTable[Text]):
    """The table, whose key for a row stands at the bottom where there is something to inspect."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select_cursor", "inspect")]

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return action != "select_cursor" or (isinstance(self.app, Top) and self.app.view.state is not None)


class Top(App[None]):
    """The screen.

    Args:
        client: Whose store is looked at.
        interval: Seconds between two looks.
        is_read_only: Without what changes jobs?
    """

    TITLE = "dejq top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head { background: $primary-background; height: 1; padding: 0 1; }
    #counts { height: 1; padding: 0 1; text-style: bold; }
    #curves { height: 1; padding: 0 1; }
    #curves Label { width: auto; color: $text-muted; margin: 0 1 0 0; }
    #curves Sparkline { width: 1fr; height: 1; margin: 0 2 0 0; }
    #message { height: auto; padding: 0 1; color: $text-warning; }
    #filter { height: 1; border: none; }
    Table { height: 1fr; }
    .hidden { display: none; }
    Asking, Inspecting { align: center middle; }
    #question { width: auto; height: auto; padding: 1 2; background: $panel; border: round $warning; }
    Inspecting VerticalScroll { background: $surface; padding: 1 2; }
    #body { margin: 1 0 0 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(number), f"view('{name}')", name) for number, name in enumerate(VIEWS, 1)),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("r", "operate('requeue')", "requeue"),
        Binding("c", "operate('cancel')", "cancel"),
        Binding("p", "pause", "pause"),
        Binding("space", "look", "look now", show=False),
        Binding("escape", "unfilter", "show all", show=False),
        Binding("q", "quit", "quit"),
    ]

    def __init__(self, client: dejq.Client, *, interval: float, is_read_only: bool) -> None:
        super().__init__()
        self._client, self._interval, self._is_read_only = client, interval, is_read_only
        self.view = VIEWS["types"]
        self._rates = Rates()
        self._done: list[float] = []
        self._failed: list[float] = []
        self._jobs: dict[str, dejq.JobInfo] = {}
        self._filter = ""
        self._is_paused = self._is_looking = False
        self._trouble = ""
        self._next_look = 0.0

    def compose(self) -> ComposeResult:
        yield Static("", markup=False, id="head")
        yield Static("", markup=False, id="counts")
        with Horizontal(id="curves"):
            yield Label("done/min")
            yield Sparkline([], id="done")
            yield Label("failed/min")
            yield Sparkline([], id="failed")
        yield Table(cursor_type="row")
        yield Static("", markup=False, id="message", classes="hidden")
        yield Input(
            placeholder="a part of the type's name; enter to close", id="filter", classes="hidden", compact=True
        )
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        self.query_one(Table).focus()
        self._show_head()
        self.set_interval(self._interval, self._look_again)
        self.action_look()

    # ---- looking -------------------------------------------------------------------------------------------

    def _look_again(self) -> None:
        if not self._is_paused and time.monotonic() >= self._next_look:
            self.action_look()

    def action_look(self) -> None:
        """Looks at the store, unless a look is under way."""
        if not self._is_looking:
            self._is_looking = True
            self._look(self.view, self._filter)

    @work(thread=True, group="look")
    def _look(self, view: View, filter: str) -> None:
        began = time.monotonic()
        look = Look(view, filter)
        try:
            look.stats = self._client.stats()
            if view.state is not None:
                fitting = [name for name in look.stats.by_type if filter in name]
                type = fitting[0] if filter and len(fitting) == 1 else None
                look.jobs = self._client.list_jobs(state=view.state, type=type, limit=_JOBS)
                look.jobs = [job for job in look.jobs if filter in job.type]
        except dejq.NotSupported as error:
            look.no_jobs = str(error)
        except dejq.DejqError as error:
            look.error = str(error)
        ended = time.monotonic()
        self._next_look = ended + (ended - began) * _REST
        self.call_from_thread(self._show, look)

    # ---- showing -------------------------------------------------------------------------------------------

    def _show(self, look: Look) -> None:
        self._is_looking = False
        if not self.query("#counts"):
            return  # the screen is being taken down
        self._trouble = look.error
        if look.stats is not None:
            self._rates.note(look.stats)
            self._show_counts(look.stats)
        self._show_head()
        if (look.view, look.filter) != (self.view, self._filter):
            # Something else was chosen meanwhile.
            self.action_look()
            return
        message = look.error or look.no_jobs
        # After an error, what was known last stays.
        if look.stats is not None and not message:
            rows = self._type_rows(look.stats) if look.view.state is None else self._job_rows(look)
            self._show_rows(look.view, rows)
            message = "" if rows else self._why_nothing(look)
        self._say(message)
        self.query_one(Table).set_class(bool(look.no_jobs), "hidden")

    def _why_nothing(self, look: Look) -> str:
        if self._filter:
            return f"no type here has {self._filter!r} in its name"
        if look.view.state is not None:
            return f"no jobs are {look.view.state}"
        if look.stats is not None and look.stats.bill is not None:
            return "this store tells no types apart"
        return "no jobs yet; to enqueue one: dejq enqueue TYPE JSON"

    def _show_head(self) -> None:
        live = "✗ no answer" if self._trouble else "‖ paused" if self._is_paused else f"● every {self._interval:g} s"
        only = "  read-only" if self._is_read_only else ""
        now = f"{datetime.now():%H:%M:%S}"
        self.query_one("#head", Static).update(
            _safe(f"dejq top  {self._client.store} (from {self._client.url_source})  {live}{only}  {now}")
        )

    def _show_counts(self, stats: dejq.Stats) -> None:
        def number(count: int | None) -> str:
            return "–" if count is None else f"{count:,}"

        self.query_one("#counts", Static).update(
            f"Waiting {stats.enqueued_jobs:,}  Running {number(stats.running)}  Failed {number(stats.failed)}  "
            f"Done {per_minute(self._rates.finished())}/min  Oldest {span(stats.oldest_ready)}  "
            f"Workers {number(stats.workers)}"
        )
        for curve, points, rate in (
            ("#done", self._done, self._rates.finished()),
            ("#failed", self._failed, self._rates.failed()),
        ):
            if rate is not None:
                points.append(rate)
                del points[:-_HISTORY]
            # A single point would fill the whole width.
            self.query_one(curve, Sparkline).data = list(points) if len(points) > 1 else None

    def _type_rows(self, stats: dejq.Stats) -> dict[str, list[str]]:
        def row(name: str, of: dejq.TypeStats) -> list[str]:
            counts = [
                "–" if count is None else f"{count:,}" for count in (of.ready, of.scheduled, of.blocked, of.running)
            ]
            failed = "–" if of.failed is None else f"{of.failed:,}"
            return [name, *counts, per_minute(self._rates.finished(name)), failed, span(of.oldest_ready)]

        return {name: row(name, stats.by_type[name]) for name in sorted(stats.by_type) if self._filter in name}

    def _job_rows(self, look: Look) -> dict[str, list[str]]:
        now = datetime.now(timezone.utc)

        def ago(moment: datetime | None) -> str:
            return "–" if moment is None else span(since(moment, now))

        cells: dict[str, Callable[[dejq.JobInfo], str]] = {
            "ID": lambda job: job.id,
            "TYPE": lambda job: job.type,
            "AGE": lambda job: ago(job.enqueued_at),
            "FOR": lambda job: ago(job.started_at),
            "BEAT": lambda job: ago(job.last_beat_at),
            "ENDED": lambda job: ago(job.finished_at),
            "ATTEMPT": lambda job: str(job.attempt),
            "CHAIN": place,
            "ERROR": lambda job: job.error or "",
        }
        self._jobs = {job.id: job for job in look.jobs}
        return {job.id: [cells[column](job) for column in look.view.columns] for job in look.jobs}

    def _show_rows(self, view: View, rows: dict[str, list[str]]) -> None:
        table = self.query_one(Table)
        chosen = self._chosen_key()
        where = table.scroll_offset
        table.clear(columns=True)
        for column in view.columns:
            table.add_column(column, key=column)
        room = max(self.size.width - view.beside, NARROWEST)
        for key, row in rows.items():
            cells = []
            for column, cell in zip(view.columns, row, strict=True):
                text = cut(_safe(cell).replace("\n", " "), room if column == "TYPE" else _LONGEST)
                is_bad = column == "FAILED" and cell not in ("0", "–")
                justify: JustifyMethod = "left" if column in _TEXTS else "right"
                cells.append(Text(text, justify=justify, style=STYLES["failed"] if is_bad else ""))
            table.add_row(*cells, key=key)
        if chosen in rows:
            table.move_cursor(row=table.get_row_index(chosen), scroll=False)
        table.scroll_to(*where, animate=False)

    def _say(self, text: str) -> None:
        message = self.query_one("#message", Static)
        message.update(_safe(text))
        message.set_class(not text, "hidden")

    # ---- keys ----------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Shows the keys that do something here."""
        if action == "operate":
            return not self._is_read_only and parameters[0] in self.view.actions
        return True

    def action_view(self, name: str) -> None:
        """Shows types, or jobs in a state."""
        self.view, self._jobs = VIEWS[name], {}
        self.query_one(Table).clear()
        self.refresh_bindings()
        self._say("…")
        self.action_look()

    def action_pause(self) -> None:
        """Takes no look by itself, until the next time."""
        self._is_paused = not self._is_paused
        self._show_head()

    def action_filter(self) -> None:
        """Asks for a part of a type's name."""
        field = self.query_one(Input)
        field.remove_class("hidden")
        field.focus()

    def action_unfilter(self) -> None:
        """Shows all types again."""
        field = self.query_one(Input)
        field.value = ""
        field.add_class("hidden")
        self.query_one(Table).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filters while it is typed."""
        self._filter = event.value.strip()
        self.action_look()

    def on_input_submitted(self) -> None:
        """Closes the field; what was typed stays until it is emptied."""
        field = self.query_one(Input)
        field.set_class(not field.value, "hidden")
        self.query_one(Table).focus()
        self.action_look()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Shows all that is known of a job."""
        if event.row_key.value in self._jobs:
            self._inspect(str(event.row_key.value))

    @work(thread=True, group="inspect")
    def _inspect(self, id: str) -> None:
        try:
            job = self._client.get_job(id)
            chain = chain_of(self._client, job)
        except dejq.DejqError as error:
            self.call_from_thread(self._say, str(error))
            return
        self.call_from_thread(self.push_screen, Inspecting(job, chain))

    def action_operate(self, verb: str) -> None:
        """Requeues or cancels the job under the cursor, after a question."""
        job = self._jobs.get(self._chosen_key())
        if job is None:
            return

        def answer(agreed: bool | None) -> None:
            if agreed:
                self._operate(verb, job.id)

        self.push_screen(Asking(f"{verb} {job.type} {job.id}?"), answer)

    @work(thread=True, group="operate")
    def _operate(self, verb: str, id: str) -> None:
        try:
            (self._client.requeue_job if verb == "requeue" else self._client.cancel_job)(id)
        except dejq.DejqError as error:
            self.call_from_thread(self.notify, _safe(str(error)), severity="error", markup=False)
        self.call_from_thread(self.action_look)

    def _chosen_key(self) -> str:
        table = self.query_one(Table)
        if not table.row_count:
            return ""
        return str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value)


def _safe(text: str) -> str:
    return visible(scrub(text))
