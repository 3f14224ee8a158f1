"""``client.metrics()``, and that pages, alerts and dashboard name metrics that exist. HTTP: `test_workers.py`."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import dejq
from dejq import cli, testing
from dejq.cli.flags import make_parser

if TYPE_CHECKING:
    from python.conftest import Until

DOCS = Path(__file__).parents[2] / "docs"
# As PromQL names samples, and text names metrics.
NAME = re.compile(r"\bdejq_[a-z_]+")


def test_a_client_gives_the_same_text_to_those_who_serve_it_themselves(client: dejq.Client, until: Until) -> None:
    def fail(job: dejq.Job) -> None:
        raise ValueError("as it should")

    client.register_handler("good", lambda job: None)
    client.register_handler("bad", fail)
    client.enqueue_many([dejq.PendingJob("good"), dejq.PendingJob("good"), dejq.PendingJob("bad")])
    client.enqueue(dejq.PendingJob("good", unique="k", delay=60))
    client.enqueue(dejq.PendingJob("good", unique="k"))
    client.dequeue_loop()
    until(lambda: client._native.counted()["finished"] == 2 and client._native.counted()["failed"] == 1)
    families = {family.name: family for family in text_string_to_metric_families(client.metrics())}
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert values["dejq_jobs_enqueued_total", "good"] == 3, "one was there already"
    assert values["dejq_jobs_finished_total", "good"] == 2
    assert values["dejq_jobs_failed_total", "bad"] == 1
    assert values["dejq_job_duration_seconds_count", "good"] == 2
    assert values["dejq_jobs", "good", "scheduled"] == 1
    assert families["dejq_jobs_failed"].type == "counter"
    assert families["dejq_job_wait_seconds"].type == "histogram"
    assert all(family.documentation for family in families.values())


def test_a_client_without_a_worker_has_metrics_too(client: dejq.Client) -> None:
    client.enqueue(dejq.PendingJob("a"))
    text = client.metrics()
    assert '\ndejq_jobs_enqueued_total{type="a"} 1\n' in text
    assert "\ndejq_ready_processes 0\n" in text
    testing.refute_enqueued(client, "b")


# ---- the docs ------------------------------------------------------------------------------------------


def samples() -> dict[str, set[str]]:
    """Samples of the table in docs/metrics.md, with their labels. A test in Rust holds the table to the code."""
    found: dict[str, set[str]] = {}
    rows = re.findall(r"^\| `(dejq_\w+)` \| (\w+) \|([^|]*)\|", (DOCS / "metrics.md").read_text(), re.M)
    for name, kind, labels in rows:
        names = [f"{name}_bucket", f"{name}_sum", f"{name}_count"] if kind == "histogram" else [name]
        for each in names:
            found[each] = set(re.findall(r"`(\w+)`", labels)) | ({"le"} if each.endswith("_bucket") else set())
    assert len(found) > 20
    return found


def test_the_labels_are_those_that_the_docs_list(client: dejq.Client) -> None:
    client.register_handler("a", lambda job: None)
    client.dequeue_loop()
    client.enqueue(dejq.PendingJob("b"))
    listed = samples()
    exported = {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(client.metrics())
        for sample in family.samples
    }
    assert exported == {name: listed[name] for name in exported}
    # Nobody supervises this process.
    assert listed.keys() - exported.keys() == {"dejq_process_restarts_total"}


def expressions() -> list[tuple[str, str]]:
    """Name and PromQL of every panel and alert."""
    dashboard: dict[str, Any] = json.loads((DOCS / "grafana.json").read_text())
    found = [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel["targets"]]
    alerts = re.findall(r"- alert: (\w+)\n +expr: (.*)", (DOCS / "metrics.md").read_text())
    assert len(alerts) == 3
    return [*found, *alerts]


@pytest.mark.parametrize(("name", "expression"), expressions(), ids=[name for name, _ in expressions()])
def test_a_panel_or_alert_asks_for_metrics_and_labels_that_exist(name: str, expression: str) -> None:
    listed = samples()
    asked = NAME.findall(expression)
    assert asked, name
    for metric, labels in re.findall(r"(dejq_[a-z_]+)(?:\{([^}]*)\})?", expression):
        assert metric in listed, name
        # `job` and `instance` are Prometheus's own.
        assert set(re.findall(r"(\w+)=~?\"", labels)) <= listed[metric] | {"job", "instance"}, name
    by = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
    assert by <= {label for metric in asked for label in listed[metric]} | {"instance"}, name
    assert expression.count("(") == expression.count(")"), name
    counters = [metric for metric in asked if metric.endswith(("_total", "_bucket", "_sum", "_count"))]
    assert len(counters) == len(re.findall(r"(?:rate|increase)\(dejq_", expression)), f"{name}: a counter as it is"


def test_the_dashboard_can_be_imported_and_shows_every_metric() -> None:
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"] + dx, panel["gridPos"]["y"] + dy) for panel in panels
              for dx in range(panel["gridPos"]["w"]) for dy in range(panel["gridPos"]["h"])]  # fmt: skip
    assert len(set(places)) == len(places), "panels lie on each other"
    assert max(x for x, _ in places) < 24
    assert all(panel["description"] for panel in panels)
    shown = set(NAME.findall(json.dumps(panels)))
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in samples()}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in shown} == families


def test_the_pages_about_workers_start_what_can_be_started() -> None:
    text = (DOCS / "workers.md").read_text() + (DOCS / "metrics.md").read_text()
    listed = re.search(r"command: (\[.*\])", text)
    assert listed is not None
    lines = re.findall(r"(?:^\$ |/bin/|`)dejq (worker app:client .*?)(?:`|$)", text, re.M)
    commands = [shlex.split(line) for line in lines] + [json.loads(listed[1])[1:]]
    assert len(commands) >= 4
    for command in commands:
        given = make_parser(cli.VERBS.values()).parse_args(command)
        assert given.app == "app:client"


@pytest.mark.parametrize("setting", ["TimeoutStopSec=", "terminationGracePeriodSeconds: "])
def test_whoever_kills_waits_for_longer_than_the_worker_on_its_page(setting: str) -> None:
    text = (DOCS / "workers.md").read_text()
    (patience,) = re.findall(rf"^ *{setting}(\d+)$", text, re.M)
    timeouts = set(re.findall(r'--shutdown-timeout"?,? "?(\d+)', text))
    assert timeouts == {"60"}
    assert int(patience) > 60 + 5
