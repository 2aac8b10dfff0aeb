"""Topology: the devices that train together, and what each can hold, read, send and compute in a second."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import Field

from sparsefeed.etl.spec import Frozen

__all__ = ["Topology"]

_GB = 10**9
# One H100 SXM: HBM3 3.35 TB/s, NVLink 450 GB/s each way, bf16 989 TFLOP/s, and 400 Gb/s of network beside it (NVIDIA's
# data sheets). Random rows of a table get half of the memory's bandwidth, and matrix products of a ranker's sizes
# two fifths of the arithmetic: figures to plan with, to be replaced by what the machine at hand reaches.
_H100 = {
    "memory_bytes": 80 * 2**30,
    "memory_bandwidth": 0.5 * 3350 * _GB,
    "link_bandwidth": 450.0 * _GB,
    "network_bandwidth": 50.0 * _GB,
    "flops": 0.4 * 989e12,
    "latency_s": 20e-6,
    "base_bytes": 2 * 2**30,
    "line_bytes": 32,
    "narrowest": 32,
}
# A core of this project's benchmark machine. Products in float32, with what stands between them, come from a profile;
# the rest is rounded, and held against a whole step of two ranks by benchmarks/train_suite.py.
_CORE = {
    "memory_bandwidth": 4.0 * _GB,
    "link_bandwidth": 1.0 * _GB,
    "network_bandwidth": 1.0 * _GB,
    "flops": 40e9,
    "latency_s": 200e-6,
    "base_bytes": 700 * 2**20,
    "line_bytes": 64,
    "narrowest": 16,
}


class Topology(Frozen):
    """Equal devices, in hosts of equal size."""

    kind: Literal["gpu", "cpu"]
    devices: int = Field(ge=1)  # GPUs, or processes on CPUs
    devices_per_host: int = Field(ge=1)
    memory_bytes: int = Field(gt=0)  # of a device
    memory_bandwidth: float = Field(gt=0)  # bytes a second, of rows at random places
    link_bandwidth: float = Field(gt=0)  # bytes a second that a device sends to its host's others
    network_bandwidth: float = Field(gt=0)  # bytes a second that it sends to other hosts'
    flops: float = Field(gt=0)  # operations a second of its matrix products
    latency_s: float = Field(ge=0)  # of one collective
    base_bytes: int = Field(ge=0)  # libraries, context, allocator: what a device holds before any table
    line_bytes: int = Field(ge=1)  # what the memory is read in at least
    narrowest: int = Field(ge=4)  # columns of a part that a plan cuts a table into, at least

    @classmethod
    def gpus(cls, devices: int, **given: Any) -> Topology:
        """GPUs, eight to a host, each an H100 in all that is not given."""
        return cls(kind="gpu", devices=devices, **({"devices_per_host": 8} | _H100 | given))

    @classmethod
    def processes(cls, devices: int, **given: Any) -> Topology:
        """Processes of one host's CPU that share its memory and cores."""
        cores = len(os.sched_getaffinity(0)) / devices
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // devices
        shared = {
            "devices_per_host": devices,
            "memory_bytes": memory,
            **_CORE,
            "memory_bandwidth": cores * _CORE["memory_bandwidth"],
            "flops": cores * _CORE["flops"],
        }
        return cls(kind="cpu", devices=devices, **(shared | given))

    def send_s(self, num_bytes: float) -> float:
        """Seconds that a device takes to send so much to all others alike, those of its host over its link."""
        others = self.devices - 1
        if not others:
            return 0.0
        near = min(self.devices_per_host, self.devices) - 1
        return num_bytes / others * (near / self.link_bandwidth + (others - near) / self.network_bandwidth)
