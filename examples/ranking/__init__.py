"""The demo's second act: a ranking whose features are in tables (``act.py``)."""
