"""The whole loop on a real model: an image server, its sidecar, an alert and a portrait.

``python -m demo`` starts every process, sends photographs, and follows one flagged feature from the
first unusual picture to the portrait that shows what the feature looks for. ``demo/README.md`` has
the numbers the story rests on.
"""
