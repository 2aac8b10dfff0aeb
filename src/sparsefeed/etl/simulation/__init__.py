"""The feed simulator's parts: what exists (world), what is shown (policy), what follows (response), what is kept (write)."""
