"""Digests in, values out: keys, entries, eviction and flights. Imports nothing of ours, knows no protocol."""
