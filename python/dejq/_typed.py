"""Between JSON and the types users write: dataclasses, TypedDicts, msgspec structs, pydantic models, built-ins.

msgspec and pydantic are known by their looks; neither is imported here. Texts name the path of what does not
fit and the type that was expected, never the value.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from dejq.errors import BodyError, ConfigError

# From a decoded JSON value and its path to a value of the type.
_Convert = Callable[[Any, str], Any]
# Of the classes that are being looked at or were: a class may contain itself, at any distance.
_Known = dict[Any, _Convert]


class UnsayableError(Exception):
    """A model whose own library cannot turn it into JSON; the reason as text."""


class _Misfit(Exception):
    """A value that does not fit, with the path and the reason as text."""


# ---- encoding ------------------------------------------------------------------------------------------


def to_builtins(value: Any) -> Any:
    """Turns a model, an enum member or an instance of a subclass into JSON's own types, one level deep.

    Called by the engine for values that are not exactly a built-in. Returns `NotImplemented` when there is no
    way.

    Raises:
        UnsayableError: A model holds something that its library cannot turn into JSON.
    """
    kind = type(value)
    if dataclasses.is_dataclass(kind):
        return {name: getattr(value, name) for name in _field_names(kind)}
    if _is_struct(kind):
        return _dumped(value, _msgspec(kind).to_builtins)
    if _is_model(kind):
        # By alias, as the model itself reads JSON.
        return _dumped(value, functools.partial(kind.model_dump, mode="json", by_alias=True))
    if isinstance(value, Enum):
        return value.value
    # By the built-in's own method: a subclass may have changed what str() and friends say.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, collections.abc.Mapping):
        return dict(value)
    if isinstance(value, (list, tuple)):
        return list(value)
    return NotImplemented


# The libraries' own reasons, which name types; others may come from the model's code and quote it.
_HARMLESS = (
    "Encoding objects of type ",
    "Unable to serialize unknown type: ",
    "Circular reference detected",
)


def _dumped(model: Any, dump: Callable[[Any], Any]) -> Any:
    try:
        return dump(model)
    except RecursionError:
        why = "it contains itself"
    except (TypeError, ValueError) as error:
        text = str(error)
        why = text if text.startswith(_HARMLESS) else _whose(error)
    raise UnsayableError(f"is a {type(model).__name__} that cannot be turned into JSON: {why}")


@functools.lru_cache(maxsize=1024)
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


# ---- decoding ------------------------------------------------------------------------------------------


def decode(job_type: str, raw: bytes, to: Any) -> Any:
    """Decodes a body to a type.

    Raises:
        BodyError: It does not fit; the text names the path.
        ConfigError: dejq cannot decode to that type.
    """
    try:
        hash(to)
    except TypeError:  # Annotated[…] with something unhashable
        return decoder(job_type, to)(raw)
    return _cached_decoder(job_type, to)(raw)


def decoder(job_type: str, to: Any) -> Callable[[bytes], Any]:
    """Returns a function that decodes bodies of a job type to a type.

    Raises:
        ConfigError: dejq cannot decode to that type.
    """
    if _is_struct(to):
        read = _msgspec(to).json.Decoder(to).decode
    elif _is_model(to):
        read = to.model_validate_json
    else:
        convert = _converter(to, {})

        def read(raw: bytes) -> Any:
            return convert(_parsed(raw), "$")

    def decode_body(raw: bytes) -> Any:
        try:
            return read(raw)
        except Exception as error:
            why = _why(error, "$")
        # Not chained: the texts of other libraries may quote the body.
        raise BodyError(f"the body of {job_type!r} does not fit {_name(to)}: {why}") from None

    return decode_body


def _no_number(name: str) -> None:
    raise ValueError(name)


_JSON = json.JSONDecoder(parse_constant=_no_number)  # Python's own reader takes NaN and Infinity


def _parsed(raw: bytes) -> Any:
    try:
        return _JSON.decode(raw.decode())
    except ValueError:
        pass  # the text quotes what stands there
    raise _Misfit("$ is not JSON; somebody else has put it into the store")


@functools.lru_cache(maxsize=256)
def _cached_decoder(job_type: str, to: Any) -> Callable[[bytes], Any]:
    return decoder(job_type, to)


def _why(error: Exception, path: str) -> str:
    """The place and the reason, without the value that did not fit at `path`."""
    module = type(error).__module__
    if isinstance(error, _Misfit):
        return str(error)
    errors: Any = getattr(error, "errors", None)
    if module.startswith("pydantic") and errors is not None:
        return "; ".join(f"{path}{_steps(item['loc'])} {_pydantic_reason(item)}" for item in errors())
    if module.startswith("msgspec"):
        return _msgspec_reason(error, path)
    return f"{path} is refused: {_whose(error)}"


def _steps(loc: tuple[int | str, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)


# What pydantic's own texts may be made of: what the model says, never what the body says.
_OF_THE_MODEL = frozenset({
    "actual_length", "class", "class_name", "decimal_places", "discriminator", "expected",
    "expected_schemes", "expected_tags", "expected_version", "field_type", "ge", "gt", "le", "lt",
    "max_digits", "max_length", "min_length", "multiple_of", "pattern", "tz_expected", "whole_digits",
})  # fmt: skip


def _pydantic_reason(item: dict[str, Any]) -> str:
    # Errors of validators, of users' own making and those that quote are told by their name only.
    is_safe = "url" in item and item.get("ctx", {}).keys() <= _OF_THE_MODEL
    return str(item["msg"] if is_safe else item["type"])


def _msgspec_reason(error: Exception, path: str) -> str:
    text, _, place = str(error).partition(" - at `$")
    place = path + place.removesuffix("`")
    if error.__cause__ is not None:
        return f"{place} is refused: {_whose(error.__cause__)}"
    # Up to a quoted value or key, where it has one.
    match = re.match(r"Expected `.*|Object missing required field `.*|JSON is malformed.*|[\w ]+", text)
    return f"{place} {match[0].strip() if match else 'does not fit'}"


def _whose(error: BaseException) -> str:
    return f"{type(error).__name__} (from its own code)"


def _foreign(read: Callable[[Any], Any]) -> _Convert:
    """Code that is not ours: whatever it raises is a misfit, told without the value."""

    def convert(value: Any, path: str) -> Any:
        try:
            return read(value)
        except Exception as error:
            why = _why(error, path)
        raise _Misfit(why)

    return convert


def _to_integer(value: Any, path: str) -> Any:
    return _expect(value, path, "an integer", type(value) is int)


def _to_float(value: Any, path: str) -> Any:
    number = _expect(value, path, "a number", type(value) in (int, float))
    try:
        result = float(number)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):  # 1e400, which JSON can say
        raise _Misfit(f"{path} is larger than a float can be")
    return result


_SCALARS: tuple[tuple[Any, _Convert], ...] = (
    (Any, lambda value, _: value),
    (object, lambda value, _: value),
    (None, lambda value, path: _expect(value, path, "null", value is None)),
    (type(None), lambda value, path: _expect(value, path, "null", value is None)),
    (bool, lambda value, path: _expect(value, path, "a boolean", type(value) is bool)),
    (str, lambda value, path: _expect(value, path, "a string", type(value) is str)),
    (int, _to_integer),
    (float, _to_float),
)


def _converter(to: Any, known: _Known) -> _Convert:
    for kind, convert in _SCALARS:
        if to is kind:
            return convert
    if isinstance(to, typing.TypeVar):
        return _converter(Any, known)
    if isinstance(to, typing.NewType):
        return _converter(to.__supertype__, known)
    if _is_struct(to):
        return _foreign(functools.partial(_msgspec(to).convert, type=to))
    if _is_model(to):
        return _foreign(to.model_validate)
    if _is_typed_dict(to):
        return _class(to, known, _typed_dict)
    if dataclasses.is_dataclass(to):
        return _class(to, known, _dataclass)
    if isinstance(to, type) and issubclass(to, Enum):
        return _enum(to)
    return _generic(to, get_origin(to) or to, get_args(to), known)


def _class(to: Any, known: _Known, make: Callable[[Any, _Known], _Convert]) -> _Convert:
    if to not in known:
        known[to] = lambda value, path: known[to](value, path)  # until it is made, which may need itself
        known[to] = make(to, known)
    return known[to]


def _generic(to: Any, origin: Any, args: tuple[Any, ...], known: _Known) -> _Convert:
    if origin is Annotated:
        return _converter(args[0], known)
    if origin is Union or origin is types.UnionType:
        return _union(to, [_converter(arg, known) for arg in args])
    if origin is Literal:
        return _literal(args)
    if origin in (list, collections.abc.Sequence, collections.abc.Iterable):
        item = _converter(args[0] if args else Any, known)
        return lambda value, path: [
            item(element, f"{path}[{index}]")
            for index, element in enumerate(_expect(value, path, "an array", type(value) is list))
        ]
    if origin is tuple:
        return _tuple(args, known)
    if origin in (dict, collections.abc.Mapping, collections.abc.MutableMapping):
        key, content = args or (str, Any)
        if key is not str and key is not Any:
            raise ConfigError(f"cannot decode a body to {_name(to)}: keys of JSON objects are strings")
        item = _converter(content, known)
        return lambda value, path: {
            name: item(element, f"{path}.{name}")
            for name, element in _expect(value, path, "an object", type(value) is dict).items()
        }
    raise ConfigError(
        f"cannot decode a body to {_name(to)}; use built-ins, list, dict, tuple, Optional, Union, Literal, Enum, "
        "a dataclass, a TypedDict, a msgspec.Struct or a pydantic model"
    )


def _literal(args: tuple[Any, ...]) -> _Convert:
    known = ", ".join(map(repr, args))

    def convert(value: Any, path: str) -> Any:
        if any(value == arg and type(value) is type(arg) for arg in args):
            return value
        raise _Misfit(f"{path} must be one of {known}")

    return convert


def _expect(value: Any, path: str, what: str, fits: bool) -> Any:
    if not fits:
        raise _Misfit(f"{path} must be {what}, not {_json_name(value)}")
    return value


def _union(to: Any, converters: list[_Convert]) -> _Convert:
    def convert(value: Any, path: str) -> Any:
        reasons = []
        for one in converters:
            try:
                return one(value, path)
            except _Misfit as misfit:
                reasons.append(str(misfit))
        raise _Misfit(f"{path} fits no part of {_name(to)} ({'; '.join(reasons)})")

    return convert


def _tuple(args: tuple[Any, ...], known: _Known) -> _Convert:
    if len(args) == 2 and args[1] is Ellipsis:
        args, open_ended = args[:1], True
    else:
        open_ended = not args
    items = [_converter(arg, known) for arg in args or (Any,)]

    def convert(value: Any, path: str) -> tuple[Any, ...]:
        _expect(value, path, "an array", type(value) is list)
        if open_ended:
            return tuple(items[0](element, f"{path}[{index}]") for index, element in enumerate(value))
        _expect(value, path, f"an array of {len(items)}", len(value) == len(items))
        return tuple(
            item(element, f"{path}[{index}]") for index, (item, element) in enumerate(zip(items, value, strict=True))
        )

    return convert


def _enum(to: type[Enum]) -> _Convert:
    def convert(value: Any, path: str) -> Enum:
        try:
            member = to(value)
        except Exception:
            member = None
        # To Python, true and 1.0 are equal to 1.
        if member is None or (isinstance(value, (bool, float)) and type(value) is not type(member.value)):
            raise _Misfit(f"{path} is no value of {to.__name__}")
        return member

    return convert


def _typed_dict(to: Any, known: _Known) -> _Convert:
    hints = _hints(to)
    converters = {name: _converter(_bare(hint), known) for name, hint in hints.items()}
    # From the hints where they say so: before they are resolved, `__required_keys__` does not see it.
    required = [name for name, hint in hints.items() if _is_required(hint, name in to.__required_keys__)]

    def convert(value: Any, path: str) -> dict[str, Any]:
        _expect(value, path, "an object", type(value) is dict)
        for name in required:
            if name not in value:
                raise _Misfit(f"{path}.{name} is missing")
        return {
            name: converters[name](element, f"{path}.{name}") if name in converters else element
            for name, element in value.items()
        }

    return convert


def _dataclass(to: Any, known: _Known) -> _Convert:
    hints = _hints(to)
    fields = [field for field in dataclasses.fields(to) if field.init]
    converters = {field.name: _converter(hints[field.name], known) for field in fields}
    required = [
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    make = _foreign(lambda given: to(**given))

    def convert(value: Any, path: str) -> Any:
        _expect(value, path, "an object", type(value) is dict)
        for name in required:
            if name not in value:
                raise _Misfit(f"{path}.{name} is missing")
        # Names that the class does not have are left out: a newer producer may know more.
        return make(
            {name: one(value[name], f"{path}.{name}") for name, one in converters.items() if name in value},
            path,
        )

    return convert


def _hints(to: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(to, include_extras=True)
    except Exception as error:
        raise ConfigError(f"cannot decode a body to {_name(to)}: an annotation cannot be resolved: {error}") from error


def _qualifier(hint: Any) -> str | None:
    """``Required``, ``NotRequired`` or ``ReadOnly``, of whatever module, around the hint of a TypedDict's key."""
    origin = get_origin(hint)
    name = getattr(origin, "__name__", None) or getattr(origin, "_name", None)
    return name if name in ("Required", "NotRequired", "ReadOnly") else None


def _bare(hint: Any) -> Any:
    while _qualifier(hint):
        (hint,) = get_args(hint)
    return hint


def _is_required(hint: Any, otherwise: bool) -> bool:
    while qualifier := _qualifier(hint):
        if qualifier != "ReadOnly":
            return qualifier == "Required"
        (hint,) = get_args(hint)
    return otherwise


def _is_typed_dict(to: Any) -> bool:
    """Also those of typing_extensions, which `typing.is_typeddict` does not know."""
    return isinstance(to, type) and issubclass(to, dict) and hasattr(to, "__required_keys__")


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and hasattr(kind, "__struct_fields__") and hasattr(kind, "__struct_config__")


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and hasattr(kind, "model_validate_json") and hasattr(kind, "model_dump")


def _msgspec(_: type) -> Any:
    """The library that made the struct, which is therefore installed."""
    import msgspec

    return msgspec


def _name(to: Any) -> str:
    return to.__qualname__ if isinstance(to, type) and not get_args(to) else str(to).replace("typing.", "")


def _json_name(value: Any) -> str:
    names = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a number",
    }
    return "null" if value is None else names[type(value)]
