"""String IDs to rows, without collisions."""
