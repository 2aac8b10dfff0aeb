from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsefeed.workflows.report.chart import Plot
from sparsefeed.workflows.report.run import read_run
from sparsefeed.workflows.report.section import Section, Table, number
from sparsefeed.workflows.report.sections import all_sections
from sparsefeed.workflows.workspace import Workspace
from tests.workflows.report import conftest as hand


def section(workspace: Workspace, anchor: str) -> Section:
    (found,) = (part for part in all_sections(read_run(workspace)) if part.anchor == anchor)
    return found


def tables(found: Section) -> list[Table]:
    return [item for part in found.parts for item in part.items if isinstance(item, Table)]


def plots(found: Section) -> list[Plot]:
    return [item for part in found.parts for item in part.items if isinstance(item, Plot)]


@pytest.mark.parametrize(("value", "shown"), [(1.4649, "1.465"), (float("nan"), "–"), (float("inf"), "–")])
def test_a_figure_that_is_not_defined_is_a_dash(value: float, shown: str) -> None:
    assert number(value) == shown


def test_every_row_has_a_cell_for_every_head(workspace: Workspace) -> None:
    for found in all_sections(read_run(workspace)):
        for table in tables(found):
            assert table.rows
            assert {len(row) for row in table.rows} == {len(table.heads)}
            assert set(table.words) <= set(table.heads)


def test_sections_of_an_empty_run_have_no_parts(tmp_path: Path) -> None:
    assert [found.parts for found in all_sections(read_run(Workspace(tmp_path)))] == [()] * 9


def test_simulated_logs_are_called_so(workspace: Workspace) -> None:
    assert (
        "simulated (scale tiny, seed 7): 50 members, 9 creators, 20 posts a day" in section(workspace, "data").text[0]
    )

    (workspace.logs / "simulation.json").unlink()

    assert not any("simulated" in text for text in section(workspace, "data").text)


def test_warnings_of_the_etl_are_repeated(workspace: Workspace) -> None:
    assert "Warning of the ETL: post_id: 3 nulls" in section(workspace, "data").text


def test_a_response_without_random_events_has_no_ratio(workspace: Workspace) -> None:
    cells = [{**cell, "num_random_y": 0} if cell["y"] else cell for cell in hand.ips_cells()]
    pq.write_table(pa.Table.from_pylist(cells), workspace.etl / "ips.parquet")

    assert tables(section(workspace, "data"))[0].rows[1] == ("click", "0.00%", "20.00%", "–")


def test_every_response_has_its_plot_of_weights_curve_and_calibration(workspace: Workspace) -> None:
    for anchor in ("weights", "training", "calibration"):
        titles = [plot.title.split(" (")[0] for plot in plots(section(workspace, anchor))]
        assert titles == ["click", "like"]


def test_a_training_without_its_rival_names_the_command(workspace: Workspace) -> None:
    (workspace.training("none") / "curve.jsonl").unlink()

    found = section(workspace, "training")

    assert "`sparsefeed train --weights none`" in found.text[1]
    assert "no weights" not in plots(found)[0].label


def test_surfaces_beyond_the_colours_are_counted(workspace: Workspace) -> None:
    cells = [{**cell, "surface": f"s{i}"} for i in range(8) for cell in hand.ips_cells()[:2]]
    pq.write_table(pa.Table.from_pylist(cells), workspace.etl / "ips.parquet")

    found = section(workspace, "weights")

    assert found.text[-1] == "Drawn are the 6 surfaces with the most impressions, of 8."
    assert len(tables(found)[0].rows) == 16


def test_without_a_known_truth_quality_is_told_once(workspace: Workspace) -> None:
    value = hand.evaluation()
    for models in value["responses"].values():
        for quality in models.values():
            del quality["expected"]
    workspace.evaluation.write_text(json.dumps({**value, "calibrated": {}}))

    found = section(workspace, "quality")

    assert not any("true probabilities" in text for text in found.text)
    assert [table.title for table in tables(found)] == ["click", "like", "AUC within members", "NDCG within members"]
    assert [row[1] for row in tables(found)[0].rows] == ["0.960", "1.470", "0.980", "1.000"]


def test_the_calibrated_model_stands_last(workspace: Workspace) -> None:
    assert tables(section(workspace, "quality"))[0].rows[-1][:2] == ("calibrated", "1.000")


def test_a_feed_whose_responses_do_not_count_shows_no_score_parts(workspace: Workspace) -> None:
    responses = tuple(response.model_copy(update={"score_weight": 0.0}) for response in hand.SPEC.responses)
    spec = hand.SPEC.model_copy(update={"responses": responses})
    (workspace.bundles / "versions" / "v1" / "spec.json").write_text(spec.dump())

    assert [plot.title for plot in plots(section(workspace, "feed"))] == ["Place of each post"]
