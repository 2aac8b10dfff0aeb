"""Export: a checkpoint and the ETL's artefacts -> one immutable bundle, or the delta that a trained day is.

The bundle's id is the last trained day and a digest of what went in, so exporting the same thing twice
gives the same bundle and another thing never takes its name.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sparsefeed import __version__
from sparsefeed.errors import DataError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.bundle import Bundle, Manifest, open_version, publish_version, set_current
from sparsefeed.models.calibration import Calibration
from sparsefeed.models.config import Int8Limits
from sparsefeed.models.delta import Delta, read_changes, verify_delta, write_delta
from sparsefeed.models.dense import DenseModel
from sparsefeed.models.dense_file import DENSE_FILES
from sparsefeed.models.int8 import check_int8, held_out_rows, quantise_dense
from sparsefeed.models.onnx import export_dense
from sparsefeed.models.store.rows import RowFormat
from sparsefeed.models.store.store import write_tables
from sparsefeed.models.torchrec.checkpoint import Checkpoint, load_model
from sparsefeed.models.torchrec.columns import check_trained_on
from sparsefeed.progress import Progress, silent

__all__ = ["export_bundle", "export_delta"]

_LAYOUT = 2  # raised where the same training gives a bundle of other files


def export_bundle(
    checkpoint: Path,
    data: Path,
    root: Path,
    *,
    row_format: RowFormat = "fp32",
    calibration: Calibration | None = None,
    int8: Int8Limits | None = None,
    note: Callable[[str], object] = lambda _: None,
    metrics: Mapping[str, Any] | None = None,
    scores: Mapping[str, Any] | None = None,
    check: Callable[[Path], None] | None = None,
    progress: Progress = silent,
) -> str:
    """Write a bundle and point `current` at it.

    Args:
        checkpoint: of a finished training (models.torchrec.checkpoint).
        data: the ETL folder it was trained on.
        root: of bundles; holds `versions/` and `current`.
        row_format: of the embedding rows.
        calibration: baked into dense.onnx; None leaves the logits as they are.
        int8: write the dense model in 8 bits, too, and refuse it where held-out rows change by more; None: do not.
        note: told what 8 bits change.
        metrics: of this checkpoint, for metrics.json and the model card: `{"responses": {response: {metric: value}}}`.
        scores: spread of the held-out scores (models.score_bins), for metrics.json.
        check: called with the folder before it is sealed, and may add what the rest of it gives (recorded.json); where
            it raises, nothing is published.
        progress: told of the files.

    Returns:
        The bundle's id.

    Raises:
        DataError: the ETL folder is unfinished.
        TrainError: the checkpoint is of another spec or ETL run.
        BundleError: the bundle cannot be written, or 8 bits change too much; what was there before is untouched.
    """
    try:
        etl = json.loads((data / "etl.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{data}: no etl.json ({error}); run the ETL to its end") from error
    spec = FeedSpec.load(data / "spec.json")
    calibration = calibration or Calibration.identity(spec)
    metrics = {**(metrics or {}), **({"score": dict(scores)} if scores else {})}
    model, tables = load_model(checkpoint, spec)
    said = Checkpoint.read(checkpoint)
    check_trained_on(checkpoint, said.etl, data)
    settings = [etl["fingerprint"], row_format, __version__, metrics, _LAYOUT, *(["int8"] if int8 else [])]
    bundle = _id(etl, checkpoint, json.dumps(settings, sort_keys=True), calibration.model_dump_json())
    manifest = Manifest(
        id=bundle,
        created=_created(checkpoint),
        code_version=__version__,
        spec_digest=spec.digest,
        step=said.step,
        trained_days=tuple(etl["train_days"]),
        row_format=row_format,
    )

    def build(folder: Path) -> None:
        manifest.save(folder)
        (folder / "spec.json").write_text(spec.dump(), "utf-8")
        for name in ("ids", "transform", "snapshot"):
            shutil.copytree(data / name, folder / name)
        if spec.weighted:
            shutil.copyfile(data / "ips.parquet", folder / "ips.parquet")
        _write_dense(model, spec, calibration, folder, ["fp32", *(["int8"] if int8 else [])])
        if int8:
            rows = held_out_rows(spec, data, {name: len(table) for name, table in tables.items()})
            change = check_int8(spec, folder, DENSE_FILES, rows, tables, int8)
            note(
                f"dense model in 8 bits: a probability changes by {change.probability:.2g} at most, AUC by "
                f"{change.auc:.2g}, log loss by {change.log_loss:.2g}, over {change.num_rows:,} held-out rows"
            )
        calibration.save(folder / "calibration.json")
        write_tables(folder / "tables", tables, row_format, [table.name for table in spec.tables])
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n", "utf-8")
        trained = f"{etl['num_train_rows']:,} impressions of {etl['train_days'][0]} to {etl['train_days'][-1]}"
        how = f"Trained on {trained}, evaluated on {', '.join(etl['eval_days'])}."
        (folder / "MODEL_CARD.md").write_text(_model_card(spec, manifest, how, etl, metrics), "utf-8")
        if check:
            check(folder)

    publish_version(root, bundle, build, progress)
    set_current(root, bundle)
    return open_version(root, bundle).id


def export_delta(
    checkpoint: Path,
    day: Path,
    changes: Path,
    parent: Bundle,
    out: Path,
    *,
    metrics: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Delta:
    """Write the delta of a trained day, which makes the parent's next version.

    The dense model keeps the parent's calibration and formats; what served scores are held against (`score` of
    metrics.json) stays the parent's, so that they are seen to drift from the last whole training; `transform/` stays
    the parent's, as a day's is the base's. Written before, from the same, it is left as it is.

    Args:
        checkpoint: of the finished training of the day.
        day: ETL result of the day.
        changes: what `changes/` of the training holds.
        parent: the version of the model that the day was trained from.
        out: folder to make.
        metrics: of this checkpoint, as of `export_bundle`.
        progress: told of the files.

    Raises:
        TrainError: the checkpoint is of another spec or ETL run.
        BundleError: the delta cannot be written, or does not follow the parent.
    """
    spec, etl = FeedSpec.load(day / "spec.json"), json.loads((day / "etl.json").read_text("utf-8"))
    model, _ = load_model(checkpoint, spec)
    said = Checkpoint.read(checkpoint)
    check_trained_on(checkpoint, said.etl, day)
    calibration = Calibration.load(parent.calibration)
    rows, ids = read_changes(changes)
    new_id = _id(etl, checkpoint, f"{etl['fingerprint']} {parent.digest} {__version__} {_LAYOUT}")
    manifest = parent.manifest.model_copy(
        update={"id": new_id, "created": _created(checkpoint), "code_version": __version__, "step": said.step}
    )
    # The model that a part of a day gave is not gone on from.
    whole = [day for day in parent.manifest.trained_days if "T" not in day]
    if out.exists():
        delta = verify_delta(out, progress)
        if delta.manifest.id == new_id:
            return delta
        shutil.rmtree(out)

    def build(folder: Path) -> None:
        _write_dense(model, spec, calibration, folder, parent.dense_formats)
        shutil.copytree(day / "snapshot", folder / "snapshot")
        if spec.weighted:
            shutil.copyfile(day / "ips.parquet", folder / "ips.parquet")
        told = {**_scores_of(parent), **(metrics or {})}
        (folder / "metrics.json").write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", "utf-8")
        added = f"refreshed with {etl.get('until') or etl['train_days'][-1]}, {etl['num_train_rows']:,} impressions"
        how = f"The model of bundle {parent.id}, {added}; calibrated as that one is."
        (folder / "MODEL_CARD.md").write_text(_model_card(spec, manifest, how, etl, {}), "utf-8")

    out.parent.mkdir(parents=True, exist_ok=True)
    return write_delta(
        parent,
        new_id,
        out,
        step=manifest.step,
        created=manifest.created,
        code_version=manifest.code_version,
        trained_days=(*whole, etl.get("until") or etl["train_days"][-1]),
        rows=rows,
        ids=ids,
        build=build,
        progress=progress,
    )


def _id(etl: Mapping[str, Any], checkpoint: Path, *settings: str) -> str:
    """The last trained day and a digest of the model and of what else decides a version's files."""
    digest = hashlib.sha256()
    model = [(checkpoint / name).read_bytes() for name in ("checkpoint.json", "dense.safetensors")]
    for part in (*model, *(text.encode() for text in settings)):
        digest.update(hashlib.sha256(part).digest())
    return f"{etl['train_days'][-1].replace('-', '')}-{digest.hexdigest()[:8]}"


def _created(checkpoint: Path) -> str:
    written = datetime.fromtimestamp((checkpoint / "checkpoint.json").stat().st_mtime, timezone.utc)
    return written.isoformat(timespec="seconds")


def _scores_of(bundle: Bundle) -> dict[str, Any]:
    path = bundle.path / "metrics.json"
    found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return {"score": found["score"]} if "score" in found else {}


def _write_dense(
    model: DenseModel, spec: FeedSpec, calibration: Calibration, folder: Path, formats: Sequence[str]
) -> None:
    export_dense(model, spec, calibration, folder / DENSE_FILES["fp32"])
    if "int8" in formats:
        quantise_dense(folder / DENSE_FILES["fp32"], folder / DENSE_FILES["int8"])


def _model_card(
    spec: FeedSpec, manifest: Manifest, how: str, etl: Mapping[str, Any], metrics: Mapping[str, Any]
) -> str:
    lines = [
        f"# {spec.name}: bundle {manifest.id}",
        "",
        f"A gated DCN-v2 ranker for {', '.join(r.name for r in spec.responses)}; made {manifest.created} by sparsefeed "
        f"{manifest.code_version}, training step {manifest.step}, rows stored as {manifest.row_format}.",
        "",
        f"- {how}",
        f"- Ids with a row of their own: {', '.join(f'{n:,} of table {t}' for t, n in etl['num_ids'].items())}. "
        "Others share hashed rows and are flagged in every answer.",
        f"- Weights: {'none' if spec.ips == 'none' else 'inverse propensity per surface, position and response'}.",
        "- Not for: members or posts of another platform, decisions about persons, another policy's positions without "
        "new random sessions.",
    ]
    responses = metrics.get("responses", {})
    if responses:
        lines += ["", "| response | AUC | log loss | predicted/actual |", "|---|---|---|---|"]
        for name, quality in responses.items():
            figures = (quality["auc"], quality["log_loss"], quality["predicted_over_actual"])
            lines.append(f"| {name} | {' | '.join(f'{figure:.4f}' for figure in figures)} |")
        lines += ["", "Measured on random sessions of the evaluation days, before calibration."]
    return "\n".join(lines) + "\n"
