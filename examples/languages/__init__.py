"""Language identification in two tiers by two packages of others, its rows kept one by one: `make languages`."""
