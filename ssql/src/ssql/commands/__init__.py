"""The commands of SSQL, one file each: what is special about it."""

AUTHORS_FILE = "checkpoint_authors.pth.tar"
FILES = ("features.csv", "features.png", "table.md", "demo.png", AUTHORS_FILE)  # beside those of every method
