"""Handwritten digits in two tiers: a cheap linear model, and a large ensemble that is right more often."""
