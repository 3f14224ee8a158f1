"""``dejq doctor``: what is wrong, or will be."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace

import dejq
from dejq._settings import project_settings
from dejq.cli.app import client_of
from dejq.cli.flags import APP, JSON, URL, switch, verb
from dejq.cli.looks import Column, show_table
from dejq.cli.talk import FAILED, NO_SCHEMA, OK, CommandError, close, exit_code, show_json

AUDIT, REPAIR = (
    replace(switch(name, help), in_environment=False)
    for name, help in (
        ("--audit", "look at each job, too: is it in one place, and counted? (Redis)"),
        ("--repair", "an audit that sets right what it finds"),
    )
)


@verb("dejq doctor app:client", APP, URL, AUDIT, REPAIR, JSON)
def doctor(given: argparse.Namespace) -> int:
    """Looks for what is wrong, or will be.

    The exit code is 1 if there is an error; if the store cannot be reached or is not set up, it is that code.
    """
    version = ".".join(map(str, sys.version_info[:3]))
    findings = [dejq.Finding(level="ok", name="dejq", text=f"{dejq.__version__}, Python {version}, {sys.platform}")]
    code = OK
    try:
        findings += _settings()
        client = client_of(given, first="app")
        if given.repair:
            # Before the check, which then finds nothing any more.
            findings += client.audit(repair=True)
        findings += client.check()
        if given.audit and not given.repair:
            findings += client.audit()
    except (CommandError, dejq.DejqError) as error:
        code = exit_code(error)
        findings.append(dejq.Finding(level="error", name="client", text=str(error)))
    if given.json:
        show_json([asdict(finding) for finding in findings])
    else:
        rows = []
        for finding in findings:
            rows.append([f"{finding.level:<5}", finding.name, finding.text])
            if finding.fix:
                rows.append(["", "", f"fix: {finding.fix}"])
        show_table([Column(""), Column(""), Column("")], rows, wraps=True)
    errors = {finding.name for finding in findings if finding.level == "error"}
    return code or (NO_SCHEMA if errors & {"schema", "queue"} else FAILED if errors else OK)


def _settings() -> Iterator[dejq.Finding]:
    """What is set in the environment and in the project, or nearly: what does not count, and what cannot be read."""
    from dejq.cli import VERBS  # which has this verb among them

    flags = [flag for verb in VERBS.values() for flag in verb.flags]
    project = {name: str(value) for name, value in project_settings().items()}
    variables = {name: text for name, text in os.environ.items() if name.startswith("DEJQ_") and text}
    # All variables begin alike, which makes them look closer than they are.
    places = (
        ("environment", "{}={}", variables, {flag.variable: flag for flag in flags if flag.in_environment}, 0.8),
        ("pyproject", "{} = {!r}", project, {flag.key: flag for flag in flags if flag.in_project}, 0.6),
    )
    for place, form, given, known, likeness in places:
        for name in sorted(given):
            if flag := known.get(name):
                text = form.format(name, given[name])
                try:
                    flag.from_text(given[name], f"{name} in {place}")
                except CommandError as error:
                    yield dejq.Finding(level="error", name=place, text=text, fix=str(error))
                    continue
                if place == "pyproject" and flag.in_environment and flag.variable in variables:
                    text += f", which {flag.variable} overrides"
                yield dejq.Finding(level="ok", name=place, text=text)
            elif meant := close(name, sorted(known), likeness):
                yield dejq.Finding(level="warn", name=place, text=f"{name} means nothing{meant}")
