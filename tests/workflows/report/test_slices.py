from __future__ import annotations

import json
import re
from typing import Any

import pytest

from sparsefeed.workflows.report.run import Evaluation, read_run
from sparsefeed.workflows.report.slices import auc_by_slice, slices_section, within_members
from sparsefeed.workflows.workspace import Workspace
from tests.workflows.report import conftest as hand
from tests.workflows.report.test_plots import num_points, words
from tests.workflows.report.test_sections import plots, tables


def evaluation(value: dict[str, Any] | None = None) -> Evaluation:
    return Evaluation.model_validate(value or hand.evaluation())


def test_every_response_is_a_point_in_every_slice_and_the_mean_is_told() -> None:
    plot = auc_by_slice("member", evaluation().slices["member"], ("ips", "lightgbm"))

    assert num_points(plot.svg) == 2 * 2 * 2
    assert {"not admitted", "6-50", "IPS weights", "LightGBM, no ids"} <= set(words(plot.svg))
    assert "not admitted, IPS weights: 0.620; not admitted, LightGBM, no ids: 0.570; 6-50, IPS" in plot.label


def test_slices_stand_in_their_order_not_that_of_their_names() -> None:
    part = hand.cut(10, 0.0)
    value = {
        **hand.evaluation(),
        "slices": {"post": dict.fromkeys(("not admitted", "0", "1-5", "6-50", ">50"), part)},
    }

    plot = auc_by_slice("post", evaluation(value).slices["post"], ("ips", "lightgbm"))

    shown = [word for word in words(plot.svg.replace("&gt;", ">")) if word in value["slices"]["post"]]
    assert shown == ["not admitted", "0", "1-5", "6-50", ">50"]


def test_a_response_of_one_class_has_no_point() -> None:
    value = hand.evaluation()
    value["slices"]["position"]["1"]["responses"]["like"]["ips"]["expected"]["auc"] = float("nan")

    plot = auc_by_slice("position", evaluation(value).slices["position"], ("ips", "lightgbm"))

    assert num_points(plot.svg) == 3
    assert "1, IPS weights: 0.670" in plot.label  # click alone


def test_the_section_has_a_plot_and_a_folded_table_for_every_way_to_cut(workspace: Workspace) -> None:
    found = slices_section(read_run(workspace))

    assert [plot.title for plot in plots(found)] == ["AUC by member", "AUC by position", "AUC by new post"]
    assert found.parts[1].summary == "Every slice"
    member, position, new_post = tables(found)
    assert new_post.title.startswith("By new post: ")
    assert member.title == "By member: IPS weights / LightGBM, no ids"
    assert member.rows[0] == ("not admitted", "100", "click", "0.620 / 0.570", "0.3500 / 0.3500", "0.92 / 0.94")
    assert len(member.rows) == 4
    assert position.rows[1][:3] == ("1", "700", "like")


def test_an_evaluation_from_before_there_were_slices_names_the_command(workspace: Workspace) -> None:
    workspace.evaluation.write_text(json.dumps({**hand.evaluation(), "slices": {}}))

    found = slices_section(read_run(workspace))

    assert found.parts == ()
    assert "`sparsefeed eval`" in found.text[0]


def test_order_within_members_is_told_by_model_and_response() -> None:
    auc, ndcg = within_members(evaluation().expected)

    assert auc.heads == ("model", "click", "like")
    assert auc.rows[0] == ("IPS weights", "0.6400", "0.6400")
    assert ndcg.rows[-1] == ("constant", "0.7100", "0.7100")


def test_where_no_member_is_known_nothing_is_told_within_members() -> None:
    value = hand.evaluation()
    for models in value["responses"].values():
        for quality in models.values():
            del quality["grouped_auc"], quality["ndcg"]

    assert within_members(evaluation(value).observed) == ()


@pytest.mark.parametrize("by", ["member", "position", "new_post"])
def test_equal_slices_give_equal_drawings(by: str) -> None:
    first, second = (auc_by_slice(by, evaluation().slices[by], ("ips", "lightgbm")).svg for _ in range(2))

    assert first == second
    assert set(re.findall(r'\bid="([\w-]+?)-\d+"', first)) <= {f"slices-{by}"}
