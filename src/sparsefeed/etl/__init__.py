"""Logs to training parquet: the declaration, id maps, IPS weights, histories."""
