"""What runs around the gateway rather than in it: a real Triton, the demo's models, the demo.

Rule of this package: it may import everything of ours, nothing of ours may import it, except the
tests, the benchmarks and the `demo` command. Everything that it starts, it stops.
"""
