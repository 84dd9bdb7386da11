"""What a caller would get if something failed: the real pipeline in a world of conditions."""
