"""The exceptions: one class per kind of the engine, one code per class, and a page that explains each."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import inspect
import pickle
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import dejq
from dejq import Client, DejqError, Discard, Job, PendingJob, Retry, errors, testing

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
CLASSES: dict[str, type[DejqError]] = {
    name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, DejqError)
}
BASES: dict[str, tuple[type[Exception], ...]] = {
    "ConfigError": (ValueError,),
    "BodyError": (ValueError,),
    "BodyTooLarge": (dejq.BodyError, ValueError),
    "UnknownJob": (LookupError,),
    "BackendUnavailable": (ConnectionError, OSError),
    "ForkedProcess": (RuntimeError,),
}

# ---- classes and codes -----------------------------------------------------------------------------------


def kinds_of_the_engine() -> dict[str, str]:
    """Each kind with its code, as the engine's source has them."""
    source = (ROOT / "src" / "error.rs").read_text(encoding="utf-8")
    return dict(re.findall(r"Self::(\w+)(?: \{ \.\. \})? => \"(DEJQ-E\d+)\"", source))


def classes_of_kinds() -> dict[str, str]:
    """Each kind with its class, as the seam's source has them."""
    source = (ROOT / "src" / "py" / "errors.rs").read_text(encoding="utf-8")
    return dict(re.findall(r"ErrorKind::(\w+)(?: \{ \.\. \})? => \"(\w+)\"", source))


def test_each_kind_of_the_engine_is_one_class_with_the_same_code() -> None:
    kinds, classes = kinds_of_the_engine(), classes_of_kinds()
    assert kinds.keys() == classes.keys()
    assert {CLASSES[classes[kind]].code: kind for kind in kinds} == {code: kind for kind, code in kinds.items()}
    assert len(set(classes.values())) == len(classes)
    assert {*classes.values(), "DejqError"} == CLASSES.keys()


def test_no_two_classes_have_the_same_code() -> None:
    codes = [kind.code for kind in CLASSES.values()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"DEJQ-E\d{3}", code) for code in codes)


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_is_public_and_documented(name: str) -> None:
    assert getattr(dejq, name) is CLASSES[name]
    assert name in dejq.__all__
    assert (CLASSES[name].__doc__ or "").strip()


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_may_be_caught_as_what_it_also_is(name: str) -> None:
    bases: tuple[type[Exception], ...] = (DejqError, *BASES.get(name, ()))
    for base in bases:
        with pytest.raises(base):
            raise CLASSES[name]("text")


@pytest.mark.parametrize("name", CLASSES)
def test_the_text_starts_with_the_code(name: str) -> None:
    error = CLASSES[name]("what happened")
    assert str(error) == f"{error.code} what happened"
    assert repr(error) == f"{name}('what happened')"


# ---- copies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling(name: str, protocol: int) -> None:
    error = CLASSES[name]("what happened")
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is type(error)
    assert (str(again), again.args) == (str(error), error.args)


def too_large() -> dejq.BodyTooLarge:
    with pytest.raises(dejq.BodyTooLarge) as caught:
        dejq.memory(max_body=1).enqueue(PendingJob("t", "long"))
    return caught.value


@pytest.mark.parametrize(
    "again",
    [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deepcopy"],
)
def test_an_error_keeps_its_attributes(again: Callable[[Any], Any]) -> None:
    error = again(too_large())
    assert (error.size, error.limit, str(error)) == (6, 1, str(too_large()))
    unknown = dejq.OutcomeUnknown("lost")
    unknown.ids = ["a"]
    assert again(unknown).ids == ["a"]


@pytest.mark.parametrize(
    "request_", [Retry(5, "why"), Retry(timedelta(1)), Retry(), Discard("why"), Discard()], ids=repr
)
def test_retry_and_discard_survive_pickling(request_: Any) -> None:
    again = pickle.loads(pickle.dumps(request_))
    assert type(again) is type(request_)
    assert vars(again) == vars(request_)
    assert str(again) == request_.reason


def test_retry_and_discard_are_requests_and_no_errors() -> None:
    assert not issubclass(Retry, DejqError)
    assert not issubclass(Discard, DejqError)


# ---- the page --------------------------------------------------------------------------------------------

SECTIONS: dict[str, str] = dict(re.findall(r"^## (DEJQ-E\d+ \w+)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


def section(kind: type[DejqError]) -> str:
    return SECTIONS[f"{kind.code} {kind.__name__}"]


def examples(kind: type[DejqError]) -> list[str]:
    return [text.strip() for text in re.findall(r"^```text\n(.*?)^```$", section(kind), re.M | re.S)]


@pytest.mark.parametrize("name", CLASSES)
def test_the_table_of_the_page_lists_each_class_with_its_code_and_its_base(name: str) -> None:
    kind = CLASSES[name]
    (row,) = re.findall(rf"^\| `{kind.code}` \| `(\w+)` \| (?:`(\w+)` )?\| .+ \|$", PAGE, re.M)
    base = BASES[name][0].__name__ if name in BASES else ""
    assert row == (name, base)


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - {"DejqError"}))
def test_the_page_explains_each_class_with_an_example_and_what_to_do(name: str) -> None:
    kind = CLASSES[name]
    assert "**What to do:** " in section(kind)
    assert examples(kind)
    assert all(example.startswith(f"{kind.code} ") for example in examples(kind))


def test_the_page_has_nothing_that_does_not_exist() -> None:
    assert SECTIONS.keys() == {f"{kind.code} {name}" for name, kind in CLASSES.items() if name != "DejqError"}
    assert set(re.findall(r"DEJQ-E\d+", PAGE)) == {kind.code for kind in CLASSES.values()}


@dataclasses.dataclass
class Email:
    to: str


def misfit(client: Client) -> None:
    caught: list[Exception] = []

    def handler(job: Job) -> None:
        try:
            job.decode(Email)
        except dejq.BodyError as error:
            caught.append(error)

    client.register_handler("email", handler)
    client.enqueue(PendingJob("email", {"to": None}))
    testing.drain(client)
    raise caught[0]


def cancel_a_finished_job(client: Client) -> None:
    client.register_handler("t", lambda job: None)
    (id,) = client.enqueue(PendingJob("t"))
    testing.drain(client)
    client.cancel_job(id)


def enqueue_after_stop(client: Client) -> None:
    client.stop()
    client.enqueue(PendingJob("t"))


# The errors that can be had without a server and without a fork, as the page shows them.
SHOWN: dict[str, tuple[type[DejqError], Callable[[Client], object]]] = {
    "an option": (dejq.ConfigError, lambda client: dejq.memory(wrokers=1)),
    "a body": (
        dejq.BodyError,
        lambda client: client.enqueue(PendingJob("email", {"sent": datetime.datetime(2026, 1, 2)})),
    ),
    "a misfit": (dejq.BodyError, misfit),
    "a large body": (dejq.BodyTooLarge, lambda client: client.enqueue(PendingJob("email", "x" * 2**20))),
    "an unknown job": (
        dejq.UnknownJob,
        lambda client: client.get_job("01890a5d-ac96-774b-bcce-b302099a8057"),
    ),
    "a final job": (dejq.WrongState, cancel_a_finished_job),
    "a connection": (dejq.NotSupported, lambda client: client.enqueue(PendingJob("t"), connection=client)),
    "a stopped client": (dejq.ClientStopped, enqueue_after_stop),
}


@pytest.mark.parametrize(("kind", "call"), SHOWN.values(), ids=SHOWN)
def test_the_examples_of_the_page_are_what_dejq_says(
    kind: type[DejqError], call: Callable[[Client], object], client: Client
) -> None:
    with pytest.raises(kind) as caught:
        call(client)
    assert type(caught.value) is kind
    # Ids are made anew in each run.
    example_id = "01890a5d-ac96-774b-bcce-b302099a8057"
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", example_id, str(caught.value))
    assert text in examples(kind)
