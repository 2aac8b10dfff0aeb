"""The four Triton models of a bundle, and the router before them, built as the real protobuf.

Notable: a configuration is a `ModelConfig` message until the moment it is written as text, so a field
Triton does not have cannot be written; and all shapes come from the FeedSpec, so the ensemble cannot
disagree with the steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from sparsefeed.etl.spec import FeedSpec, side_of
from sparsefeed.native.library import BACKEND
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.request import RANKER, ROUTER, ranker_name, step_name

__all__ = ["TritonModel", "models_of", "router_of"]


@dataclass(frozen=True)
class Tensor:
    """Name, type and shape of one tensor (-1: any length), and the shape a warm-up request has."""

    name: str
    data_type: int
    shape: tuple[int, ...]
    warm_shape: tuple[int, ...]


@dataclass(frozen=True)
class _Step:
    """What differs between the models of the three steps."""

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    num_instances: int
    parameters: Mapping[str, str]
    version_files: Mapping[str, str] = field(default_factory=dict)
    backend: str = "python"


@dataclass(frozen=True)
class TritonModel:
    """One folder of a model repository: its config.pbtxt, the raw tensors of its warm-up, the files of its version."""

    config: Any  # pb.ModelConfig; the generated module has no types
    warm_up: Mapping[str, bytes]
    version_files: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The model's name, which is its folder's."""
        return str(self.config.name)

    @property
    def text(self) -> str:
        """config.pbtxt, fields in the order of the protobuf."""
        return "# Generated from the FeedSpec by sparsefeed.workflows.serving.config; do not edit.\n" + str(
            text_format.MessageToString(self.config)
        )


def models_of(
    spec: FeedSpec,
    config: ServingConfig,
    bundle: str = "",
    folder: Path | None = None,
    native_files: Mapping[str, str] | None = None,
) -> dict[str, TritonModel]:
    """Make the models that serve one bundle: the three steps, then the ensemble that joins them.

    Args:
        spec: Gives every tensor's name, type and shape.
        config: Instances, threads, limits, warm-up.
        bundle: The bundle's id, appended to every model's name; empty for the template.
        folder: The bundle's folder, which the steps open; None for the template.
        native_files: What the native lookup reads, by name; None where the lookup is the Python step.

    Returns:
        Models by their name in the template (`feed_transform`, ..., `feed_ranker`), in order.
    """
    passed, looked_up = _passed(spec), _looked_up(spec)
    own = {
        "feed_transform": {
            name: str(getattr(config, name)) for name in ("max_candidates", "max_request_bytes", "max_id_bytes")
        },
        "feed_hps": {},
        "feed_dense": {"threads": str(config.dense_threads), "format": config.dense_format},
    }
    steps = {
        name: _Step(inputs, outputs, num_instances, {"bundle": bundle, "folder": str(folder or ""), **own[name]})
        for name, inputs, outputs, num_instances in (
            ("feed_transform", _request(), [*_keys(spec), *passed, *_flags()], config.instances.transform),
            ("feed_hps", _keys(spec), [looked_up], config.instances.hps),
            ("feed_dense", [looked_up, *passed], _answers(spec), config.instances.dense),
        )
    }
    if native_files is not None:
        steps["feed_hps"] = replace(steps["feed_hps"], parameters={}, version_files=native_files, backend=BACKEND)
    warm_up = {"NUMKEYS": np.array(_warm_counts(spec), np.int32).tobytes()} if config.warm_up else None
    models = {
        name: _step_model(step_name(name, bundle), step, warm_up, _queue(config, step.num_instances))
        for name, step in steps.items()
    }
    return models | {RANKER: _ensemble(spec, bundle, steps)}


def router_of(spec: FeedSpec, config: ServingConfig, grpc_url: str = "", release: Path | None = None) -> TritonModel:
    """Make the router, which takes a request and answers by the bundle that its route file names.

    Args:
        spec: of the bundles; all have one spec's responses.
        config: Instances.
        grpc_url: host:port of the server it is in; copies for the shadow are sent there.
        release: The folder with routes.json; None for the template.
    """
    parameters = {"release": str(release or ""), "grpc_url": grpc_url, "responses": _responses(spec)}
    step = _Step(_request(), [*_answers(spec), *_flags()], config.instances.router, parameters)
    return _step_model(ROUTER, step, None, _queue(config, step.num_instances))


def _responses(spec: FeedSpec) -> str:
    # A client names the columns of `probability` from here.
    return json.dumps([response.name for response in spec.responses])


def _queue(config: ServingConfig, num_instances: int) -> Any:
    # Without a batch dimension (max_batch_size 0) nothing is batched; but only a dynamic batcher has a queue with
    # limits. Every step has one, since requests wait before whichever step is the slowest.
    if num_instances < 2:
        # Triton 2.39 loses the wake-up of a request that comes while the last free process is on its way back, and
        # looks again after 500 ms: 1 in 1000 of requests sent at once after the last answer, none in 20,000 with two.
        return None
    return pb.ModelDynamicBatching(
        default_queue_policy=pb.ModelQueuePolicy(
            timeout_action=pb.ModelQueuePolicy.REJECT,
            default_timeout_microseconds=config.max_queue_ms * 1000,
            allow_timeout_override=True,  # by a shorter one that the client sends
            max_queue_size=config.max_queue_size,
        )
    )


def _request() -> list[Tensor]:
    # All three are optional to Triton, which would answer a missing one with "unexpected deadlock" of the
    # ensemble; so feed_transform gets the request and says what is missing.
    return [
        Tensor("member_id", pb.TYPE_STRING, (1,), (1,)),
        Tensor("post_ids", pb.TYPE_STRING, (-1,), (2,)),
        Tensor("overrides", pb.TYPE_STRING, (1,), (1,)),
    ]


def _keys(spec: FeedSpec) -> list[Tensor]:
    total = sum(_warm_counts(spec))
    return [
        Tensor("KEYS", pb.TYPE_INT64, (-1, -1), (1, total)),
        Tensor("NUMKEYS", pb.TYPE_INT32, (-1, -1), (1, len(spec.tables))),
    ]


def _looked_up(spec: FeedSpec) -> Tensor:
    floats = sum(count * table.dim for count, table in zip(_warm_counts(spec), spec.tables, strict=True))
    return Tensor("OUTPUT0", pb.TYPE_FP32, (-1,), (floats,))


def _passed(spec: FeedSpec) -> list[Tensor]:
    # What feed_dense needs beside the vectors; the emb_ inputs of dense.onnx are cut from OUTPUT0.
    tensors = []
    for side, rows in (("member", 1), ("candidate", 2)):
        width = len(spec.of_kind("dense", side="member" if side == "member" else "candidate"))
        if width:
            tensors.append(Tensor(f"{side}_dense", pb.TYPE_FP32, (-1, width), (rows, width)))
    for feature in spec.lookups:
        if feature.kind != "id":
            rows = 1 if side_of(feature) == "member" else 2
            tensors.append(Tensor(f"len_{feature.name}", pb.TYPE_INT64, (-1,), (rows,)))
    return tensors


def _flags() -> list[Tensor]:
    return [Tensor("unknown", pb.TYPE_INT32, (-1,), (2,)), Tensor("bundle", pb.TYPE_STRING, (1,), (1,))]


def _answers(spec: FeedSpec) -> list[Tensor]:
    num_responses = len(spec.responses)
    return [
        Tensor("probability", pb.TYPE_FP32, (-1, num_responses), (2, num_responses)),
        Tensor("score", pb.TYPE_FP32, (-1,), (2,)),
    ]


def _warm_counts(spec: FeedSpec) -> list[int]:
    """Keys per table of the warm-up request: one member, two candidates."""
    return [
        table.keys_per_id
        * sum((1 if side_of(f) == "member" else 2) * getattr(f, "max_length", 1) for f in spec.lookups_of(table.name))
        for table in spec.tables
    ]


def _step_model(name: str, step: _Step, warm_up: Mapping[str, bytes] | None, queue: Any) -> TritonModel:
    config = pb.ModelConfig(
        name=name,
        backend=step.backend,
        max_batch_size=0,
        input=_declared(step.inputs),
        output=[pb.ModelOutput(name=t.name, data_type=t.data_type, dims=t.shape) for t in step.outputs],
        instance_group=[pb.ModelInstanceGroup(count=step.num_instances, kind=pb.ModelInstanceGroup.KIND_CPU)],
        dynamic_batching=queue,
        parameters={key: pb.ModelParameter(string_value=value) for key, value in step.parameters.items()},
    )
    if warm_up is None:
        return TritonModel(config, {}, step.version_files)
    # Zeros and empty strings are a valid request, but NUMKEYS must add up to the keys.
    files = {tensor.name: warm_up[tensor.name] for tensor in step.inputs if tensor.name in warm_up}
    inputs = {tensor.name: _warm_input(tensor, tensor.name in files) for tensor in step.inputs}
    config.model_warmup.append(pb.ModelWarmup(name="one member, two candidates", batch_size=1, inputs=inputs))
    return TritonModel(config, files, step.version_files)


def _declared(inputs: Sequence[Tensor]) -> list[Any]:
    return [pb.ModelInput(name=t.name, data_type=t.data_type, dims=t.shape, optional=t in _request()) for t in inputs]


def _warm_input(tensor: Tensor, from_file: bool) -> Any:
    source = {"input_data_file": tensor.name} if from_file else {"zero_data": True}
    return pb.ModelWarmup.Input(data_type=tensor.data_type, dims=tensor.warm_shape, **source)


def _ensemble(spec: FeedSpec, bundle: str, steps: Mapping[str, _Step]) -> TritonModel:
    scheduling = pb.ModelEnsembling(
        step=[
            pb.ModelEnsembling.Step(
                model_name=step_name(name, bundle),
                model_version=-1,
                input_map={tensor.name: tensor.name for tensor in step.inputs},
                output_map={tensor.name: tensor.name for tensor in step.outputs},
            )
            for name, step in steps.items()
        ]
    )
    answers = [*_answers(spec), *_flags()]
    config = pb.ModelConfig(
        name=ranker_name(bundle),
        platform="ensemble",
        max_batch_size=0,
        input=_declared(_request()),
        output=[pb.ModelOutput(name=t.name, data_type=t.data_type, dims=t.shape) for t in answers],
        ensemble_scheduling=scheduling,
        parameters={"responses": pb.ModelParameter(string_value=_responses(spec))},
    )
    return TritonModel(config, {})
