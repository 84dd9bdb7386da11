"""Wire bytes to InferRequest and back, one module per wire."""
