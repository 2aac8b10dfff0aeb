"""The trainer, its tables and the bundle it leaves."""
