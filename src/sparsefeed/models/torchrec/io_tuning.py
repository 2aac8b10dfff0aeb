"""How many threads read and how many batches wait: tried on the first steps of a training, which count like any other.

A setting changes when batches are made, never what is in them. Ranks time each setting alike, take the mean of all, and
so choose the same one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from sparsefeed.models.torchrec.loader import Loader

__all__ = ["IoSetting", "Tuner", "settings_to_try"]

_STEPS, _WARM = 24, 8  # of each setting, and those that are not timed: a loader that begins has nothing ready
_NEAR = 1.03  # a setting that is so near the best is as good, and the one with fewer threads is taken


@dataclass(frozen=True)
class IoSetting:
    """`read_threads` and `batches_ahead` of a loader."""

    read_threads: int
    batches_ahead: int

    def of(self, loader: Loader) -> Loader:
        """The loader with this setting."""
        return replace(loader, read_threads=self.read_threads, batches_ahead=self.batches_ahead)


def settings_to_try(cores: int) -> list[IoSetting]:
    """From none ahead to as many threads as a rank has cores, eight at most."""
    found, threads = [IoSetting(1, 0)], 1
    while threads <= min(cores, 8):
        found.append(IoSetting(threads, 4))
        threads *= 2
    return found


class Tuner:
    """Goes through settings, a stretch of steps each.

    Args:
        settings: The fewest threads first.
        device: Of the ranks' collectives.
    """

    def __init__(self, settings: list[IoSetting], device: torch.device) -> None:
        self._left, self._device = list(settings), device
        self._seconds: dict[IoSetting, float] = {}
        self._steps, self._began = 0, 0.0

    @property
    def best(self) -> IoSetting | None:
        """The fewest threads among the best; None: nothing is known yet."""
        if not self._seconds:
            return None
        least = min(self._seconds.values())
        return next(setting for setting, seconds in self._seconds.items() if seconds <= _NEAR * least)

    @property
    def seconds(self) -> dict[IoSetting, float]:
        """Of a step, mean over all ranks, by setting tried."""
        return dict(self._seconds)

    def setting(self) -> IoSetting | None:
        """What to run the next stretch with: one that was not tried to its end, or the best."""
        return self._left[0] if self._left else self.best

    @property
    def stretch(self) -> int | None:
        """Steps to run it for; None: to the end."""
        return _STEPS - self._steps if self._left else None

    def stepped(self) -> None:
        """Count a step that ended."""
        if not self._left:
            return
        self._steps += 1
        if self._steps == _WARM:
            self._began = time.perf_counter()
        elif self._steps == _STEPS:
            taken = torch.tensor([(time.perf_counter() - self._began) / (_STEPS - _WARM)], device=self._device)
            dist.all_reduce(taken)
            self._seconds[self._left.pop(0)] = float(taken) / dist.get_world_size()
            self._steps = 0
