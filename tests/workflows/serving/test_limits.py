from __future__ import annotations

import pytest

from sparsefeed.errors import RequestError
from sparsefeed.workflows.serving.steps.limits import Limits


def test_what_is_within_the_limits_passes() -> None:
    limits = Limits(max_request_bytes=10, max_id_bytes=4)
    limits.check(b"", [b""])
    limits.check(b"mmmm", [b"pppp", b"pp"])
    limits.check(b"mmmm", [b"pppp"], b"{}")


@pytest.mark.parametrize(
    ("member", "posts", "overrides", "said"),
    [
        (b"m", [b"p" * 4] * 2, b"{}", "the request: got 11 bytes of strings; must be at most 10"),
        (b"mmmmm", [b"p"], b"", "member_id: got 5 bytes; must be at most 4"),
        (b"m", [b"p", b"ppppp"], b"", r"post_ids\[1\]: got 5 bytes; must be at most 4"),
        (b"m", [b"\xc3\xa9\xc3\xa9p"], b"", r"post_ids\[0\]: got 5 bytes"),  # bytes, not characters
    ],
)
def test_what_is_too_long_is_refused_by_name(member: bytes, posts: list[bytes], overrides: bytes, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Limits(max_request_bytes=10, max_id_bytes=4).check(member, posts, overrides)


def test_a_model_of_an_older_export_has_the_defaults() -> None:
    assert Limits.of({"bundle": "b1"}) == Limits()
    assert Limits.of({"max_request_bytes": "5", "max_id_bytes": "3"}) == Limits(5, 3)
