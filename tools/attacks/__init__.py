"""What `tools/attack.py` does: inputs by kind, each in a process of its own, and whether the promise was kept."""
