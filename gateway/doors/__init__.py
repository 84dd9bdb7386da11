"""Listeners: a door is a codec plus a listener and nothing else."""
