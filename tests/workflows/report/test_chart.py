from __future__ import annotations

import math
import re

import altair as alt
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.workflows.report.chart import HUES, WIDTH, Plot, draw, legend, log_axis


def clipped(name: str) -> Plot:
    """A clipped line, whose SVG needs a fragment id."""
    values = [{"x": x, "y": x * x, "kind": "<b>&"} for x in range(4)]
    chart = alt.Chart(alt.Data(values=values)).mark_line(clip=True).encode(x="x:Q", y="y:Q", color="kind:N")
    return draw(chart, name, "Title", "Label", 200)


def test_a_plot_is_as_large_as_asked() -> None:
    assert f'width="{WIDTH}" height="200"' in clipped("one").svg


def test_equal_charts_give_equal_svg() -> None:
    assert clipped("one") == clipped("one")


def test_two_plots_share_no_fragment_id() -> None:
    one, two = (set(re.findall(r'\bid="([^"]+)"', clipped(name).svg)) for name in ("one", "two"))

    assert one
    assert not one & two


def test_every_reference_of_a_plot_is_to_its_own_ids() -> None:
    svg = clipped("one").svg

    references = set(re.findall(r"url\(#([^)]+)\)", svg))
    assert references
    assert references <= set(re.findall(r'\bid="([^"]+)"', svg))


def test_text_of_the_data_is_escaped_in_svg() -> None:
    svg = clipped("one").svg

    assert "<b>" not in svg
    assert "&lt;b&gt;&amp;" in svg


def test_a_legend_has_as_many_colours_as_names() -> None:
    assert legend(["a", "b"], HUES).to_dict() == {"domain": ["a", "b"], "range": list(HUES[:2])}


def test_ticks_of_a_narrow_logarithmic_axis_are_round() -> None:
    assert log_axis([0.33, 1.56])[1] == [0.5, 0.7, 1.0, 1.5]


def test_ticks_of_a_wide_logarithmic_axis_are_few() -> None:
    assert log_axis([0.01, 100.0])[1] == [0.01, 0.1, 1.0, 10.0, 100.0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-4, 1e4), max_size=6))
def test_a_logarithmic_axis_holds_its_values_and_its_ticks(values: list[float]) -> None:
    scale, ticks = log_axis(values)
    low, high = scale.to_dict()["domain"]

    assert 0 < low < min([*values, 1.0])
    assert max([*values, 1.0]) < high
    assert 1.0 in ticks
    assert all(low <= tick <= high for tick in ticks)
    assert len(ticks) <= 8 or all(math.log10(tick).is_integer() for tick in ticks)
