"""Passwords in texts that others see."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NAMES = "password|passwd|pwd|secret|token"
_SECRETS = (
    # user:password@ in a URL, up to the last @ of the word: a password may contain one.
    (re.compile(r"(://[^/?#\s:@]*):\S+@"), r"\1:***@"),
    # password=… in a query or for libpq, and 'password': '…' in a printed dictionary.
    (re.compile(rf"\b({_NAMES})=('[^']*'|\"[^\"]*\"|[^&\s'\"]+)", re.IGNORECASE), r"\1=***"),
    (re.compile(rf"(['\"]({_NAMES})['\"]: )('[^']*'|\"[^\"]*\")", re.IGNORECASE), r"\1'***'"),
)
_NAME = re.compile(_NAMES, re.IGNORECASE)


def scrub(text: str) -> str:
    """The text without passwords."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


@dataclass(frozen=True)
class AsItIs:
    """What JSON can say, and somebody has asked for: `plain` takes no passwords out of it."""

    value: Any


def plain(value: Any) -> Any:
    """What JSON can say, without passwords: once it is JSON, quotes and escapes hide where one ends.

    Args:
        value: Anything; what JSON cannot say becomes its ``str()``. What stands under the name of a secret is replaced.
    """
    if isinstance(value, AsItIs):
        return value.value
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return {scrub(str(key)): "***" if _NAME.fullmatch(str(key)) else plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return scrub(str(value))
