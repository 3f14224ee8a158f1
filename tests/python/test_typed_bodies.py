"""Bodies as the types that handlers ask for: what fits, and that texts name the place and never the value."""

# ruff: noqa: UP006, UP007, UP045  (the older spellings of types are tested too)

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import decimal
import enum
import json
import logging
import traceback
import typing
from collections.abc import Callable
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    NewType,
    Optional,
    TypedDict,
    TypeVar,
    Union,
)

import msgspec
import pydantic
import pydantic_core
import pytest
import typing_extensions

import dejq
from dejq import BodyError, Client, ConfigError, Job, PendingJob, _typed, testing

if TYPE_CHECKING:
    from python.conftest import Log, RunAll, Until

T = TypeVar("T")
SECRET = "hunter2-5ecret"


def decoded(to: Any, body: object) -> Any:
    """The body as a handler gets it that asks for this type."""
    got: list[object] = []

    def handler(body: object) -> None:
        got.append(body)

    handler.__annotations__["body"] = to
    client = dejq.memory()
    client.register_handler("t", handler)
    (id,) = client.enqueue(PendingJob("t", body))
    testing.drain(client)
    if not got:
        raise BodyError(client.get_job(id).error or "")
    return got[0]


def refusal(to: Any, body: object) -> str:
    """The reason why a body does not fit."""
    with pytest.raises(BodyError) as caught:
        _typed.decode("t", json.dumps(body).encode(), to)
    text = str(caught.value)
    assert text.startswith("DEJQ-E110 the body of 't' does not fit ")
    return text.partition(": ")[2]


# ---- types -----------------------------------------------------------------------------------------------


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Lenient(enum.Enum):
    RED = "red"

    @classmethod
    def _missing_(cls, value: object) -> Lenient | None:
        if value == "crash":
            raise KeyError(value)
        return cls.RED if str(value).lower() == "red" else None


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    points: list[Point]
    name: str | None = None
    extra: dict[str, Point] = dataclasses.field(default_factory=dict)
    length: float = dataclasses.field(init=False, default=1.0)


@dataclasses.dataclass
class Node:
    value: int
    children: list[Node] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Left:
    right: Optional[Right] = None


@dataclasses.dataclass
class Right:
    left: Left


@dataclasses.dataclass
class Strict:
    password: str

    def __post_init__(self) -> None:
        if len(self.password) > 3:
            raise ValueError(f"{self.password} is too long")


@dataclasses.dataclass(init=False)
class OwnInit:
    a: int
    b: int

    def __init__(self, a: int, scale: int) -> None:
        self.a, self.b = a, scale


class Address(TypedDict):
    city: str
    zip: typing_extensions.NotRequired[int]


class Partial(TypedDict, total=False):
    name: typing_extensions.Required[str]
    age: int


class FromExtensions(typing_extensions.TypedDict):
    a: typing_extensions.ReadOnly[int]
    b: typing_extensions.NotRequired[typing_extensions.ReadOnly[str]]


class Tree(TypedDict):
    children: list[Tree]


class Struct(msgspec.Struct):
    a: int
    color: Color = Color.RED
    kind: Literal["x"] = "x"
    items: Annotated[list[int], msgspec.Meta(max_length=2)] = []


class StrictStruct(msgspec.Struct, forbid_unknown_fields=True):
    password: str = ""

    def __post_init__(self) -> None:
        if self.password:
            raise ValueError(f"{self.password} is wrong")


class One(msgspec.Struct, tag="one"):
    a: int


class Two(msgspec.Struct, tag="two"):
    a: int


class Model(pydantic.BaseModel):
    a: int
    when: datetime.datetime | None = None
    items: list[int] = pydantic.Field(default=[], max_length=2)


class ValidatedModel(pydantic.BaseModel):
    password: str = ""
    token: str = ""

    @pydantic.field_validator("password")
    @classmethod
    def check_password(cls, value: str) -> str:
        raise ValueError(f"{value} is wrong")

    @pydantic.field_validator("token")
    @classmethod
    def check_token(cls, value: str) -> str:
        raise pydantic_core.PydanticCustomError("bad_token", "{value} is wrong", {"value": value})


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]


class Pet(pydantic.BaseModel):
    pet: Cat | Dog = pydantic.Field(discriminator="kind")


@dataclasses.dataclass
class Mixed:
    structs: list[Struct]
    model: Model | None = None


UserId = NewType("UserId", int)

# ---- what fits -------------------------------------------------------------------------------------------

FITTING: dict[str, tuple[Any, object, object]] = {
    "Any takes everything": (Any, [1, None], [1, None]),
    "object takes everything": (object, {"a": 1}, {"a": 1}),
    "None is null": (None, None, None),
    "bool": (bool, True, True),
    "int": (int, 10**30, 10**30),
    "float": (float, 1.5, 1.5),
    "float takes an integer": (float, 3, 3.0),
    "str": (str, "é\0", "é\0"),
    "bare list": (list, [1, "a"], [1, "a"]),
    "list": (list[int], [1, 2], [1, 2]),
    "typing.List": (typing.List[int], [1], [1]),
    "Sequence": (collections.abc.Sequence[str], ["a"], ["a"]),
    "Iterable": (collections.abc.Iterable[str], ["a"], ["a"]),
    "bare tuple": (tuple, [1, "a"], (1, "a")),
    "tuple of a length": (tuple[int, str], [1, "a"], (1, "a")),
    "tuple of any length": (tuple[int, ...], [1, 2, 3], (1, 2, 3)),
    "empty tuple of any length": (tuple[int, ...], [], ()),
    "bare dict": (dict, {"a": 1}, {"a": 1}),
    "dict": (dict[str, float], {"a": 1}, {"a": 1.0}),
    "Mapping": (collections.abc.Mapping[str, int], {"a": 1}, {"a": 1}),
    "Optional with a value": (Optional[int], 1, 1),
    "Optional with none": (Optional[int], None, None),
    "Union by the first that fits": (Union[int, str, list[int]], "a", "a"),
    "Union by bars": (int | None, None, None),
    "Union of a struct and another": (Union[Struct, int], 5, 5),
    "Union of a model and another": (Union[Model, str], "a", "a"),
    "Union of a dataclass that refuses and another": (
        Union[Strict, dict[str, str]],
        {"password": "long enough"},
        {"password": "long enough"},
    ),
    "Literal": (Literal["a", 1, None], 1, 1),
    "Annotated": (Annotated[list[int], "words"], [1], [1]),
    "NewType": (UserId, 5, 5),
    "TypeVar": (T, [1], [1]),
    "Enum": (Color, "red", Color.RED),
    "IntEnum": (Level, 1, Level.LOW),
    "Enum with a _missing_ of its own": (Lenient, "RED", Lenient.RED),
    "dataclass": (Point, {"x": 1, "y": 2}, Point(1, 2.0)),
    "dataclass with defaults": (Point, {"x": 1}, Point(1, 0.5)),
    "dataclass with unknown names": (Point, {"x": 1, "new": [1]}, Point(1, 0.5)),
    "dataclasses nest": (
        Line,
        {"points": [{"x": 1}], "name": "l", "extra": {"p": {"x": 2}}, "length": 9},
        Line(points=[Point(1)], name="l", extra={"p": Point(2)}),
    ),
    "dataclass that contains itself": (
        Node,
        {"value": 1, "children": [{"value": 2, "children": [{"value": 3}]}]},
        Node(1, [Node(2, [Node(3)])]),
    ),
    "dataclasses that contain each other": (
        Left,
        {"right": {"left": {"right": {"left": {}}}}},
        Left(Right(Left(Right(Left())))),
    ),
    "TypedDict": (Address, {"city": "Bern", "zip": 3000}, {"city": "Bern", "zip": 3000}),
    "TypedDict without what is not required": (Address, {"city": "Bern"}, {"city": "Bern"}),
    "TypedDict with unknown names": (Address, {"city": "Bern", "new": 1}, {"city": "Bern", "new": 1}),
    "TypedDict that is not total": (Partial, {"name": "Ada"}, {"name": "Ada"}),
    "TypedDict that contains itself": (
        Tree,
        {"children": [{"children": []}]},
        {"children": [{"children": []}]},
    ),
    "TypedDict of typing_extensions": (FromExtensions, {"a": 1}, {"a": 1}),
    "Struct": (Struct, {"a": 1, "color": "red"}, Struct(1)),
    "tagged structs": (Union[One, Two], {"type": "two", "a": 1}, Two(1)),
    "model": (
        Model,
        {"a": 1, "when": "2026-01-02T03:04:05Z"},
        Model(a=1, when=datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)),
    ),
    "model by its discriminator": (Pet, {"pet": {"kind": "dog"}}, Pet(pet=Dog(kind="dog"))),
    "structs and models in a dataclass": (
        Mixed,
        {"structs": [{"a": 1}], "model": {"a": 2}},
        Mixed([Struct(1)], Model(a=2)),
    ),
    "a list of models": (list[Model], [{"a": 1}], [Model(a=1)]),
}


@pytest.mark.parametrize(("to", "body", "expected"), FITTING.values(), ids=FITTING)
def test_a_fitting_body(to: Any, body: object, expected: object) -> None:
    result = decoded(to, body)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(("to", "body", "expected"), FITTING.values(), ids=FITTING)
def test_job_decode_takes_the_same_types(to: Any, body: object, expected: object) -> None:
    got = []
    client = dejq.memory()
    client.register_handler("t", lambda job: got.append(job.body if to is None else job.decode(to)))
    client.enqueue(PendingJob("t", body))
    testing.drain(client)
    assert got == [expected]


def test_job_decode_without_a_type_is_the_body(client: Client) -> None:
    got = []
    client.register_handler("t", lambda job: got.append(job.decode() is job.body))
    client.enqueue(PendingJob("t", [1]))
    testing.drain(client)
    assert got == [True]


# ---- what does not fit -----------------------------------------------------------------------------------

MISFITS: dict[str, tuple[Any, object, str]] = {
    "null": (None, 1, "$ must be null, not an integer"),
    "bool from 1": (bool, 1, "$ must be a boolean, not an integer"),
    "int from true": (int, True, "$ must be an integer, not a boolean"),
    "int from 1.0": (int, 1.0, "$ must be an integer, not a number"),
    "int from a string": (int, SECRET, "$ must be an integer, not a string"),
    "int from null": (int, None, "$ must be an integer, not null"),
    "float from a string": (float, SECRET, "$ must be a number, not a string"),
    "float from true": (float, True, "$ must be a number, not a boolean"),
    "float from too large an integer": (float, 10**400, "$ is larger than a float can be"),
    "str from an integer": (str, 5, "$ must be a string, not an integer"),
    "list from an object": (list, {SECRET: 1}, "$ must be an array, not an object"),
    "Sequence from a string": (collections.abc.Sequence[str], SECRET, "$ must be an array, not a string"),
    "an item": (list[int], [1, 2, SECRET], "$[2] must be an integer, not a string"),
    "an item of an item": (list[list[int]], [[1], [1, [SECRET]]], "$[1][1] must be an integer, not an array"),
    "tuple from a string": (tuple[int, int], SECRET, "$ must be an array, not a string"),
    "tuple too short": (tuple[int, int], [1], "$ must be an array of 2, not an array"),
    "an item of a tuple": (tuple[int, str], [1, 2], "$[1] must be a string, not an integer"),
    "an item of an open tuple": (tuple[int, ...], [1, SECRET], "$[1] must be an integer, not a string"),
    "dict from a list": (dict[str, int], [SECRET], "$ must be an object, not an array"),
    "a value of a dict": (dict[str, int], {"a": SECRET}, "$.a must be an integer, not a string"),
    "Optional": (
        Optional[int],
        SECRET,
        "$ fits no part of Optional[int] ($ must be an integer, not a string; $ must be null",
    ),
    "Union": (
        int | list[str],
        [SECRET, 1],
        "$ must be an integer, not an array; $[1] must be a string, not an integer",
    ),
    "Literal": (Literal["a", 1], SECRET, "$ must be one of 'a', 1"),
    "Literal 1 from true": (Literal[1], True, "$ must be one of 1"),
    "Enum": (Color, SECRET, "$ is no value of Color"),
    "Enum from a list": (Color, [SECRET], "$ is no value of Color"),
    "Enum whose own code raises": (Lenient, "crash", "$ is no value of Lenient"),
    "IntEnum from true": (Level, True, "$ is no value of Level"),
    "IntEnum from 1.0": (Level, 1.0, "$ is no value of Level"),
    "dataclass from a list": (Point, [SECRET], "$ must be an object, not an array"),
    "dataclass without a field": (Point, {"y": 1}, "$.x is missing"),
    "dataclass names the first field that is missing": (OwnInit, {}, "$.a is missing"),
    "dataclass that is made in another way": (
        OwnInit,
        {"a": 1, "b": 2},
        "$ is refused: TypeError (from its own",
    ),
    "a field": (Point, {"x": SECRET}, "$.x must be an integer, not a string"),
    "a field of a field": (Line, {"points": [{"x": 1}, {"x": SECRET}]}, "$.points[1].x must be an integer"),
    "a field far inside": (
        Node,
        {"value": 1, "children": [{"value": 2, "children": [{"value": SECRET}]}]},
        "$.children[0].children[0].value must be an integer, not a string",
    ),
    "dataclass whose own code refuses": (
        list[Strict],
        [{"password": SECRET}],
        "$[0] is refused: ValueError (from",
    ),
    "TypedDict from a string": (Address, SECRET, "$ must be an object, not a string"),
    "TypedDict without a key": (Address, {"zip": 1}, "$.city is missing"),
    "TypedDict that is not total without what is required": (Partial, {"age": 1}, "$.name is missing"),
    "a key of a TypedDict": (
        Address,
        {"city": "Bern", "zip": SECRET},
        "$.zip must be an integer, not a string",
    ),
    "a key of a TypedDict of typing_extensions": (FromExtensions, {"a": SECRET}, "$.a must be an integer"),
    "a TypedDict in itself": (
        Tree,
        {"children": [{"children": [SECRET]}]},
        "$.children[0].children[0] must be an object",
    ),
    "Struct": (Struct, {"a": SECRET}, "$.a Expected `int`, got `str`"),
    "Struct from a list": (Struct, [SECRET], "$ Expected `object`, got `array`"),
    "Struct without a field": (Struct, {}, "$ Object missing required field `a`"),
    "an enum in a Struct": (Struct, {"a": 1, "color": SECRET}, "$.color Invalid enum value"),
    "a literal in a Struct": (Struct, {"a": 1, "kind": SECRET}, "$.kind Invalid enum value"),
    "a limit in a Struct": (Struct, {"a": 1, "items": [1, 2, 3]}, "$.items Expected `array` of length <= 2"),
    "an unknown tag": (Union[One, Two], {"type": SECRET, "a": 1}, "$.type Invalid value"),
    "an unknown field of a Struct that forbids them": (
        StrictStruct,
        {SECRET: 1},
        "$ Object contains unknown field",
    ),
    "Struct whose own code refuses": (
        StrictStruct,
        {"password": SECRET},
        "$ is refused: ValueError (from its own code)",
    ),
    "model": (Model, {"a": SECRET}, "$.a Input should be a valid integer"),
    "model from a list": (Model, [SECRET], "$ Input should be an object"),
    "two fields of a model": (Model, {"a": SECRET, "when": SECRET}, "$.a Input should be a valid integer"),
    "an item of a model": (
        Model,
        {"a": 1, "items": [1, SECRET]},
        "$.items[1] Input should be a valid integer",
    ),
    "a limit of a model": (Model, {"a": 1, "items": [1, 2, 3]}, "$.items List should have at most 2 items"),
    "model whose own code refuses": (ValidatedModel, {"password": SECRET}, "$.password value_error"),
    "model with errors of its own": (ValidatedModel, {"token": SECRET}, "$.token bad_token"),
    "an unknown discriminator": (Pet, {"pet": {"kind": SECRET}}, "$.pet union_tag_invalid"),
    "a struct in a dataclass": (
        Mixed,
        {"structs": [{"a": 1}, {"a": SECRET}]},
        "$.structs[1].a Expected `int`, got `str`",
    ),
    "a model in a dataclass": (
        Mixed,
        {"structs": [], "model": {"a": SECRET}},
        "$.model.a Input should be a valid integer",
    ),
    "a model in a list": (list[Model], [{"a": SECRET}], "$[0].a Input should be a valid integer"),
}


@pytest.mark.parametrize(("to", "body", "text"), MISFITS.values(), ids=MISFITS)
def test_a_misfit_is_told_with_its_place_and_without_its_value(to: Any, body: object, text: str) -> None:
    reason = refusal(to, body)
    assert text in reason
    assert SECRET not in reason


@pytest.mark.parametrize(("to", "body", "text"), MISFITS.values(), ids=MISFITS)
def test_a_misfit_leaves_no_trace_of_its_value_in_exceptions_and_logs(
    to: Any, body: object, text: str, client: Client, log: Log
) -> None:
    """The canary of promise P14, with the chain of causes and the text that the store keeps."""
    dejq.set_verbosity(1)
    seen: list[BaseException] = []

    def handler(job: Job) -> None:
        try:
            job.decode(to)
        except BodyError as error:
            seen.append(error)
            raise

    client.register_handler("t", handler if to is not None else lambda job: _typed.decode("t", b"5", None))
    (id,) = client.enqueue(PendingJob("t", body))
    testing.drain(client)
    info = client.get_job(id)
    assert info.state == "failed"
    assert info.traceback is not None
    assert text in info.traceback
    everything = [info.error or "", info.traceback, repr(info), log.text]
    for error in seen:
        everything += [str(error), repr(error), "".join(traceback.format_exception(error))]
        assert error.__cause__ is None
        assert error.__suppress_context__
    assert not any(SECRET in one for one in everything)


@pytest.mark.parametrize("verbosity", [0, 1])
def test_a_worker_logs_a_misfit_without_its_value(verbosity: int, client: Client, log: Log, until: Until) -> None:
    dejq.set_verbosity(verbosity)

    def handler(body: Strict) -> None:
        pass

    client.register_handler("t", handler)
    client.enqueue(PendingJob("t", {"password": SECRET}, headers={"token": SECRET}))
    client.dequeue_loop()
    until(lambda: [record for record in log.records if record.levelno == logging.ERROR])
    assert "the body of 't' does not fit Strict: $ is refused: ValueError (from its own code)" in log.text
    assert SECRET not in log.text
    assert SECRET not in repr([vars(record) for record in log.records])


def test_a_misfit_fails_the_attempt_and_the_worker_goes_on(client: Client, run_all: RunAll) -> None:
    seen = []

    def handler(job: Job, body: Point) -> None:
        seen.append(body)

    client.register_handler("t", handler)
    bad, good = client.enqueue_many([PendingJob("t", {"x": "no"}), PendingJob("t", {"x": 1})])
    run_all(client)
    assert seen == [Point(1)]
    error = "DEJQ-E110 the body of 't' does not fit Point: $.x must be an integer, not a string"
    assert client.get_job(bad).error == f"dejq.errors.BodyError: {error}"
    assert client.get_job(good).state == "finished"


@pytest.mark.parametrize("text", [b"", b"{", b"nope", b"\xff", b"[NaN]", b"-Infinity", b'"\\ud800'], ids=repr)
def test_a_stored_body_that_is_not_json_is_told_so(text: bytes) -> None:
    with pytest.raises(BodyError) as caught:
        _typed.decode("t", text, list[float])
    assert "$ is not JSON; somebody else has put it into the store" in str(caught.value)


@pytest.mark.parametrize("to", [float, list[float]], ids=str)
def test_a_stored_number_that_is_larger_than_a_float_does_not_fit_one(to: Any) -> None:
    text = b"1e400" if to is float else b"[-1e400]"
    with pytest.raises(BodyError, match=r"is larger than a float can be"):
        _typed.decode("t", text, to)


def test_a_type_that_cannot_be_hashed_is_decoded_too() -> None:
    assert _typed.decode("t", b"[5]", list[Annotated[int, ["unhashable"]]]) == [5]


@pytest.mark.parametrize("to", [Struct, Model], ids=lambda to: to.__name__)
def test_a_stored_body_that_is_not_json_does_not_fit_a_model(to: Any) -> None:
    with pytest.raises(BodyError) as caught:
        _typed.decode("t", f'{{"a": {SECRET}'.encode(), to)
    assert SECRET not in str(caught.value)


def test_a_body_is_decoded_anew_for_each_attempt(client: Client, run_all: RunAll) -> None:
    seen = []

    def handler(job: Job, body: Node) -> None:
        seen.append(list(body.children))
        body.children.append(body)
        if job.attempt == 1:
            raise dejq.Retry(0)

    client.register_handler("t", handler)
    client.enqueue(PendingJob("t", {"value": 1}))
    run_all(client)
    assert seen == [[], []]


# ---- types that no body can be decoded to ----------------------------------------------------------------


class Generics(Generic[T]):
    pass


@dataclasses.dataclass
class Unresolvable:
    a: Nowhere  # type: ignore[name-defined]  # noqa: F821  (on purpose)


@dataclasses.dataclass
class Misspelt:
    a: datetime.datetimes  # type: ignore[name-defined]  # on purpose


@dataclasses.dataclass
class Holds:
    when: list[datetime.datetime]


class HoldsToo(TypedDict):
    when: datetime.datetime


class Text(str):
    __slots__ = ()


UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "datetime": (
        datetime.datetime,
        "cannot decode a body to datetime; use built-ins, list, dict, tuple, Optional, Union",
    ),
    "Decimal": (decimal.Decimal, "cannot decode a body to Decimal"),
    "bytes": (bytes, "cannot decode a body to bytes"),
    "set": (set[int], "cannot decode a body to set[int]"),
    "a str subclass": (Text, "cannot decode a body to Text"),
    "a class of any kind": (Generics[int], "Generics[int]"),
    "keys that are not strings": (
        dict[int, str],
        "cannot decode a body to dict[int, str]: keys of JSON objects are strings",
    ),
    "in a list": (list[bytes], "cannot decode a body to bytes"),
    "in a union": (Union[int, bytes], "cannot decode a body to bytes"),
    "in a tuple": (tuple[int, bytes], "cannot decode a body to bytes"),
    "in a dataclass": (Holds, "cannot decode a body to datetime"),
    "in a TypedDict": (HoldsToo, "cannot decode a body to datetime"),
    "an unknown name": (
        Unresolvable,
        "cannot decode a body to Unresolvable: an annotation cannot be resolved: name 'Nowhere'",
    ),
    "a misspelt name": (Misspelt, "cannot decode a body to Misspelt: an annotation cannot be resolved"),
}


@pytest.mark.parametrize(("to", "text"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_a_type_that_no_body_can_be_decoded_to_is_refused_when_the_handler_is_registered(to: Any, text: str) -> None:
    def handler(body: object) -> None:
        pass

    handler.__annotations__["body"] = to
    client = dejq.memory()
    with pytest.raises(ConfigError) as caught:
        client.register_handler("t", handler)
    assert caught.value.code == "DEJQ-E100"
    assert text in str(caught.value)
    assert client.types == []


@pytest.mark.parametrize(("to", "text"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_job_decode_refuses_the_same_types(to: Any, text: str) -> None:
    caught = []

    def handler(job: Job) -> None:
        with pytest.raises(ConfigError) as info:
            job.decode(to)
        caught.append(str(info.value))

    client = dejq.memory()
    client.register_handler("t", handler)
    client.enqueue(PendingJob("t", {}))
    testing.drain(client)
    assert len(caught) == 1
    assert text in caught[0]


# ---- there and back -------------------------------------------------------------------------------------

ROUND_TRIPS: list[Any] = [
    Point(1, 2.5),
    Line(points=[Point(1)], name="l", extra={"p": Point(2)}),
    Node(1, [Node(2)]),
    Left(Right(Left())),
    Mixed([Struct(1)], Model(a=2)),
    Struct(1, items=[1]),
    Two(5),
    Model(a=1, when=datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)),
    Pet(pet=Cat(kind="cat")),
    Color.RED,
]


@pytest.mark.parametrize("body", ROUND_TRIPS, ids=lambda body: type(body).__name__)
def test_what_is_enqueued_as_a_type_comes_out_as_the_same(body: Any) -> None:
    assert decoded(type(body), body) == body


def test_a_decoder_is_made_once_per_type(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real: Callable[..., Any] = _typed.decoder

    def counted(job_type: str, to: Any) -> Any:
        made.append(to)
        return real(job_type, to)

    monkeypatch.setattr(_typed, "decoder", counted)
    for _ in range(3):
        assert _typed.decode("once", b'{"x": 1}', Point) == Point(1)
    assert made == [Point]
