"""More load than a server can bear: the gateway beside bare Triton."""
