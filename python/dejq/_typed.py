"""Between JSON and the types users write: dataclasses, TypedDicts, msgspec structs, pydantic models, built-ins.

msgspec and pydantic are known by their looks; neither is imported here. Texts name the path of what does not
fit and the type that was expected, never the value.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from dejq.errors import BodyError, ConfigError

# From a decoded JSON value and its path to a value of the type.
_Convert = Callable[[Any, str], Any]


class _Misfit(Exception):
    """A value that does not fit, with the path and the reason as text."""


# ---- encoding ------------------------------------------------------------------------------------------


def to_builtins(value: Any) -> Any:
    """Turns a model, an enum member or an instance of a subclass into JSON's own types, one level deep.

    Called by the engine for values that are not exactly a built-in. Returns `NotImplemented` when there is no way.
    """
    kind = type(value)
    if dataclasses.is_dataclass(kind):
        return {name: getattr(value, name) for name in _field_names(kind)}
    if _is_struct(kind):
        return _msgspec(kind).to_builtins(value)
    if _is_model(kind):
        return value.model_dump(mode="json")
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
        convert = _converter(to)

        def read(raw: bytes) -> Any:
            return convert(json.loads(raw), "$")

    def decode_body(raw: bytes) -> Any:
        try:
            return read(raw)
        except _Misfit as misfit:
            why = str(misfit)
        except Exception as error:
            why = _why(error)
        # Not chained: the texts of other libraries may quote the body.
        raise BodyError(f"the body of {job_type!r} does not fit {_name(to)}: {why}") from None

    return decode_body


@functools.lru_cache(maxsize=256)
def _cached_decoder(job_type: str, to: Any) -> Callable[[bytes], Any]:
    return decoder(job_type, to)


def _why(error: Exception) -> str:
    """The reason without the values: pydantic lists them apart, msgspec has none in its texts."""
    errors = getattr(error, "errors", None)
    if callable(errors):
        found = errors(include_input=False, include_context=False, include_url=False)
        return "; ".join(f"$.{'.'.join(map(str, item['loc']))} {item['msg']}" for item in found)
    if type(error).__module__.startswith("msgspec"):
        return str(error)
    return f"{type(error).__name__} (from its own code)"


def _converter(to: Any) -> _Convert:
    if to is Any or to is object:
        return lambda value, path: value
    if to is None or to is type(None):
        return _exactly(type(None), "null")
    for kind, name in ((bool, "a boolean"), (str, "a string")):
        if to is kind:
            return _exactly(kind, name)
    if to is int:
        return lambda value, path: _expect(value, path, "an integer", type(value) is int)
    if to is float:
        return lambda value, path: float(_expect(value, path, "a number", type(value) in (int, float)))
    if isinstance(to, typing.TypeVar):
        return _converter(Any)
    if isinstance(to, typing.NewType):
        return _converter(to.__supertype__)
    if _is_struct(to):
        return lambda value, path: _msgspec(to).convert(value, to)
    if _is_model(to):
        return lambda value, path: to.model_validate(value)
    if typing.is_typeddict(to):
        return _typed_dict(to)
    if dataclasses.is_dataclass(to):
        return _dataclass(to)
    if isinstance(to, type) and issubclass(to, Enum):
        return _enum(to)
    return _generic(to, get_origin(to) or to, get_args(to))


def _generic(to: Any, origin: Any, args: tuple[Any, ...]) -> _Convert:
    if origin is Annotated:
        return _converter(args[0])
    if origin is Union or origin is types.UnionType:
        return _union(to, [_converter(arg) for arg in args])
    if origin is Literal:
        return lambda value, path: _expect(
            value, path, f"one of {args}", any(value == arg and type(value) is type(arg) for arg in args)
        )
    if origin in (list, collections.abc.Sequence, collections.abc.Iterable):
        item = _converter(args[0] if args else Any)
        return lambda value, path: [
            item(element, f"{path}[{index}]")
            for index, element in enumerate(_expect(value, path, "an array", type(value) is list))
        ]
    if origin is tuple:
        return _tuple(args)
    if origin in (dict, collections.abc.Mapping, collections.abc.MutableMapping):
        key, content = args or (str, Any)
        if key is not str and key is not Any:
            raise ConfigError(f"cannot decode a body to {_name(to)}: keys of JSON objects are strings")
        item = _converter(content)
        return lambda value, path: {
            name: item(element, f"{path}.{name}")
            for name, element in _expect(value, path, "an object", type(value) is dict).items()
        }
    raise ConfigError(
        f"cannot decode a body to {_name(to)}; use built-ins, list, dict, tuple, Optional, Union, Literal, Enum, "
        "a dataclass, a TypedDict, a msgspec.Struct or a pydantic model"
    )


def _expect(value: Any, path: str, what: str, fits: bool) -> Any:
    if not fits:
        raise _Misfit(f"{path} must be {what}, not {_json_name(value)}")
    return value


def _exactly(kind: type, name: str) -> _Convert:
    return lambda value, path: _expect(value, path, name, type(value) is kind)


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


def _tuple(args: tuple[Any, ...]) -> _Convert:
    if len(args) == 2 and args[1] is Ellipsis:
        args, open_ended = args[:1], True
    else:
        open_ended = not args
    items = [_converter(arg) for arg in args or (Any,)]

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
            return to(value)
        except ValueError:
            raise _Misfit(f"{path} is no value of {to.__name__}") from None

    return convert


def _typed_dict(to: Any) -> _Convert:
    converters = {name: _converter(_bare(hint)) for name, hint in _hints(to).items()}
    required: frozenset[str] = to.__required_keys__

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


def _dataclass(to: Any) -> _Convert:
    hints = _hints(to)
    fields = [field for field in dataclasses.fields(to) if field.init]
    required = {
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    # Made at the first use: a dataclass may contain itself.
    converters: dict[str, _Convert] = {}

    def convert(value: Any, path: str) -> Any:
        if not converters:
            converters.update({field.name: _converter(hints[field.name]) for field in fields})
        _expect(value, path, "an object", type(value) is dict)
        for name in required:
            if name not in value:
                raise _Misfit(f"{path}.{name} is missing")
        # Names that the class does not have are left out: a newer producer may know more.
        return to(**{name: one(value[name], f"{path}.{name}") for name, one in converters.items() if name in value})

    # What cannot be decoded at all is said now, where it is written.
    for field in fields:
        if not _contains(hints[field.name], to):
            _converter(hints[field.name])
    return convert


def _contains(hint: Any, to: Any) -> bool:
    return hint is to or any(_contains(arg, to) for arg in get_args(hint))


def _hints(to: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(to, include_extras=True)
    except NameError as error:
        raise ConfigError(f"cannot decode a body to {_name(to)}: an annotation names something unknown: {error}") from error


def _bare(hint: Any) -> Any:
    """Without Required[…] and NotRequired[…], which say nothing about the value."""
    while getattr(get_origin(hint), "__name__", getattr(get_origin(hint), "_name", None)) in ("Required", "NotRequired"):
        (hint,) = get_args(hint)
    return hint


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
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "an integer", float: "a number"}
    return "null" if value is None else names[type(value)]
