"""Handwritten digits: a cheap linear model, a large ensemble that is right more often, and a ranker of two towers."""
