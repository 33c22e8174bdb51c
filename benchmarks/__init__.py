"""Measures the product against named peers or physical limits, as ratios in one run."""
