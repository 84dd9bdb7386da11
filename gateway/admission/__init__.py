"""Who may ask, how often, and whether what they ask can be true."""
