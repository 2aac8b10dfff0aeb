from __future__ import annotations

import json
from typing import Any

import pytest
import xxhash

from sparsefeed.errors import ReleaseError
from sparsefeed.workflows.release.routing.routes import Canary, Routes, Shadow

MEMBERS = [f"member-{i}".encode() for i in range(20_000)]
ROUTES = Routes(
    7, "b1", ("b0",), Canary("b2", 20.0, "b2-salt"), Shadow("b3", 50.0), {"m1": "b2", "m2": "b1"}, {"why": "a test"}
)


def test_what_is_written_is_read_back() -> None:
    assert Routes.parse(ROUTES.dump(), "routes") == ROUTES


def test_a_members_place_is_the_hash_that_the_contract_names() -> None:
    routes = Routes(0, "b1", canary=Canary("b2", 20.0, "salt"))
    seed = xxhash.xxh64_intdigest(b"salt", 0)
    for member in MEMBERS[:500]:
        place = (xxhash.xxh64_intdigest(member, seed) >> 11) / 2**53
        assert (routes.choose(member).bundle == "b2") == (place < 0.2)


@pytest.mark.parametrize("percent", [0.5, 5.0, 20.0, 50.0, 99.0])
def test_the_canarys_share_is_its_percent(percent: float) -> None:
    routes = Routes(0, "b1", canary=Canary("b2", percent, "b2-1"))
    share = sum(routes.choose(member).bundle == "b2" for member in MEMBERS) / len(MEMBERS)
    p = percent / 100
    assert abs(share - p) <= 3 * (p * (1 - p) / len(MEMBERS)) ** 0.5


def test_100_percent_is_every_member_but_the_anonymous() -> None:
    routes = Routes(0, "b1", canary=Canary("b2", 100.0, "b2-1"))
    assert {routes.choose(member).bundle for member in MEMBERS} == {"b2"}
    assert routes.choose(b"").bundle == "b1"


def test_raising_the_percent_keeps_who_is_in_and_another_salt_draws_others() -> None:
    def inside(percent: float, salt: str) -> set[bytes]:
        routes = Routes(0, "b1", canary=Canary("b2", percent, salt))
        return {member for member in MEMBERS if routes.choose(member).reason == "canary"}

    few, more, other = inside(5, "one"), inside(10, "one"), inside(5, "two")
    assert few < more
    assert len(few & other) < 0.12 * len(few)  # 5 % of them by chance


def test_a_pin_comes_before_the_canary() -> None:
    choice = ROUTES.choose(b"m2")
    assert (choice.bundle, choice.reason) == ("b1", "pinned")
    assert ROUTES.choose(b"m1").bundle == "b2"


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(ROUTES.dump()), **changes})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "routes: not JSON"),
        ("[]", "routes: got []; must be an object"),
        ("[" * 100_000, "routes: not JSON"),
        (changed(stabel="b1"), '"stabel" is not a key; did you mean "stable"?'),
        (json.dumps({"format": 1}), '"canary" is missing'),
        (changed(format=2), "format: got 2; this program reads 1"),
        (changed(format=True), "format: got True"),
        (changed(revision=-1), "revision: got -1"),
        (changed(revision="7"), "revision: got '7'"),
        (changed(stable="../b1"), 'stable: got "../b1"; must be a bundle\'s id'),
        (changed(stable=None), "stable: got null"),
        (changed(previous="b0"), "previous: must be a list"),
        (changed(previous=["b0", 3]), "previous[1]: got 3"),
        (changed(canary={"bundle": "b2", "percent": 0, "salt": "s"}), "canary: percent: got 0"),
        (changed(canary={"bundle": "b2", "percent": 100.5, "salt": "s"}), "canary: percent: got 100.5"),
        (changed(canary={"bundle": "b2", "percent": True, "salt": "s"}), "canary: percent: got True"),
        (changed(canary={"bundle": "b2", "percent": 5}), 'canary: "salt" is missing'),
        (changed(canary={"bundle": "b2", "percent": 5, "salt": "../x"}), "canary: salt: got '../x'"),
        (changed(canary="b2"), 'canary: got "b2"; must be an object'),
        (changed(shadow={"bundle": "b3", "percnt": 1}), 'did you mean "percent"?'),
        (changed(pinned=["m1"]), "pinned: must be an object"),
        (changed(pinned={"": "b1"}), "anonymous member cannot be pinned"),
        (changed(pinned={"m1": "b 1"}), "pinned['m1']: got"),
        (changed(decision="b"), "decision: must be an object"),
        (changed(revision=7).replace("20.0", "NaN"), "NaN is no JSON number"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, said: str) -> None:
    with pytest.raises(ReleaseError) as caught:
        Routes.parse(text, "routes")
    assert said in str(caught.value)


def test_routes_that_would_not_be_read_back_are_not_written() -> None:
    with pytest.raises(ReleaseError, match="stable"):
        Routes(0, "no bundle").dump()
