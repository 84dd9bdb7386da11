"""Where the truth of tables lives: one small Protocol, and an adapter for each kind of store."""
