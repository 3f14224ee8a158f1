"""Where a setting comes from: the call, ``DEJQ_…`` in the environment, ``[tool.dejq]`` in pyproject.toml."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

from dejq.errors import ConfigError

# Longer times mean nothing, and overflow somewhere.
_LONGEST_SECONDS = 36_500 * 86_400


def find_url(url: str | None) -> tuple[str, str]:
    """Returns the store's URL and where it comes from.

    Raises:
        ConfigError: There is none.
    """
    if url is not None:
        return url, "the call"
    if from_environment := os.environ.get("DEJQ_URL"):
        return from_environment, "DEJQ_URL"
    if from_project := project_settings().get("url"):
        return str(from_project), "[tool.dejq] in pyproject.toml"
    raise ConfigError(
        'no store is named: pass a URL, for example connect("memory://"), or set DEJQ_URL, or write '
        'url = "…" under [tool.dejq] in pyproject.toml'
    )


def project_settings() -> dict[str, Any]:
    """``[tool.dejq]`` of the nearest pyproject.toml in this folder or above; empty if there is none.

    Raises:
        ConfigError: The file is not TOML, or has such a table and this Python has nothing to read it with.
    """
    from pathlib import Path

    here = Path.cwd()
    for folder in (here, *here.parents):
        file = folder / "pyproject.toml"
        if file.is_file():
            try:
                return dict(_read_toml(file.read_text(encoding="utf-8")).get("tool", {}).get("dejq", {}))
            except (OSError, ValueError) as error:
                raise ConfigError(f"{file} cannot be read as TOML: {error}") from error
            except ModuleNotFoundError:
                raise ConfigError(
                    f"{file} has settings for dejq, and Python 3.10 cannot read TOML by itself: pip install tomli, "
                    "or set DEJQ_… in the environment instead"
                ) from None
    return {}


def _read_toml(text: str) -> dict[str, Any]:
    if "dejq" not in text:
        return {}  # nothing for us in it, so it needs no parser
    if sys.version_info >= (3, 11):
        import tomllib as toml
    else:
        import tomli as toml
    return toml.loads(text)


def as_options(options: dict[str, Any]) -> dict[str, str]:
    """Options as the text that the engine checks; those that are ``None`` are not given.

    Raises:
        ConfigError: A value has no such text.
    """
    return {name: _as_text(name, value) for name, value in options.items() if value is not None}


def _as_text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, timedelta):
        return repr(value.total_seconds())
    if isinstance(value, (str, int, float)):
        return str(value)
    raise ConfigError(f"option {name}= cannot be a {type(value).__name__}; give a number, a string or a timedelta")


def seconds(value: float | timedelta | None, name: str) -> float | None:
    """A duration in seconds.

    Raises:
        ConfigError: It is negative, not a number, or endless.
    """
    if value is None:
        return None
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if not isinstance(number, (int, float)) or not 0 <= number <= _LONGEST_SECONDS:
        raise ConfigError(
            f"{name}={value!r} must be seconds (a number) or a timedelta, neither negative nor endless "
            "(100 years at most)"
        )
    return float(number)
