"""Bodies: what goes in comes out, and what JSON cannot say is refused before anything is stored."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import sys
import threading
import types
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import dejq
from dejq import BodyError, BodyTooLarge, Client, Job, PendingJob, testing

if TYPE_CHECKING:
    from python.conftest import NewClient, RunAll

DEPTH = 128
MIB = 1024 * 1024


def round_trip(body: object) -> Any:
    """The body as a handler gets it."""
    got = []
    client = dejq.memory()
    client.register_handler("t", lambda job: got.append(job.body))
    client.enqueue(PendingJob("t", body))
    testing.drain(client)
    (result,) = got
    return result


def raw(body: object) -> bytes:
    """The body as the store keeps it."""
    client = dejq.memory()
    (id,) = client.enqueue(PendingJob("t", body))
    return client.get_job(id).raw_body


def spelled(value: object) -> str:
    """Tells apart what ``==`` does not: 1, 1.0 and True, 0.0 and -0.0, the order of keys."""
    return repr(value)


# ---- what JSON can say -----------------------------------------------------------------------------------

finite = st.floats(allow_nan=False, allow_infinity=False)
integers = st.integers() | st.integers(-(10**60), 10**60)
texts = st.text() | st.text(alphabet='\x00\x1f"\\/\x7f\u2028\ufeff\uffff\U0001f600é')
leaves = st.none() | st.booleans() | integers | texts


def nests(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5)


bodies = st.recursive(leaves | finite, nests, max_leaves=30)
# Floats have more than one spelling: 1e16 and 1e+16.
bodies_without_floats = st.recursive(leaves, nests, max_leaves=30)


@given(bodies)
@example({"": {"": [[], {}, "", 0, None]}})
@example([-0.0, 0.0, 5e-324, 1.7976931348623157e308, 1e16, 1e22, 0.1])
@example([2**63 - 1, -(2**63), 2**63, 2**64, 10**400, -(10**400)])
@example("\x00")
def test_a_body_comes_out_as_it_went_in(body: Any) -> None:
    assert spelled(round_trip(body)) == spelled(body)


@given(bodies)
def test_the_stored_text_is_json_that_pythons_own_reader_agrees_with(body: Any) -> None:
    text = raw(body).decode("utf-8")
    assert spelled(json.loads(text)) == spelled(json.loads(json.dumps(body)))


@given(bodies_without_floats)
def test_the_stored_text_is_that_of_json_dumps_without_spaces_and_as_utf_8(body: Any) -> None:
    assert raw(body) == json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


@given(st.lists(bodies, min_size=1, max_size=4))
def test_enqueue_and_enqueue_many_encode_alike(many: list[Any]) -> None:
    client = dejq.memory()
    jobs = [PendingJob("t", body) for body in many]
    one_by_one = [id for job in jobs for id in client.enqueue(job)]
    at_once = client.enqueue_many(jobs)
    assert [client.get_job(id).raw_body for id in one_by_one] == [client.get_job(id).raw_body for id in at_once]


@pytest.mark.parametrize("body", [None, False, 0, 0.0, "", [], {}], ids=repr)
def test_an_empty_body_stays_what_it_is(body: object) -> None:
    assert spelled(round_trip(body)) == spelled(body)


def test_a_job_without_a_body_has_none() -> None:
    client = dejq.memory()
    (id,) = client.enqueue(PendingJob("t"))
    assert client.get_job(id).raw_body == b"null"
    assert client.get_job(id).body is None


@pytest.mark.parametrize("digits", [19, 20, 400, 4300])
def test_an_integer_keeps_all_its_digits(digits: int) -> None:
    for number in (10**digits - 1, -(10**digits) + 1):
        assert raw(number) == str(number).encode()
        assert round_trip(number) == number


def test_unicode_is_stored_as_utf_8_and_counted_in_bytes(new_client: NewClient) -> None:
    client = new_client(max_body=6)
    client.enqueue(PendingJob("t", "éé"))  # two quotes and two characters of two bytes
    with pytest.raises(BodyTooLarge) as caught:
        client.enqueue(PendingJob("t", "ééé"))
    assert caught.value.size == 8


def test_nul_and_control_characters_are_escaped() -> None:
    assert raw("\x00\x1f\n") == rb'"\u0000\u001f\n"'


# ---- types that are not JSON's own -----------------------------------------------------------------------


class Pair(NamedTuple):
    left: int
    right: str


class Level(enum.IntEnum):
    HIGH = 3


class Flags(enum.IntFlag):
    A = 1
    B = 2


class Color(str, enum.Enum):
    RED = "red"


class Plain(enum.Enum):
    PAIR = (1, 2)


class Name(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "not what is meant"


class Count(int):
    def __str__(self) -> str:
        return "not what is meant"

    def __repr__(self) -> str:
        return "not what is meant"


class Ratio(float):
    def __repr__(self) -> str:
        return "not what is meant"


class Items(list[int]):
    pass


class Point(TypedDict):
    x: int
    y: int


@dataclasses.dataclass
class Address:
    city: str
    tags: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Person:
    name: str
    address: Address
    others: list[Address]
    secret: str = dataclasses.field(default="kept", repr=False)


class Wrapped(enum.Enum):
    HOME = Address("Bern")


class Struct(msgspec.Struct):
    a: int
    inner: Struct | None = None


class Renamed(msgspec.Struct, rename="camel", tag="renamed"):
    user_id: int


class Model(pydantic.BaseModel):
    when: str
    inner: list[Model] = []


class Aliased(pydantic.BaseModel):
    user_id: int = pydantic.Field(alias="userId")


class Root(pydantic.RootModel[list[int]]):
    pass


BODIES_OF_OTHER_TYPES: dict[str, tuple[object, object]] = {
    "a tuple is an array": ((1, (2,)), [1, [2]]),
    "a named tuple is an array": (Pair(1, "r"), [1, "r"]),
    "an OrderedDict is an object": (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    "a defaultdict is an object": (defaultdict(list, {"a": [1]}), {"a": [1]}),
    "a Counter is an object": (Counter("aab"), {"a": 2, "b": 1}),
    "a mapping proxy is an object": (types.MappingProxyType({"a": 1}), {"a": 1}),
    "a TypedDict is an object": (Point(x=1, y=2), {"x": 1, "y": 2}),
    "an IntEnum is its number": (Level.HIGH, 3),
    "an IntFlag is its number": (Flags.A | Flags.B, 3),
    "a string enum is its string": (Color.RED, "red"),
    "an enum is its value": (Plain.PAIR, [1, 2]),
    "an enum of dataclasses is an object": (Wrapped.HOME, {"city": "Bern", "tags": []}),
    "a str subclass is its characters": (Name("n"), "n"),
    "an int subclass is its number": (Count(10**30), 10**30),
    "a float subclass is its number": (Ratio(0.5), 0.5),
    "a list subclass is an array": (Items([1, 2]), [1, 2]),
    "a key of a str subclass is a key": ({Name("n"): 1, Color.RED: 2}, {"n": 1, "red": 2}),
    "a dataclass is an object": (Address("Bern", ("a",)), {"city": "Bern", "tags": ["a"]}),
    "dataclasses nest": (
        {"who": Person("Ada", Address("London"), [Address("Bern")])},
        {
            "who": {
                "name": "Ada",
                "address": {"city": "London", "tags": []},
                "others": [{"city": "Bern", "tags": []}],
                "secret": "kept",
            }
        },
    ),
    "a struct is an object": (Struct(1, Struct(2)), {"a": 1, "inner": {"a": 2, "inner": None}}),
    "a struct keeps its own names and tag": (Renamed(5), {"type": "renamed", "userId": 5}),
    "a model is an object": (
        Model(when="now", inner=[Model(when="then")]),
        {"when": "now", "inner": [{"when": "then", "inner": []}]},
    ),
    "a model keeps its aliases": (Aliased(userId=5), {"userId": 5}),
    "a root model is its root": (Root([1, 2]), [1, 2]),
}


@pytest.mark.parametrize(("body", "expected"), BODIES_OF_OTHER_TYPES.values(), ids=BODIES_OF_OTHER_TYPES)
def test_a_body_of_another_type(body: object, expected: object) -> None:
    assert spelled(round_trip(body)) == spelled(expected)


@pytest.mark.parametrize(
    "body",
    [Address("Bern", ("a",)), Struct(1, Struct(2)), Renamed(5), Model(when="now"), Aliased(userId=5)],
    ids=repr,
)
def test_a_model_decodes_to_an_equal_model(body: Any) -> None:
    got = []
    client = dejq.memory()
    client.register_handler("t", lambda job: got.append(job.decode(type(body))))
    client.enqueue(PendingJob("t", body))
    testing.drain(client)
    assert got == [body]


# ---- when a body is read and written ---------------------------------------------------------------------


def test_a_change_of_the_object_after_enqueue_changes_nothing(client: Client) -> None:
    body = {"items": [1, 2]}
    (id,) = client.enqueue(PendingJob("t", body))
    body["items"].append(3)
    assert client.get_job(id).body == {"items": [1, 2]}


def test_a_change_of_the_object_before_enqueue_counts() -> None:
    body = [1]
    job = PendingJob("t", body)
    body.append(2)
    client = dejq.memory()
    (id,) = client.enqueue(job)
    assert client.get_job(id).body == [1, 2]


def test_the_same_pending_job_may_be_enqueued_again_and_is_another_job_each_time(client: Client) -> None:
    job = PendingJob("t", 1)
    ids = client.enqueue(job, job) + client.enqueue(job)
    assert len(set(ids)) == 3
    assert client.stats().enqueued_jobs == 3


def test_the_body_of_a_job_is_the_same_object_at_each_access(client: Client, run_all: RunAll) -> None:
    seen = []

    def handler(job: Job) -> None:
        job.body.append("changed")
        seen.append((job.body is job.body, job.body))

    client.register_handler("t", handler)
    client.enqueue(PendingJob("t", []))
    run_all(client)
    assert seen == [(True, ["changed"])]


def test_what_one_attempt_does_to_the_body_does_not_reach_the_next(client: Client, run_all: RunAll) -> None:
    seen = []

    def handler(job: Job) -> None:
        seen.append(list(job.body))
        job.body.append(job.attempt)
        if job.attempt < 3:
            raise dejq.Retry(0)

    client.register_handler("t", handler)
    client.enqueue(PendingJob("t", ["as enqueued"]))
    run_all(client)
    assert seen == [["as enqueued"]] * 3


def test_job_info_decodes_the_body_anew_at_each_access(client: Client) -> None:
    (id,) = client.enqueue(PendingJob("t", [1]))
    info = client.get_job(id)
    info.body.append(2)
    assert info.body == [1]


# ---- what is refused -------------------------------------------------------------------------------------


def nested(levels: int, wrap: Callable[[Any], Any], core: Any = None) -> Any:
    value = core
    for _ in range(levels):
        value = wrap(value)
    return value


WRAPS: dict[str, Callable[[Any], Any]] = {
    "lists": lambda value: [value],
    "tuples": lambda value: (value,),
    "objects": lambda value: {"k": value},
    "dataclasses": lambda value: Box(value),
}


@dataclasses.dataclass
class Box:
    held: Any


class Holder(msgspec.Struct):
    held: Any


class LooseModel(pydantic.BaseModel):
    held: Any


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_128_levels_are_taken_whatever_they_are_made_of(wrap: Callable[[Any], Any]) -> None:
    assert json.loads(raw(nested(DEPTH, wrap))) == json.loads(
        json.dumps(nested(DEPTH, wrap), default=lambda box: {"held": box.held})
    )
    round_trip(nested(DEPTH, wrap))


@pytest.mark.parametrize("core", [Level.HIGH, Name("n"), Color.RED, Ratio(0.5)], ids=repr)
def test_a_converted_value_does_not_count_as_a_level(core: Any) -> None:
    raw(nested(DEPTH, WRAPS["lists"], core))


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_129_levels_are_refused_whatever_they_are_made_of(wrap: Callable[[Any], Any]) -> None:
    with pytest.raises(BodyError, match="nested deeper than 128 levels, or contains itself"):
        raw(nested(DEPTH + 1, wrap))


def endless_list() -> object:
    value: list[object] = []
    value.append(value)
    return value


def endless_dict() -> object:
    value: dict[str, object] = {}
    value["k"] = value
    return value


def endless_dataclass() -> object:
    value = Box(None)
    value.held = [value]
    return value


def endless_struct() -> object:
    value = Holder(None)
    value.held = value
    return value


def endless_model() -> object:
    value = LooseModel(held=None)
    value.held = value
    return value


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (endless_list, "contains itself"),
        (endless_dict, "contains itself"),
        (endless_dataclass, "contains itself"),
        (endless_struct, "$ is a Holder that cannot be turned into JSON: it contains itself"),
        (endless_model, "$ is a LooseModel that cannot be turned into JSON: Circular reference"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_body_that_contains_itself_is_refused(make: Callable[[], object], text: str) -> None:
    with pytest.raises(BodyError) as caught:
        raw(make())
    assert text in str(caught.value)


class NotJson:
    pass


UNSAYABLE: dict[str, tuple[object, str]] = {
    "nan": ({"a": [0, math.nan]}, "$.a[1] is NaN, and JSON has only finite numbers; use None or a string"),
    "infinity": ([math.inf], "$[0] is inf, and JSON has only finite numbers"),
    "minus infinity": ({"a": {"b": -math.inf}}, "$.a.b is -inf, and JSON has only finite numbers"),
    "nan in a dataclass": (Box([math.nan]), "$.held[0] is NaN"),
    "nan in a struct": (Holder(math.nan), "$.held is NaN"),
    "a lone surrogate": ({"a": ["\udc80"]}, "$.a[0] has a lone surrogate, which UTF-8 cannot hold"),
    "a lone surrogate in a key": ({"a": {"\ud800": 1}}, "$.a has a lone surrogate"),
    "a number as a key": (
        {"a": [{1: 2}]},
        "$.a[0] has a key of type int, and JSON keys are strings; use str(key)",
    ),
    "none as a key": ({None: 2}, "$ has a key of type NoneType"),
    "a tuple as a key": ({(1, 2): 2}, "$ has a key of type tuple"),
    "bytes": ({"a": b"x"}, "$.a is of type bytes, which JSON cannot say; a body is made of None, bool"),
    "a set": ([0, 1, 2, {3}], "$[3] is of type set"),
    "an object": (NotJson(), "$ is of type NotJson"),
    "a class": (Address, "$ is of type type"),
    "a function": ({"f": len}, "$.f is of type builtin_function_or_method"),
    "a complex number": (1j, "$ is of type complex"),
    "an object in a dataclass": ({"a": [Box(NotJson())]}, "$.a[0].held is of type NotJson"),
    "an object in a struct": (
        {"a": [Holder(NotJson())]},
        "$.a[0] is a Holder that cannot be turned into JSON: Encoding objects of type NotJson is unsupported",
    ),
    "an object in a model": (
        {"a": [LooseModel(held=NotJson())]},
        "$.a[0] is a LooseModel that cannot be turned into JSON: Unable to serialize unknown type",
    ),
    "an integer of 5,000 digits": (
        {"n": 10**5000},
        "$.n is an integer with more digits than Python turns into text",
    ),
}


@pytest.mark.parametrize(("body", "text"), UNSAYABLE.values(), ids=UNSAYABLE)
def test_what_json_cannot_say_is_refused_with_its_place_and_nothing_is_stored(
    body: object, text: str, client: Client
) -> None:
    before = client.stats()
    good, bad = PendingJob("t", 1), PendingJob("t", body)
    calls: list[Callable[[], object]] = [
        lambda: client.enqueue(bad),
        lambda: client.enqueue(good, bad),
        lambda: client.enqueue_many([good, [good, bad]]),
    ]
    for enqueue in calls:
        with pytest.raises(BodyError) as caught:
            enqueue()
        assert caught.value.code == "DEJQ-E110"
        assert str(caught.value).startswith('DEJQ-E110 the body of a "t" job is not JSON: $')
        assert text in str(caught.value)
    assert client.stats() == before


def test_a_refusal_names_the_place_and_never_the_value() -> None:
    with pytest.raises(BodyError) as caught:
        raw({"user": {"password": "hunter2", "token": {"hunter2"}}})
    assert "$.user.token" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@dataclasses.dataclass
class Changing:
    """A model whose code changes the dict that it is in."""

    change: Callable[[], None]

    def __getattribute__(self, name: str) -> Any:
        if name == "change":
            change: Callable[[], None] = object.__getattribute__(self, "change")
            return change()
        return object.__getattribute__(self, name)


@pytest.mark.parametrize("is_last", [False, True], ids=["in the middle", "at the end"])
def test_a_dict_that_changes_while_it_is_encoded_is_refused(is_last: bool) -> None:
    body: dict[str, object] = {}
    body["model"] = Changing(lambda: body.update(more=1))
    if not is_last:
        body["other"] = 1
    with pytest.raises(BodyError, match=r"\$ has changed while it was being encoded; enqueue a copy"):
        raw(body)


def test_a_dict_whose_keys_are_swapped_while_it_is_encoded_is_written_or_refused_but_never_a_panic() -> None:
    body: dict[str, object] = {}

    def swap() -> None:
        del body["model"]
        body["another"] = 2

    body["model"] = Changing(swap)
    body["other"] = 1
    assert json.loads(raw(body)).keys() <= {"model", "other", "another"}


class Turning(enum.Enum):
    AGAIN = 1

    @property
    def value(self) -> Any:
        return self


def test_a_value_that_never_turns_into_json_is_refused() -> None:
    with pytest.raises(BodyError, match="never turns into something that JSON can say"):
        raw([Turning.AGAIN])


@dataclasses.dataclass
class Raising:
    a: int = 0

    def __getattribute__(self, name: str) -> Any:
        if name == "a":
            raise ZeroDivisionError("the model's own")
        return object.__getattribute__(self, name)


def test_an_exception_of_the_models_own_code_comes_out_as_it_is(client: Client) -> None:
    with pytest.raises(ZeroDivisionError, match="the model's own"):
        client.enqueue(PendingJob("t", Raising()))
    assert client.stats().enqueued_jobs == 0


# ---- sizes -----------------------------------------------------------------------------------------------


def test_a_body_of_exactly_the_limit_is_taken(client: Client) -> None:
    (id,) = client.enqueue(PendingJob("t", "x" * (MIB - 2)))
    assert len(client.get_job(id).raw_body) == MIB


def test_a_body_over_the_limit_is_refused_with_both_sizes(client: Client) -> None:
    before = client.stats()
    with pytest.raises(BodyTooLarge) as caught:
        client.enqueue(PendingJob("t", 1), PendingJob("t", "x" * (MIB - 1)))
    error = caught.value
    assert (error.size, error.limit, error.code) == (MIB + 1, MIB, "DEJQ-E111")
    assert 'the body of a "t" job has 1048577 bytes as JSON, 1048576 is the most here' in str(error)
    assert "enqueue a reference to it, or raise max_body" in str(error)
    assert isinstance(error, BodyError)
    assert client.stats() == before


def test_the_limit_is_an_option(new_client: NewClient) -> None:
    client = new_client(max_body=3)
    client.enqueue(PendingJob("t", 123))
    with pytest.raises(BodyTooLarge) as caught:
        client.enqueue_many([PendingJob("t", 1), PendingJob("t", 1234)])
    assert (caught.value.size, caught.value.limit) == (4, 3)
    assert client.stats().enqueued_jobs == 1


def test_a_body_of_ten_times_the_limit_is_refused_too(client: Client) -> None:
    with pytest.raises(BodyTooLarge):
        client.enqueue(PendingJob("t", ["x" * 100] * (10 * MIB // 100)))


def test_a_process_that_lifts_the_limit_of_digits_may_enqueue_more() -> None:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        assert raw(10**5000) == b"1" + b"0" * 5000
    finally:
        sys.set_int_max_str_digits(limit)


def test_bodies_are_encoded_on_many_threads_at_once() -> None:
    client = dejq.memory()
    bodies = [{"thread": number, "items": [Address("Bern"), {"k": [number] * 50}]} for number in range(8)]
    ids: dict[int, list[str]] = {}

    def enqueue(number: int) -> None:
        ids[number] = [client.enqueue(PendingJob("t", bodies[number]))[0] for _ in range(50)]

    threads = [threading.Thread(target=enqueue, args=(number,)) for number in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, of_thread in ids.items():
        assert {client.get_job(id).body["thread"] for id in of_thread} == {number}
