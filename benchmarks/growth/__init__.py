"""What a hit costs as something grows: entries, routes, callers, heads, connections, bodies."""
