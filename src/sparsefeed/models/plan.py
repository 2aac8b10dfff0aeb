"""Plan: which rows and columns of each table lie on which device, and what a training step then costs.

Bytes and operations alone decide (docs/howto/train.md has the formulas): no GPU, no torch and no data are needed, so a
plan can be made for machines that are not at hand. Figures count what every lookup would read and send at the longest
lists that the spec allows, so they are upper bounds but for uneven ids and overlapping work.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import BadFileError, SpecError, TrainError, did_you_mean
from sparsefeed.etl.spec import Feature, FeedSpec, Frozen, HistoryFeature, Table, validate
from sparsefeed.models.config import ModelConfig, Sharding
from sparsefeed.models.dense_size import DenseSize
from sparsefeed.models.topology import Topology

__all__ = ["Plan", "TablePlan", "make_plan"]

_FLOAT, _ID = 4, 8  # bytes
_SPARE = 0.9  # share of a device's memory that is planned with
# Bytes on the wire for each that is sent: headers, acknowledgements, sizes that ranks exchange first.
_FRAMES = 1.02


class TablePlan(Frozen):
    """How one table is sharded.

    Attributes:
        name: the table's.
        rows: its capacity.
        dim: floats of a row.
        sharding: table-wise: whole on one device; row-wise: a range of rows on each; column-wise: some columns on each
            of its devices; data-parallel: whole on each.
        devices: those that hold it, where they are not all.
        device_bytes: rows, optimiser state and, data-parallel, gradient on a device that holds a part.
        lookups: rows, or parts of rows, that such a device reads in a step.
        sent_bytes: what all devices together send for it in a step.
        reason: what the other ways would have cost.
    """

    name: str
    rows: int
    dim: int
    sharding: Sharding
    devices: tuple[int, ...]
    device_bytes: int
    lookups: int
    sent_bytes: int
    reason: str

    @property
    def hps_bytes(self) -> int:
        """Of the table as an HPS sparse folder: a key and the row in float32."""
        return self.rows * (_ID + _FLOAT * self.dim)

    @property
    def int8_bytes(self) -> int:
        """Of the table in the server, quantised row by row."""
        return self.rows * (self.dim + 2 * _FLOAT)


class Plan(Frozen):
    """A sharding for every table, and what the fullest and the busiest device have to do.

    Attributes:
        topology: the devices.
        model: shape of the dense model.
        batch_size: rows of a global batch.
        tables: in the spec's order.
        dense_parameters: of the dense model, which every device holds.
        device_bytes: what the fullest device holds, its libraries too.
        sent_bytes: what all devices together send in a step.
        lookup_s: of a step: rows read and updated, of the busiest device.
        send_s: of a step: of the device that sends most, latencies included.
        dense_s: of a step: matrix products.
    """

    topology: Topology
    model: ModelConfig
    batch_size: int
    tables: tuple[TablePlan, ...]
    dense_parameters: int
    device_bytes: int
    sent_bytes: int
    lookup_s: float
    send_s: float
    dense_s: float

    @property
    def step_s(self) -> float:
        """Of a step in which nothing overlaps."""
        return self.lookup_s + self.send_s + self.dense_s

    @property
    def samples_per_s(self) -> float:
        """Rows a second, at `step_s`."""
        return self.batch_size / self.step_s

    def of(self, table: str) -> TablePlan:
        """The plan of one table."""
        return next(one for one in self.tables if one.name == table)

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan that was saved; BadFileError where the file is none."""
        try:
            return validate(cls, json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, SpecError) as error:
            raise BadFileError(path, f"not a plan: {error}; make one with `sparsefeed plan --out`") from error

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(self.model_dump_json(indent=1) + "\n", "utf-8")


@dataclass(frozen=True)
class _Option:
    """One way to shard one table; what it adds to each device, [devices] each."""

    sharding: Sharding
    devices: tuple[int, ...]
    held: NDArray[np.float64]
    read: NDArray[np.float64]
    sent: NDArray[np.float64]
    lookups: float  # of a device that holds a part


@dataclass
class _Devices:
    """What devices have to do so far, [devices] each: bytes held, read and updated, and sent."""

    topology: Topology
    held: NDArray[np.float64]
    read: NDArray[np.float64]
    sent: NDArray[np.float64]

    def seconds(self, option: _Option | None = None) -> NDArray[np.float64]:
        """Of a step, [devices], with one more table."""
        read, sent = (self.read, self.sent) if option is None else (self.read + option.read, self.sent + option.sent)
        return read / self.topology.memory_bandwidth + sent * self.topology.send_s(1.0)

    def fits(self, option: _Option) -> bool:
        """Whether no device is over-full then."""
        return bool((self.held + option.held).max() <= _SPARE * self.topology.memory_bytes)

    def take(self, option: _Option) -> None:
        """Shard a table so."""
        self.held, self.read, self.sent = self.held + option.held, self.read + option.read, self.sent + option.sent


@dataclass(frozen=True)
class _Load:
    """What a step asks of one table.

    Attributes:
        table: with its name and dim.
        rows: its capacity.
        features: that read it; a history whose pooling is learned is one per place of its list, and of a paired tail
            each is two.
        ids: of a device's share of a batch, all features together.
        share: rows of a batch that a device has.
    """

    table: Table
    rows: int
    features: int
    ids: float
    share: float

    def options(self, devices: _Devices, narrowest: int) -> Iterator[_Option]:
        """All ways, the simplest first; columns in parts of `narrowest` at least."""
        num = devices.topology.devices
        yield self._column_wise(devices.topology, _least(devices, 1), "table_wise")
        if num == 1:
            return
        yield self._data_parallel(num)
        parts = 2
        while parts <= num and self.table.dim % (4 * parts) == 0 and self.table.dim // parts >= narrowest:
            yield self._column_wise(devices.topology, _least(devices, parts), "column_wise")
            parts *= 2
        yield self._row_wise(devices.topology)

    @property
    def _asked(self) -> float:
        """Bytes that a device sends to ask one owner for all its rows: ids and lengths."""
        return _ID * (self.ids + self.share * self.features)

    @property
    def _pooled(self) -> float:
        """Bytes of a device's pooled vectors, or of their gradient."""
        return _FLOAT * self.table.dim * self.share * self.features

    def _row_bytes(self, topology: Topology, dim: int) -> float:
        """A lookup reads the row; the backward pass reads gradient and row, writes the row, and counts squares."""
        lines = -(-_FLOAT * dim // topology.line_bytes) * topology.line_bytes
        return 3 * lines + _FLOAT * dim + 2 * topology.line_bytes

    def _column_wise(self, topology: Topology, owners: tuple[int, ...], sharding: Sharding) -> _Option:
        """Some columns on each owner; all on one: table-wise."""
        num, parts = topology.devices, len(owners)
        is_owner = np.zeros(num)
        is_owner[list(owners)] = 1
        dim = self.table.dim // parts
        sent = (self._asked + self._pooled / parts) * (parts - is_owner) + self._pooled / parts * (num - 1) * is_owner
        return _Option(
            sharding,
            owners,
            held=is_owner * _FLOAT * self.rows * (dim + 1),
            read=is_owner * num * self.ids * self._row_bytes(topology, dim),
            sent=sent,
            lookups=num * self.ids,
        )

    def _row_wise(self, topology: Topology) -> _Option:
        num = topology.devices
        every = np.ones(num)
        lengths, ids = _ID * self.share * self.features * (num - 1), _ID * self.ids * (num - 1) / num
        # There and back; gloo has no reduce-scatter and reduces everything everywhere.
        times = 2 if topology.kind == "gpu" else 3
        return _Option(
            "row_wise",
            (),
            held=every * _FLOAT * -(-self.rows // num) * (self.table.dim + 1),
            read=every * self.ids * self._row_bytes(topology, self.table.dim),
            sent=every * (lengths + ids + times * self._pooled * (num - 1)),
            lookups=self.ids,
        )

    def _data_parallel(self, num: int) -> _Option:
        every, values = np.ones(num), _FLOAT * self.rows * self.table.dim
        return _Option(
            "data_parallel",
            (),
            held=every * (2 * values + _FLOAT * self.rows),
            read=every * (self.ids * 2 * _FLOAT * self.table.dim + 5 * values),
            sent=every * 2 * values * (num - 1) / num,
            lookups=self.ids,
        )


def make_plan(
    spec: FeedSpec,
    model: ModelConfig,
    rows: Mapping[str, int],
    topology: Topology,
    batch_size: int,
    micro_batches: int = 1,
    asked: Mapping[str, Sharding] | None = None,
) -> Plan:
    """Shard each table, the largest first, the way that makes the busiest device's step the shortest, if it fits.

    Args:
        spec: the declaration.
        model: shape of the dense model.
        rows: capacity of each table.
        topology: the devices.
        batch_size: rows of a global batch.
        micro_batches: parts in which a device's share of a batch goes through the dense model.
        asked: ways that some tables must be sharded; the others are chosen.

    Raises:
        SpecError: `rows` or `asked` has a table that the spec has not, or lacks one.
        TrainError: a table does not fit, or cannot be sharded as asked; says what would help.
    """
    asked = asked or {}
    names = [table.name for table in spec.tables]
    for name in (*rows, *asked):
        if name not in names:
            raise SpecError(f'plan: "{name}" is not a table{did_you_mean(name, names)}')
    for name in names:
        if name not in rows:
            raise SpecError(f'plan: table "{name}" has no number of rows; give one for each of {", ".join(names)}')
    num, share, size = topology.devices, batch_size / topology.devices, DenseSize.of(spec, model)
    base = topology.base_bytes + _dense_bytes(spec, size, share, share / micro_batches)
    devices = _Devices(topology, np.full(num, float(base)), np.zeros(num), np.zeros(num))
    plans: dict[str, TablePlan] = {}
    for table in sorted(spec.tables, key=lambda table: -rows[table.name] * table.dim):
        features = spec.lookups_of(table.name)
        # At the most, all ids are of the tail: two rows each where it is paired.
        ids = share * table.keys_per_id * sum(getattr(feature, "max_length", 1) for feature in features)
        load = _Load(table, rows[table.name], table.keys_per_id * sum(map(_vectors, features)), ids, share)
        plans[table.name] = _choose(load, devices, asked.get(table.name))
    reduced = 2 * _FLOAT * size.parameters * (num - 1) / num
    collectives = 4 if num > 1 else 0  # ids, pooled vectors, their gradient, the dense gradient
    return Plan(
        topology=topology,
        model=model,
        batch_size=batch_size,
        tables=tuple(plans[name] for name in names),
        dense_parameters=size.parameters,
        device_bytes=int(devices.held.max()),
        sent_bytes=int(_FRAMES * (devices.sent.sum() + reduced * num)),
        lookup_s=float(devices.read.max()) / topology.memory_bandwidth,
        send_s=topology.send_s(_FRAMES * (float(devices.sent.max()) + reduced)) + collectives * topology.latency_s,
        dense_s=6 * size.products * share / topology.flops,
    )


def _choose(load: _Load, devices: _Devices, asked: Sharding | None) -> TablePlan:
    """Choose the option of the shortest step, and take it."""
    before = devices.seconds().max()
    narrowest = devices.topology.narrowest if asked is None else 4
    options = [option for option in load.options(devices, narrowest) if asked in (None, option.sharding)]
    if not options:
        raise TrainError(
            f'sharding: table "{load.table.name}" cannot be {_words(asked or "")}: {devices.topology.devices} devices, '
            f"dim {load.table.dim}; columns are cut in halves of a multiple of 4, on two devices at least"
        )
    costs = [(devices.seconds(option).max() - before) if devices.fits(option) else np.inf for option in options]
    best = int(np.argmin(costs))
    option, free = options[best], _SPARE * devices.topology.memory_bytes - devices.held.min()
    if not np.isfinite(costs[best]):
        needed = min(float(option.held.max()) for option in options)
        raise TrainError(
            f'table "{load.table.name}": {load.rows:,} rows of {load.table.dim} floats take {needed / 2**30:,.1f} GiB '
            f"of a device, {max(free, 0) / 2**30:,.1f} GiB are left on the emptiest of {devices.topology.devices}; "
            "use more devices or larger ones, a smaller dim, or a higher min_count"
        )
    devices.take(option)
    return TablePlan(
        name=load.table.name,
        rows=load.rows,
        dim=load.table.dim,
        sharding=option.sharding,
        devices=option.devices,
        device_bytes=int(option.held.max()),
        lookups=int(option.lookups),
        sent_bytes=int(_FRAMES * option.sent.sum()),
        reason=_reason(options, costs, best, asked),
    )


def _reason(options: list[_Option], costs: list[float], best: int, asked: Sharding | None) -> str:
    if asked:
        return "as asked"
    if len(options) == 1:
        return "one device"
    others: dict[Sharding, float] = {}
    for option, cost in zip(options, costs, strict=True):
        if option.sharding != options[best].sharding:
            others[option.sharding] = min(cost, others.get(option.sharding, np.inf))
    said = [f"{_words(way)} {_milliseconds(cost)}" for way, cost in others.items()]
    return f"adds {_milliseconds(costs[best])} to the longest step; {', '.join(said)}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if np.isfinite(seconds) else "does not fit"


def _words(sharding: str) -> str:
    return sharding.replace("_", "-")


def _least(devices: _Devices, num: int) -> tuple[int, ...]:
    """The devices with the least to do, of equal ones the emptiest, ascending."""
    order = np.lexsort((devices.held, devices.seconds()))[:num]
    return tuple(sorted(order.tolist()))


def _vectors(feature: Feature) -> int:
    """Vectors of a row that tables give for a lookup."""
    if isinstance(feature, HistoryFeature) and feature.pooling == "learned":
        return feature.max_length
    return 1


def _dense_bytes(spec: FeedSpec, size: DenseSize, share: float, micro: float) -> float:
    """Parameters with gradient and Adam's two moments; a batch; pooled vectors and gradient; activations."""
    lookups = sum(getattr(feature, "max_length", 1) for feature in spec.lookups)
    lists = sum(map(_vectors, spec.lookups))
    row = _ID * (lookups + lists) + _FLOAT * (len(spec.dense) + 2 * len(spec.responses))
    pooled = 2 * _FLOAT * sum(_vectors(feature) * spec.table_of(feature).dim for feature in spec.lookups)
    return 4 * _FLOAT * size.parameters + share * (row + pooled) + micro * 2 * _FLOAT * size.activations
