"""How a bundle is served; what is served stands in the bundle itself."""

from __future__ import annotations

import ipaddress
from typing import Literal

from pydantic import Field, model_validator

from sparsefeed.etl.spec import Frozen
from sparsefeed.models.config import CalibrationKind, Int8Limits
from sparsefeed.models.dense_file import DenseFormat

__all__ = ["LOOPBACK", "Instances", "ServingConfig"]

LOOPBACK = "127.0.0.1"


class Instances(Frozen):
    """How many processes run each step; requests beyond them wait in Triton's queue. The defaults are for 2 cores.

    A step of one process has a queue without limits (workflows.serving.triton_models says why).
    """

    transform: int = Field(default=2, ge=1, le=64)
    hps: int = Field(default=2, ge=1, le=64)
    dense: int = Field(default=2, ge=1, le=64)
    router: int = Field(default=2, ge=1, le=64)  # each waits for the request that it has sent on


class ServingConfig(Frozen):
    """How a bundle is served; what is served stands in the bundle itself."""

    row_format: Literal["fp32", "fp16", "int8"] = "fp32"  # of the embedding rows, as the bundle is written
    calibration: CalibrationKind = "platt"  # baked into dense.onnx; isotonic: where it beats a line
    dense_format: DenseFormat = "fp32"  # int8: faster by a fifth, scores move a little (models.int8)
    int8_limits: Int8Limits = Int8Limits()  # an export in which int8 moves more is refused
    max_candidates: int = Field(default=1000, ge=1, le=100_000)  # posts per request
    max_request_bytes: int = Field(default=4_194_304, ge=1)  # of all strings of a request, overrides among them
    max_id_bytes: int = Field(default=1024, ge=1)  # of a member's or post's id in UTF-8
    max_queue_size: int = Field(default=128, ge=1)  # requests that wait for a step; one more is refused at once
    max_queue_ms: int = Field(default=500, ge=1)  # of waiting for a step, then refused; a client's deadline cuts it
    instances: Instances = Instances()
    lookup_backend: Literal["auto", "native", "python"] = (
        "auto"  # of feed_hps; auto: native where `make native` built it
    )
    dense_threads: int = Field(default=1, ge=1, le=256)  # of onnxruntime, per instance
    memory_budget_bytes: int | None = Field(default=None, ge=1)  # a bundle whose mapped files exceed it is refused
    dense_budget_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # of the dense step's median time
    budget_candidates: int = Field(default=500, ge=1, le=100_000)  # posts of the one request that dense_budget_ms is of
    warm_up: bool = True  # one request per step at load; without it the first request pays 50-100 ms
    http_port: int = Field(default=8000, ge=1, le=65535)
    grpc_port: int = Field(default=8001, ge=1, le=65535)
    metrics_port: int = Field(default=8002, ge=1, le=65535)  # Prometheus
    grpc_host: str = LOOPBACK  # 0.0.0.0: every interface; control stays behind the key (serving.key)
    http_host: str = LOOPBACK  # and no other
    metrics_host: str = LOOPBACK

    @model_validator(mode="after")
    def _hosts_are_addresses_and_http_is_for_this_machine(self) -> ServingConfig:
        for name in ("grpc_host", "http_host", "metrics_host"):
            try:
                address = ipaddress.IPv4Address(getattr(self, name))
            except ValueError as error:
                raise ValueError(
                    f'{name}: got "{getattr(self, name)}"; give an IPv4 address, 0.0.0.0 for all'
                ) from error
            if name == "http_host" and not address.is_loopback:
                raise ValueError(
                    f'http_host: got "{address}"; must be {LOOPBACK}: whoever reaches HTTP can load and unload models, '
                    "which this version of Triton cannot forbid; open gRPC (grpc_host), or a proxy before HTTP that "
                    "passes only /v2/models/*/infer"
                )
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> ServingConfig:
        ports = (self.http_port, self.grpc_port, self.metrics_port)
        if len(set(ports)) < len(ports):
            raise ValueError(f"http_port, grpc_port, metrics_port: got {ports}; give each a port of its own")
        return self

    @model_validator(mode="after")
    def _budget_is_of_a_request_there_can_be(self) -> ServingConfig:
        if self.dense_budget_ms is not None and self.budget_candidates > self.max_candidates:
            raise ValueError(
                f"budget_candidates: got {self.budget_candidates}; no request has more than max_candidates "
                f"({self.max_candidates})"
            )
        return self
