"""How long to wait between the attempts of a job."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dejq.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential waits with jitter: `initial`, then `factor` times as long each time, up to `maximum`.

    Each wait is varied at random by up to ± `jitter` of itself, so that jobs that failed together do not come
    back together. ``Backoff(30, factor=1)`` waits for 30 seconds every time.

    Args:
        initial: Seconds before the second attempt. Default 1.
        factor: At least 1. Default 2.
        maximum: Seconds; the longest wait, before jitter. Default one hour.
        jitter: 0 to 1. Default 0.2.

    Raises:
        ConfigError: A value is out of its range.
    """

    initial: float = 1.0
    factor: float = 2.0
    maximum: float = 3600.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        self._check("initial", self.initial, 0.0, math.inf)
        self._check("factor", self.factor, 1.0, math.inf)
        self._check("maximum", self.maximum, 0.0, math.inf)
        self._check("jitter", self.jitter, 0.0, 1.0)

    @staticmethod
    def _check(name: str, value: float, least: float, most: float) -> None:
        if not (math.isfinite(value) and least <= value <= most):
            span = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
            raise ConfigError(f"Backoff({name}={value!r}) must be a finite number {span}")

    def _parts(self) -> tuple[float, float, float, float]:
        return (float(self.initial), float(self.factor), float(self.maximum), float(self.jitter))
