"""The commands of S2-BNN, one file each: what is special about it."""

FILES = ("report.json", "table.md", "demo.png", "network.safetensors")  # beside those of every method
