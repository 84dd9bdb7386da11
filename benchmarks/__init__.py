"""What Tailrace costs and gains, measured beside real peers in one interleaved run."""
