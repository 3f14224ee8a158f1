"""``dejq doctor``: what is wrong, or will be."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict, replace

import dejq
from dejq._settings import project_settings
from dejq.cli.app import client_of
from dejq.cli.flags import APP, JSON, URL, switch, verb
from dejq.cli.talk import FAILED, NO_SCHEMA, OK, CommandError, close, exit_code, show, show_json

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
    findings += _misspelt()
    code = OK
    try:
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
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            show(f"{finding.level:<5}  {finding.name:<{width}}  {finding.text}")
            if finding.fix:
                show(f"{'':<5}  {'':<{width}}  fix: {finding.fix}")
    errors = {finding.name for finding in findings if finding.level == "error"}
    return code or (NO_SCHEMA if "schema" in errors else FAILED if errors else OK)


def _misspelt() -> list[dejq.Finding]:
    """Names in the environment and in the project that are nearly ones that count."""
    from dejq.cli import VERBS  # which has this verb among them

    flags = [flag for verb in VERBS.values() for flag in verb.flags]
    variables = {name for name in os.environ if name.startswith("DEJQ_")}
    # All variables begin alike, which makes them look closer than they are.
    places = (
        ("environment", variables, {flag.variable for flag in flags if flag.in_environment}, 0.8),
        ("pyproject", set(project_settings()), {flag.key for flag in flags if flag.in_project}, 0.6),
    )
    return [
        dejq.Finding(level="warn", name=place, text=f"{name} means nothing{meant}")
        for place, names, known, likeness in places
        for name in sorted(names - known)
        if (meant := close(name, sorted(known), likeness))
    ]
