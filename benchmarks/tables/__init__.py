"""The near cache of tables: what it gathers in a second, and what share of requests it hits."""
