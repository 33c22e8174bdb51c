"""Monitoring of model internals: live distributions, alerts on spikes, pictures of the cause.

Start at ``ARCHITECTURE.md``. This package root re-exports nothing, so that importing one room never
pays for another: the hooks load in a model server's process.
"""

__version__ = "0.1.0"
