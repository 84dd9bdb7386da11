"""The front door: bytes in, bytes out. The only package that may import all the others."""
