"""Seeing and steering a running gateway: metrics, logs, the admin port."""
