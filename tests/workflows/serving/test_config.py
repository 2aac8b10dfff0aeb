from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

import sparsefeed.workflows
from sparsefeed.errors import SpecError
from sparsefeed.etl.spec import FeedSpec, validate
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.request import STEPS
from sparsefeed.workflows.serving.template import TEMPLATE, write_template
from sparsefeed.workflows.serving.triton_models import models_of
from tests.workflows.serving.feed import SPEC

SMALLEST = FeedSpec.parse(
    {
        "name": "smallest",
        "tables": [{"name": "post", "dim": 4}],
        "features": [{"kind": "id", "name": "post_id", "table": "post", "side": "candidate"}],
        "responses": [{"name": "like", "column": "like"}],
        "logs": {"member": None},
    }
)


def parsed(spec: FeedSpec, config: ServingConfig | None = None, **names: Any) -> dict[str, Any]:
    """The models as Triton will read them: text, parsed back into the protobuf."""
    models = models_of(spec, config or ServingConfig(), **names)
    return {name: text_format.Parse(model.text, pb.ModelConfig()) for name, model in models.items()}


@pytest.mark.parametrize("spec", [SPEC, SMALLEST], ids=lambda spec: spec.name)
def test_the_text_parses_back_to_the_same_protobuf(spec: FeedSpec) -> None:
    models = models_of(spec, ServingConfig(), "b1", Path("bundles/b1"))
    for model in models.values():
        assert text_format.Parse(model.text, pb.ModelConfig()) == model.config


def test_every_model_is_named_for_its_bundle_and_knows_its_folder() -> None:
    models = parsed(SPEC, bundle="b1", folder=Path("bundles/b1"))
    assert [config.name for config in models.values()] == [
        "feed_transform_b1",
        "feed_hps_b1",
        "feed_dense_b1",
        "feed_ranker_b1",
    ]
    for step in STEPS:
        assert models[step].parameters["folder"].string_value == "bundles/b1"
        assert models[step].parameters["bundle"].string_value == "b1"
    assert [step.model_name for step in models["feed_ranker"].ensemble_scheduling.step] == [f"{s}_b1" for s in STEPS]


@pytest.mark.parametrize("spec", [SPEC, SMALLEST], ids=lambda spec: spec.name)
def test_every_tensor_of_the_ensemble_has_the_type_and_shape_of_the_step_that_makes_it(spec: FeedSpec) -> None:
    models = parsed(spec)
    ranker = models["feed_ranker"]
    made = {t.name: (t.data_type, list(t.dims)) for t in ranker.input}
    for step in ranker.ensemble_scheduling.step:
        model = models[step.model_name]
        assert set(step.input_map) == {t.name for t in model.input}
        for tensor in model.input:
            assert made[step.input_map[tensor.name]] == (tensor.data_type, list(tensor.dims))
        made |= {step.output_map[t.name]: (t.data_type, list(t.dims)) for t in model.output}
    assert [made[t.name] for t in ranker.output] == [(t.data_type, list(t.dims)) for t in ranker.output]


def test_only_what_the_spec_has_becomes_a_tensor() -> None:
    assert [t.name for t in parsed(SMALLEST)["feed_dense"].input] == ["OUTPUT0"]
    assert [t.name for t in parsed(SPEC)["feed_dense"].input] == [
        "OUTPUT0",
        "member_dense",
        "candidate_dense",
        "len_interests",
        "len_hashtags",
        "len_liked",
    ]


def test_settings_reach_the_models() -> None:
    config = ServingConfig.model_validate(
        {"max_candidates": 5, "dense_threads": 3, "warm_up": False, "instances": {"transform": 4, "hps": 5, "dense": 6}}
    )
    models = parsed(SPEC, config)
    assert models["feed_transform"].parameters["max_candidates"].string_value == "5"
    assert models["feed_dense"].parameters["threads"].string_value == "3"
    assert [models[step].instance_group[0].count for step in STEPS] == [4, 5, 6]
    assert not any(models[step].model_warmup for step in STEPS)
    assert models_of(SPEC, config)["feed_hps"].warm_up == {}


def test_every_step_of_several_processes_refuses_what_its_queue_cannot_hold() -> None:
    config = ServingConfig.model_validate({"max_queue_size": 7, "max_queue_ms": 30, "instances": {"hps": 1}})
    models = parsed(SPEC, config)
    for step in ("feed_transform", "feed_dense"):
        policy = models[step].dynamic_batching.default_queue_policy
        assert (policy.max_queue_size, policy.default_timeout_microseconds) == (7, 30_000)
        assert policy.timeout_action == pb.ModelQueuePolicy.REJECT
        assert policy.allow_timeout_override
        assert models[step].max_batch_size == 0
    # With one process the limits would cost half a second now and then (triton_models._queue).
    assert not models["feed_hps"].HasField("dynamic_batching")


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.3", "192.168.1.7"])
def test_http_is_not_opened_to_others_because_it_controls_models(host: str) -> None:
    with pytest.raises(SpecError, match="whoever reaches HTTP can load and unload models"):
        validate(ServingConfig, {"http_host": host})
    opened = ServingConfig(grpc_host=host, metrics_host=host)
    assert (opened.grpc_host, opened.http_host, opened.metrics_host) == (host, "127.0.0.1", host)


def test_warm_up_keys_add_up_to_one_member_and_two_candidates() -> None:
    model = models_of(SPEC, ServingConfig())["feed_hps"]
    counts = np_int32(model.warm_up["NUMKEYS"])
    # member 1; hashtag 2 (interests) + 2 * 3; post 2 + 4 (liked); creator 2
    assert counts == [1, 8, 6, 2]
    assert list(model.config.model_warmup[0].inputs["KEYS"].dims) == [1, sum(counts)]


def np_int32(raw: bytes) -> list[int]:
    return [int.from_bytes(raw[i : i + 4], "little") for i in range(0, len(raw), 4)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"http_port": 8001}, "give each a port of its own"),
        ({"http_port": 0}, "http_port: got 0"),
        ({"row_format": "fp8"}, "row_format: got 'fp8'"),
        ({"instances": {"dence": 2}}, 'did you mean "dense"?'),
        ({"max_candidates": 0}, "max_candidates: got 0"),
        ({"max_queue_size": 0}, "max_queue_size: got 0"),  # which Triton takes for no limit
        ({"max_queue_ms": 0}, "max_queue_ms: got 0"),
        ({"max_id_bytes": 0}, "max_id_bytes: got 0"),
        ({"grpc_host": "example"}, 'grpc_host: got "example"; give an IPv4 address'),
        ({"control_key": "x"}, '"control_key" is not a key'),
        ({"dense_budget_ms": 0}, "dense_budget_ms: got 0; input should be greater than 0"),
        ({"dense_budget_ms": float("inf")}, "dense_budget_ms: got inf; input should be a finite number"),
        ({"dense_budget_ms": "2 ms"}, "dense_budget_ms: got '2 ms'"),
        ({"dense_budget": 2}, 'did you mean "dense_budget_ms"?'),
        ({"budget_candidates": 0}, "budget_candidates: got 0"),
        (
            {"dense_budget_ms": 2, "max_candidates": 100},
            "budget_candidates: got 500; no request has more than max_candidates (100)",
        ),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        validate(ServingConfig, settings)
    assert said in str(caught.value)


def test_without_a_budget_its_candidates_are_held_against_nothing() -> None:
    assert ServingConfig(max_candidates=100).dense_budget_ms is None


def test_the_template_is_what_the_default_recipe_generates(tmp_path: Path) -> None:
    recipe = yaml.safe_load((Path(sparsefeed.workflows.__file__).parent / "recipes" / "tiny.yaml").read_text())
    write_template(FeedSpec.parse(recipe["feed"]), ServingConfig(**recipe.get("serving", {})), tmp_path)
    generated = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    tracked = {
        path.relative_to(TEMPLATE): path.read_bytes()
        for path in TEMPLATE.rglob("*")
        if path.is_file() and path.parent.name != "1" and "__pycache__" not in path.parts
    }
    assert generated == tracked


@pytest.mark.parametrize("step", [*STEPS, "feed"])
def test_a_model_py_is_glue_of_a_few_lines(step: str) -> None:
    lines = (TEMPLATE / step / "1" / "model.py").read_text().splitlines()
    assert len([line for line in lines if line]) <= 5
    assert lines[-1].startswith(("TritonPythonModel = python_model(", "TritonPythonModel = router_model()"))
