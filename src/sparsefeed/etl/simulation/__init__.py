"""The feed simulator's parts: what exists (world), is shown (policy), follows (response) and is kept (write)."""
