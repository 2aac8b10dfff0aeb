from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsefeed.errors import BadFileError, ToolError
from sparsefeed.workflows.report import write_report
from sparsefeed.workflows.workspace import Workspace
from tests.workflows.report import conftest as hand

SECTIONS = ["data", "weights", "training", "quality", "calibration", "slices", "latency", "memory", "feed"]
VOID = {"meta", "link", "br", "hr", "img"}


class Outline(HTMLParser):
    """What a page consists of; a tag closed out of turn is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def test_every_tag_is_closed_in_its_turn(page: str) -> None:
    assert Outline(page).tags[:2] == ["html", "head"]


def test_the_page_needs_nothing_beside_it(page: str) -> None:
    outline = Outline(page)

    assert not {"script", "link", "img", "iframe", "object", "image"} & set(outline.tags)
    places = [v for _, name, v in outline.attributes if name in ("href", "src", "xlink:href", "srcset", "action")]
    assert all(place.startswith("#") for place in places)
    assert not [name for _, name, _ in outline.attributes if name.startswith("on")]
    assert not re.search(r"url\((?!#)|@import", page)


def test_the_page_is_small(page: str) -> None:
    assert len(page.encode()) < 1_500_000


def test_ids_are_unique_and_every_link_leads_to_one(page: str) -> None:
    outline = Outline(page)
    ids = [value for _, name, value in outline.attributes if name == "id"]

    assert len(ids) == len(set(ids))
    links = [value[1:] for tag, name, value in outline.attributes if tag == "a" and name == "href"]
    assert links == SECTIONS
    assert set(re.findall(r"url\(#([^)]+)\)", page)) | set(links) <= set(ids)


def test_every_plot_is_told_in_words(page: str) -> None:
    labels = re.findall(r'<div role="img" aria-label="([^"]*)"><svg', page)

    assert len(labels) == page.count("<svg ") == 18
    assert all(len(label) > 10 for label in labels)


def test_the_head_tells_the_verdicts_in_figures(page: str) -> None:
    words = Outline(page).words

    assert "learned from 1,600 impressions of 2 days; 30 member, 90 post ids" in words
    assert "predicted/actual of click is 0.97 with IPS weights (all responses: 0.97 to 1.07)" in words
    assert "and 1.48 without (all responses: 1.48 to 1.63)" in words
    assert "better than LightGBM without ids on every response (AUC of click: 0.670 against 0.620)" in words
    assert "ranking 100 posts takes 3.5 ms at the median and 6.9 ms at p99 with one request in flight" in words


def test_a_model_that_loses_is_reported_as_one(workspace: Workspace) -> None:
    value = hand.evaluation()
    value["responses"]["like"]["lightgbm"]["expected"]["auc"] = 0.9
    workspace.evaluation.write_text(json.dumps(value))

    assert "better than LightGBM without ids on 1 of 2 responses" in Outline(write_report(workspace).read_text()).words


def test_text_of_the_logs_is_escaped(page: str) -> None:
    outline = Outline(page)

    assert "<script" not in page
    assert "<script>alert(1)</script>" in outline.words
    assert "One session of member m&m" in outline.words


def table_rows(page: str) -> list[list[str]]:
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]


def test_tables_hold_the_figures_of_the_files(page: str) -> None:
    rows = table_rows(page)

    assert ["impressions", "400", "1,200", ""] in rows
    assert ["click", "10.00%", "20.00%", "2.00"] in rows
    assert ["member", "4", "3", "30", "40", "64"] in rows
    assert ["home", "2", "1", "0.500", "0.250 to 1.000", "10 of 100", "60 of 300"] in rows
    assert ["no weights", "1.480", "0.6600", "0.35000", "0.9500"] in rows
    assert ["no weights", "1.470", "0.6500", "0.35000", "0.9500"] in rows
    assert ["post", "64", "8", "int8", "0.00", "0.00", "0.50"] in rows
    assert ["3", "1", "a", "0.300", "10.00%", "10.00%", "post"] in rows
    assert any(row[:4] == ["500", "4", "300", "9.50"] and row[-1] == "0.10 + 0.55" for row in rows)


def test_equal_runs_give_equal_pages(workspace: Workspace, page: str) -> None:
    def unhashed(text: str) -> str:
        return re.sub(r"made <time>.*?</time>", "", text)

    assert unhashed(write_report(workspace).read_text("utf-8")) == unhashed(page)


def test_an_empty_run_says_which_command_makes_each_section(tmp_path: Path) -> None:
    outline = Outline(write_report(Workspace(tmp_path)).read_text("utf-8"))

    for command, file in (
        ("etl", "etl/etl.json"),
        ("train", "training/ips/curve.jsonl"),
        ("eval", "evaluation.json"),
        ("bench", "bench.json"),
        ("bench", "ranking.json"),
        ("export", "a bundle"),
    ):
        assert f"Not in this run yet: sparsefeed {command} writes {file}." in outline.words
    assert "svg" not in outline.tags


@pytest.mark.parametrize(
    ("name", "anchor"),
    [
        ("etl/ips.parquet", "weights"),
        ("evaluation.json", "quality"),
        ("bench.json", "latency"),
        ("bundles/current", "memory"),
        ("ranking.json", "feed"),
    ],
)
def test_a_missing_file_leaves_its_section_out_and_the_others_in(workspace: Workspace, name: str, anchor: str) -> None:
    (workspace.root / name).unlink()

    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', write_report(workspace).read_text(), re.DOTALL))

    assert list(sections) == SECTIONS
    without = {"quality": {"quality", "calibration", "slices"}}.get(anchor, {anchor})
    assert {section for section, body in sections.items() if "Not in this run yet" in body} == without
    assert {section for section, body in sections.items() if "<svg" not in body} == without


def test_a_run_without_weights_says_so(workspace: Workspace) -> None:
    spec = hand.SPEC.model_copy(update={"ips": "none"})
    (workspace.etl / "spec.json").write_text(spec.dump())
    (workspace.etl / "ips.parquet").unlink()

    page = write_report(workspace).read_text()

    assert "The declaration has ips: none: every impression weighs 1." in Outline(page).words
    assert ["to train on", "2026-11-01 to 2026-11-02", "1,600"] in table_rows(page)


def test_cells_without_random_sessions_are_counted(workspace: Workspace) -> None:
    cells = hand.ips_cells()
    for cell in cells[:2]:
        cell |= {"reason": "no random session", "weight": 1.0}
    pq.write_table(pa.Table.from_pylist(cells), workspace.etl / "ips.parquet")

    words = Outline(write_report(workspace).read_text()).words

    assert "2 of 16 cells could not be weighted and weigh 1" in words
    assert "1.000 (no random session)" in words


def test_what_is_not_a_number_is_left_out_and_the_page_written(workspace: Workspace) -> None:
    with (workspace.training("ips") / "curve.jsonl").open("a") as lines:
        lines.write('{"samples": 500, "loss": {"click": NaN, "like": 0.1}}\n')
    value = hand.evaluation()
    for model in value["responses"]["like"].values():
        model["expected"] |= {"auc": float("nan"), "predicted_over_actual": float("nan")}
    workspace.evaluation.write_text(json.dumps(value))

    page = write_report(workspace).read_text()

    assert "is 0.97 with IPS weights (all responses: 0.97 to 0.97)" in Outline(page).words
    assert "better than LightGBM without ids on every response" in Outline(page).words
    assert ["no weights", "–", "–", "0.35000", "0.9500"] in table_rows(page)


def test_curves_of_other_responses_are_not_mixed(workspace: Workspace) -> None:
    (workspace.training("none") / "curve.jsonl").write_text('{"samples": 9, "loss": {"click": 0.5, "share": 0.1}}\n')

    body = write_report(workspace).read_text().split('id="training"')[1].split("</section>")[0]

    assert re.findall(r"<figcaption>(.*?)</figcaption>", body) == ["click"]


def test_figures_of_another_bundle_are_marked(workspace: Workspace) -> None:
    workspace.ranking.write_text(json.dumps({**hand.ranking(), "bundle": "v0"}))

    page = write_report(workspace).read_text()

    assert "The current bundle is v1; run sparsefeed bench to measure it." in Outline(page).words
    assert "What the score is made of" not in page


def test_a_damaged_run_leaves_the_last_page_as_it_was(workspace: Workspace) -> None:
    workspace.report.write_text("the last page")
    workspace.bench.write_text("{")

    with pytest.raises(BadFileError, match=r"bench\.json"):
        write_report(workspace)

    assert workspace.report.read_text() == "the last page"
    assert not list(workspace.root.glob(".*"))


def test_without_its_libraries_the_error_says_what_to_install(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)

    with pytest.raises(ToolError, match=r"jinja2 is not installed; pip install 'sparsefeed\[report\]'"):
        write_report(workspace)
