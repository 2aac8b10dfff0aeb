"""Release: a bundle into running servers and back out: publish, router, canary, shadow, rollback, transport."""
