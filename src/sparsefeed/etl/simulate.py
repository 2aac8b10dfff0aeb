"""The feed simulator: logs as a platform would write them, from a world whose truth is known.

One call, one folder:

    OUT/impressions/day=YYYY-MM-DD/part-000.parquet   what was shown and whether it was clicked (docs/contracts/logs.md)
    OUT/actions/day=YYYY-MM-DD/part-000.parquet       likes, comments, reshares, as they came
    OUT/truth/day=YYYY-MM-DD/part-000.parquet         the probability each label was drawn from; for evaluation only
    OUT/simulation.json                               config and counts, written last

Notable: the production policy ranks by a relevance that no column holds, so a model trained on its
sessions over-predicts on random traffic, as in real feeds; docs/simulator.md has the equations and
the measured figures.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsefeed.errors import DataError
from sparsefeed.etl.simulation.config import SimulateConfig
from sparsefeed.etl.simulation.policy import POSTS_PER_SESSION, draw_sessions
from sparsefeed.etl.simulation.world import DAY_MS, build_world
from sparsefeed.etl.simulation.write import LogWriter
from sparsefeed.progress import Progress, silent

__all__ = ["SimulateConfig", "SimulationSummary", "simulate"]

FORMAT = 1  # of the folder and the equations: raised when the same config would give other logs
CHUNK_SESSIONS = 16_384  # drawn, written and forgotten at once: about 300 MB at the most


@dataclass(frozen=True)
class SimulationSummary:
    """Counts of one simulation; `random_*` are those in random sessions, the others those in all."""

    impressions: int
    clicks: int
    likes: int
    comments: int
    reshares: int
    random_impressions: int
    random_clicks: int
    random_likes: int
    random_comments: int
    random_reshares: int


def simulate(config: SimulateConfig, out: Path, progress: Progress = silent) -> SimulationSummary:
    """Write the logs of `config` to `out` and count them.

    Guarantees: equal configs give equal logs. `out` appears only when it is whole: it is written beside,
    as `.<name>.partial`, and renamed. A folder that already holds this config is left as it is and its
    summary returned. Memory is that of the world and one chunk, whatever the number of impressions.

    Args:
        config: What to simulate.
        out: The folder to make; its parent is made too.
        progress: Told the impressions written and in all.

    Returns:
        The counts that `simulation.json` holds as well.

    Raises:
        DataError: `out` exists and holds something else.
    """
    if out.exists():
        return _existing(config, out)
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    summary = _write(config, partial, progress)
    # JSON last, rename after: a folder with a simulation.json is whole even where a rename is a copy.
    text = json.dumps(
        {"format": FORMAT, "config": config.model_dump(mode="json"), "summary": asdict(summary)}, indent=1
    )
    (partial / "simulation.json").write_text(text + "\n", "utf-8")
    partial.rename(out)
    return summary


def _write(config: SimulateConfig, folder: Path, progress: Progress) -> SimulationSummary:
    world = build_world(config)
    num_sessions = np.zeros(2, np.int64)  # production, random
    num_responses = np.zeros((2, 4), np.int64)
    total = config.days * config.num_sessions_per_day * POSTS_PER_SESSION
    with LogWriter(folder, world) as writer:
        for day in range(config.days):
            date = np.datetime64(world.start_ms + day * DAY_MS, "ms").astype("datetime64[D]")
            for first in range(0, config.num_sessions_per_day, CHUNK_SESSIONS):
                which = range(first, min(first + CHUNK_SESSIONS, config.num_sessions_per_day))
                rng = np.random.default_rng([config.seed, 1, day, first])
                sessions = draw_sessions(world, config, day, which, rng)
                num_responses += writer.write(sessions, day * config.num_sessions_per_day + first, rng)
                num_sessions += np.bincount(sessions.is_random, minlength=2)
                progress(int(num_sessions.sum()) * POSTS_PER_SESSION, total, f"simulate {date}")
    num_impressions = num_sessions * POSTS_PER_SESSION
    overall = (num_impressions.sum(), *num_responses.sum(axis=0))
    return SimulationSummary(*(int(n) for n in (*overall, num_impressions[1], *num_responses[1])))


def _existing(config: SimulateConfig, out: Path) -> SimulationSummary:
    remedy = "remove it or name another folder"
    try:
        found: dict[str, Any] = json.loads((out / "simulation.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{out}: exists and holds no finished simulation ({error}); {remedy}") from error
    wanted = {"format": FORMAT, **config.model_dump(mode="json")}
    got = {"format": found.get("format"), **found.get("config", {})}
    differing = [
        f"{key}: there {got.get(key)!r}, asked {wanted[key]!r}" for key in wanted if got.get(key) != wanted[key]
    ]
    if differing:
        raise DataError(f"{out}: holds another simulation ({'; '.join(differing)}); {remedy}")
    return SimulationSummary(**found["summary"])
