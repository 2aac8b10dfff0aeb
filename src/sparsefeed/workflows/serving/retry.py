"""Retry: which failures are tried again, how often, and how long a client waits before.

Notable: the budget is of the client, not of a request. A server that refuses because it is overloaded gets at most a
tenth more work from its clients' retries, not a multiple, however many requests fail.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from sparsefeed.errors import ServeError

__all__ = ["RetryBudget", "RetryPolicy"]


@dataclass(frozen=True)
class RetryPolicy:
    """When a request that got no answer is sent again: only what is UNAVAILABLE, and a connection that failed.

    Attributes:
        max_share: Of n calls at most `max_share * n + burst` are retries; 0 with a burst of 0 retries nothing.
        burst: Retries a client may make before it has made calls.
        max_retries: Of one request.
        first_s: Longest wait before the first retry; each further one waits up to twice as long.
        longest_s: No wait is longer.
    """

    max_share: float = 0.1
    burst: int = 3
    max_retries: int = 3
    first_s: float = 0.025
    longest_s: float = 1.0

    def __post_init__(self) -> None:
        """ServeError for a policy that cannot be meant."""
        if not (0 <= self.max_share <= 1 and self.burst >= 0 and self.max_retries >= 0):
            raise ServeError(f"retry: got {self}; max_share is 0 to 1, burst and max_retries are 0 or more")
        if not 0 < self.first_s <= self.longest_s:
            raise ServeError(
                f"retry: got first_s {self.first_s}, longest_s {self.longest_s}; must be 0 < first <= longest"
            )

    def wait_s(self, retries: int, draw: Callable[[], float] = random.random) -> float:
        """Seconds before the next retry, after so many: anything up to the bound, so that clients do not come at once.

        Source: "full jitter", M. Brooker, Exponential Backoff And Jitter (2015).
        """
        return min(self.longest_s, self.first_s * 2.0**retries) * draw()


class RetryBudget:
    """Tokens: a call earns `max_share` of one, a retry costs one; no more are kept than `burst`, but one at least."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._most = max(float(policy.burst), 1.0)
        self._tokens = float(policy.burst)

    def earn(self) -> None:
        """Count a call that is no retry."""
        self._tokens = min(self._most, self._tokens + self._policy.max_share)

    def spend(self) -> bool:
        """Take a retry from the budget; False where none is left."""
        if self._tokens < 1 - 1e-9:
            return False
        self._tokens -= 1
        return True
