"""The KServe v2 inference protocol with Triton's binary tensor extension: bytes to values and back."""
