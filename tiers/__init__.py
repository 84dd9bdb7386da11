"""Models: tensors, Triton, replicas, the cascade. Knows nothing of the caller's socket."""
