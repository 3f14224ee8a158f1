"""What a run was and what came of it: for people (Markdown, a picture) and for programs (JSON)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any, Final

import msgspec

from soak.case import SECOND, Case, build
from soak.checker import Judgement
from soak.history import (
    Asked,
    Entry,
    Exited,
    Fault,
    Found,
    Healed,
    History,
    Operated,
    Operating,
    Phase,
    Poisoned,
    Started,
)
from soak.trial import Finding
from soak.verdicts import VERDICTS

# Of many findings of a kind, the first ones say it all.
_SHOWN: Final = 10
_EVENTS: Final = 20
_COLOURS: Final = {"kill": "#c0392b", "pause": "#8e44ad", "hole": "#2980b9", "restart": "#d35400", "sleep": "#16a085"}


def write(folder: Path, history: History, judgement: Judgement) -> None:
    """Puts report.md, report.json and throughput.svg into the folder."""
    case = build(history)
    (folder / "report.md").write_text(_markdown(case, history, judgement))
    (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(_json(case, judgement))))
    (folder / "throughput.svg").write_text(picture(case))


def verdict(judgement: Judgement) -> str:
    """The last line."""
    return f"{len(judgement.passed)} passed, {len(judgement.failed)} failed"


def summary(case: Case, judgement: Judgement) -> str:
    """The run in one sentence."""
    figures, faults = judgement.figures, Counter(span.name for span in case.spans)
    what = ", ".join(f"{count} {name}" for name, count in sorted(faults.items())) or "no faults"
    causes = ", ".join(f"{count} {name}" for name, count in judgement.causes.most_common()) or "none"
    return (
        f"{figures['jobs']:,.0f} jobs on {case.began.store} in {figures['seconds']:.0f} s with {what}: "
        f"{len(judgement.findings)} findings; second starts, each with its cause: {causes}"
    )


def _json(case: Case, judgement: Judgement) -> dict[str, Any]:
    return {
        "command": case.began.command,
        "store": case.began.store,
        "seed": case.began.seed,
        "passed": judgement.passed,
        "failed": judgement.failed,
        "findings": [vars(finding) for finding in judgement.findings],
        "figures": judgement.figures,
        "causes": dict(judgement.causes),
        "reached": dict(judgement.reached),
        "faults": dict(Counter(span.name for span in case.spans)),
        "counts": case.counts,
    }


def _markdown(case: Case, history: History, judgement: Judgement) -> str:
    found = Counter(finding.verdict for finding in judgement.findings)
    lines = [
        f"# Soak of {case.began.store}, seed {case.began.seed}: {verdict(judgement)}",
        "",
        summary(case, judgement) + ".",
        "",
        f"    {case.began.command}",
        "",
        "![throughput](throughput.svg)",
        "",
        "| | promises | | findings |",
        "|---|---|---|---|",
        *(f"| {each.name} | {each.promises} | {each.title} | {found[each.name]} |" for each in VERDICTS),
        "",
        *_table("figure", judgement.figures.items()),
        *_table("cause of a second start", judgement.causes.most_common()),
        *_table("what the run has seen", sorted(judgement.reached.items())),
    ]
    shown: Counter[str] = Counter()
    for finding in judgement.findings:
        shown[finding.verdict] += 1
        if shown[finding.verdict] <= _SHOWN:
            lines += _evidence(case, history, finding)
    lines += [f"{count} findings of {name}, {_SHOWN} shown." for name, count in shown.items() if count > _SHOWN]
    return "\n".join(lines) + "\n"


def _table(title: str, rows: Iterable[tuple[str, object]]) -> list[str]:
    return [f"| {title} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]


def _evidence(case: Case, history: History, finding: Finding) -> list[str]:
    lines = [f"## {finding.verdict}: {finding.text}", ""]
    if finding.job is not None:
        lines += [f"Job {finding.job}.", ""]
    events = around(case, history, finding)
    if events:
        begin = case.phases.get("load", 0)
        lines += ["```text", *(_line(entry, begin) for entry in events), "```", ""]
    return lines


def around(case: Case, history: History, finding: Finding) -> list[Entry]:
    """The events of the finding's chain, and of what went wrong about that time; those nearest to it."""
    job = case.jobs.get(finding.job) if finding.job is not None else None
    at = finding.at if finding.at is not None else None
    numbers = {each.number for each in job.chain.jobs} if job else set[int]()
    runs = {(run.worker.name, run.event.run) for number in numbers for run in case.jobs[number].runs}

    def matters(process: str, event: Any) -> bool:
        if isinstance(event, (Fault, Healed, Exited, Poisoned, Phase)):
            return at is not None and abs(event.at - at) < 3 * case.lease
        if isinstance(event, (Started, Operating)):
            return event.job in numbers
        if isinstance(event, Asked):
            return any(chain.first in numbers for chain in event.chains)
        if isinstance(event, (Operated, Found)) or not job:
            return False
        if getattr(event, "call", None) is not None:
            return process == job.chain.call.process and event.at == job.chain.call.answered
        return (process, getattr(event, "run", None)) in runs

    found = [entry for entry in history if matters(*entry)]
    if at is not None:
        found.sort(key=lambda entry: abs(entry.event.at - at))
    return sorted(found[:_EVENTS], key=lambda entry: entry.event.at)


def _line(entry: Entry, begin: int) -> str:
    process, event = entry
    what = msgspec.json.encode(event).decode()
    return f"{(event.at - begin) / SECOND:10.4f} {process:8} {what[:180]}{'…' if len(what) > 180 else ''}"


def picture(case: Case) -> str:
    """Ends of handlers for each half second, with the faults above them, as SVG."""
    begin, end = case.phases.get("load", 0), case.phases.get("end", case.last)
    step = SECOND // 2
    bins = max(1, (end - begin) // step + 1)
    counts = Counter((run.end - begin) // step for run in case.runs if run.end is not None)
    most = max(counts.values(), default=1)
    width, height, top, left = 1000, 240, 60, 60
    across = (width - left - 10) / bins

    def x(at: int) -> float:
        return left + (at - begin) / step * across

    title = escape(f"{case.began.store}, seed {case.began.seed}: ends of handlers per second")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height + top + 30}"',
        ' font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="14">{title}</text>',
    ]
    for span in case.spans:
        colour, wide = _COLOURS.get(span.name, "#7f8c8d"), max(1.5, x(span.end) - x(span.begin))
        title = f"{span.name} of {span.target or 'the store'}"
        parts.append(
            f'<rect x="{x(span.begin):.1f}" y="{top - 20}" width="{wide:.1f}" height="{height + 20}" fill="{colour}" '
            f'fill-opacity="0.25"><title>{escape(title)}</title></rect>'
        )
    for place in range(bins):
        tall = counts[place] / most * height
        parts.append(
            f'<rect x="{left + place * across:.1f}" y="{top + height - tall:.1f}" width="{max(0.5, across - 0.5):.1f}" '
            f'height="{tall:.1f}" fill="#34495e"/>'
        )
    for share in (0, 0.5, 1):
        y = top + height - share * height
        parts.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{most * 2 * share:.0f}</text>')
    parts += (
        f'<text x="{left + place * across:.1f}" y="{top + height + 16}">{place // 2} s</text>'
        for place in range(0, bins, max(1, bins // 10))
    )
    parts += (
        f'<text x="{left + number * 90}" y="32" fill="{colour}">■ {name}</text>'
        for number, (name, colour) in enumerate([*_COLOURS.items(), ("other", "#7f8c8d")])
    )
    return "\n".join([*parts, "</svg>", ""])
