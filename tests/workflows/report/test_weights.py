from __future__ import annotations

import re
from typing import Any

from sparsefeed.workflows.report.chart import HEIGHT
from sparsefeed.workflows.report.run import IpsCell
from sparsefeed.workflows.report.weights import busiest_surfaces, ips_weights
from tests.workflows.report import conftest as hand
from tests.workflows.report.test_plots import num_points, words


def cells(**changes: Any) -> list[IpsCell]:
    return [IpsCell.model_validate({**cell, **changes}) for cell in hand.ips_cells() if cell["response"] == "click"]


def bars(svg: str) -> list[tuple[float, float]]:
    """Low and high of every drawn bar."""
    found = re.findall(r'weight: ([\d.]+); high: ([\d.]+); [^>]*aria-roledescription="rule mark"', svg)
    return [(float(low), float(high)) for low, high in found]


def at(svg: str, kind: str) -> list[float]:
    """Heights, in pixels from above, of the marks of one kind."""
    return [float(y) for y in re.findall(rf'kind: {kind}"[^>]*translate\([\d.]+,([\d.]+)\)', svg)]


def test_weights_are_drawn_for_every_covered_cell() -> None:
    plot = ips_weights("click", cells(), 0)

    assert num_points(plot.svg) == 8
    assert {"explore", "home", "position", "weight"} <= set(words(plot.svg))
    assert "y = 1 from 0.50 to 0.50; y = 0 from 1.12 to 1.12" in plot.label


def test_every_weight_has_the_bar_of_its_bounds() -> None:
    plot = ips_weights("click", cells(), 0)

    assert sorted(set(bars(plot.svg))) == [(0.25, 1.0), (1.0, 1.25)]
    assert len(bars(plot.svg)) == 8
    assert "the widest 95 % bounds are 0.25 to 1.00 at explore, position 1, y = 1" in plot.label


def test_a_weight_without_bounds_has_no_bar() -> None:
    plot = ips_weights("click", cells(low=None, high=None), 0)

    assert num_points(plot.svg) == 8
    assert bars(plot.svg) == []
    assert "bounds" not in plot.label


def test_uncovered_positions_are_marked_at_one_and_named() -> None:
    some = [
        cell.model_copy(update={"reason": "no random session", "weight": 1.0}) if cell.position == 2 else cell
        for cell in cells()
    ]

    plot = ips_weights("click", some, 0)

    assert num_points(plot.svg) == 4 + 2
    assert len(bars(plot.svg)) == 4
    assert len(at(plot.svg, "no random session: 1")) == 2
    assert "no random session: 1" in words(plot.svg)
    assert "explore, position 2: no random session, weight 1; home, position 2" in plot.label


def test_a_weight_of_zero_is_marked_at_the_foot_of_a_logarithmic_axis() -> None:
    some = [cell.model_copy(update={"weight": 0.0, "low": None, "high": None}) if cell.y else cell for cell in cells()]

    plot = ips_weights("click", some, 0)

    assert num_points(plot.svg) == 4 + 4
    assert len(at(plot.svg, "weight 0")) == 4
    assert min(at(plot.svg, "weight 0")) > HEIGHT / 2


def test_where_nothing_is_weighted_the_marks_alone_are_drawn() -> None:
    plot = ips_weights("click", cells(reason="no random session", weight=1.0), 0)

    assert num_points(plot.svg) == len(at(plot.svg, "no random session: 1")) == 4
    assert bars(plot.svg) == []


def test_bars_of_surfaces_stand_beside_each_other() -> None:
    places = re.findall(
        r'surface: (\w+)"[^>]*"rule mark" transform="translate\(([\d.]+),', ips_weights("a", cells(), 0).svg
    )

    assert len({x for _, x in places}) == 4  # two surfaces at two positions


def test_of_many_surfaces_the_busiest_are_drawn() -> None:
    many = [cell.model_copy(update={"surface": f"s{i}", "num_random": i}) for i in range(9) for cell in cells()[:2]]

    assert busiest_surfaces(many) == ["s3", "s4", "s5", "s6", "s7", "s8"]
