"""A spec that validates can be built; what cannot be meant is refused with where, what and how to mend."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsefeed.errors import SpecError
from sparsefeed.etl.spec import FeedSpec
from tests import logs


def value() -> dict[str, Any]:
    return copy.deepcopy(logs.spec().model_dump(mode="json"))


def broken(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    out = value()
    change(out)
    return out


def test_a_spec_survives_json_and_its_digest_is_of_its_content(tmp_path: Path) -> None:
    spec = logs.spec()
    (tmp_path / "spec.json").write_text(spec.dump())
    again = FeedSpec.load(tmp_path / "spec.json")
    assert again == spec
    assert again.digest == spec.digest
    assert logs.spec(name="other").digest != spec.digest


def test_the_order_of_the_declaration_is_the_order_of_lookups() -> None:
    spec = logs.spec()
    assert [f.name for f in spec.lookups] == [
        "member_id", "clicked_posts", "liked_creators", "post_id", "creator_id", "hashtags",
    ]  # fmt: skip
    assert [f.name for f in spec.lookups_of("post")] == ["clicked_posts", "post_id"]
    assert [f.name for f in spec.of_kind("dense", side="candidate")] == ["post_age_hours", "post_length"]
    assert [f.name for f in spec.of_kind("id", "ids", "history", side="member")] == [
        "member_id", "clicked_posts", "liked_creators",
    ]  # fmt: skip


def test_a_history_shares_its_items_table() -> None:
    spec = logs.spec()
    assert spec.table_of(spec.histories[1]).name == "creator"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: v["features"][6].update(table="hashtagg"),
            'features[6].table: "hashtagg" is not a table; did you mean "hashtag"?',
        ),
        (
            lambda v: v["features"][6].update(max_lenght=3),
            'features[6].max_lenght: "max_lenght" is not a key; did you mean "max_length"?',
        ),
        (lambda v: v.update(respones=[]), 'respones: "respones" is not a key; did you mean "responses"?'),
        (lambda v: v["ips"].update(smothing=1), 'ips.smothing: "smothing" is not a key; did you mean "smoothing"?'),
        (lambda v: v["tables"][0].update(name="a b"), "tables[0].name: got 'a b'"),
        (lambda v: v["tables"][0].update(dim=6), "tables[0].dim: got 6; input should be a multiple of 4"),
        (lambda v: v["tables"][1].update(name="member"), 'tables[1].name: "member" is declared twice'),
        (lambda v: v["features"].pop(6), 'tables[3]: no feature reads "hashtag"'),
        (
            lambda v: v["features"][2].update(of="posts"),
            'features[2].of: "posts" is not an id feature of the candidate; did you mean "post_id"?',
        ),
        (
            lambda v: v["features"][2].update(response="clicks"),
            'features[2].response: "clicks" is not a response; did you mean "click"?',
        ),
        (
            lambda v: v["logs"].update(member="member"),
            'logs.member: "member" is not an id feature of the member; did you mean "member_id"?',
        ),
        (lambda v: v["logs"].update(member=None), "features[2]: a history needs logs.member"),
        (lambda v: v["logs"].update(actions=None), 'responses[1]: "like" has no column and there are no logs.actions'),
        (lambda v: v.update(sessions=None), "ips: needs sessions"),
        (lambda v: v["logs"].update(position=None), "ips: needs logs.position"),
        (
            lambda v: v["ips"].update(position_edges=[2, 1]),
            "ips.position_edges: got [2, 1]; must be one or more rising",
        ),
        (lambda v: v.pop("name"), "name: missing; it must be given"),
        (
            lambda v: v["responses"][0].update(score_weight=float("nan")),
            "responses[0].score_weight: got nan; input should be",
        ),
        (lambda v: v["features"][7].update(fill=float("inf")), "features[7].fill: got inf; input should be"),
        (lambda v: v["features"][7].update(name="keys"), 'features[7].name: "keys" is a name of the snapshot'),
        (lambda v: v["features"][7].update(name="click"), 'features[7].name: "click" is a name of the logs'),
        (lambda v: v["features"][7].update(name="y_like"), 'features[7].name: "y_like" is a name of a response'),
        (lambda v: v["sessions"].update(random="production"), 'sessions: random and production are both "production"'),
    ],
)
def test_what_cannot_be_meant_is_refused(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        FeedSpec.parse(broken(change))
    assert message in str(caught.value)


def test_every_fault_is_told_at_once() -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["tables"][0]["dim"] = 6
        spec["features"][0]["side"] = "author"

    with pytest.raises(SpecError) as caught:
        FeedSpec.parse(broken(change), where="feed.yaml")
    assert [line.split(": ")[:2] for line in str(caught.value).splitlines()] == [
        ["feed.yaml", "tables[0].dim"],
        ["feed.yaml", "features[0].side"],
    ]


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("{")
    with pytest.raises(SpecError, match=r"spec\.json: not readable as JSON"):
        FeedSpec.load(tmp_path / "spec.json")


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        logs.spec().name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("rows", [3, 2, 92_682])
def test_a_paired_tail_must_have_halves_whose_codes_fit(rows: int) -> None:
    value = logs.spec().model_dump()
    value["tables"] = [one | {"tail": "quotient_remainder", "tail_rows": rows} for one in value["tables"]]
    with pytest.raises(SpecError, match=rf"tables\[0\]\.tail_rows: got {rows}; .* an even number, 4 to 92680"):
        FeedSpec.parse(value)
