"""The commands of SQAKD, one file each: what is special about it."""

FILES = ("table.md", "demo.png", "checkpoint/*.pth", "checkpoints/*.pth.tar")  # beside those of every method
