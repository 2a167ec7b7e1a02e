"""The commands of US3L, one file each: what is special about it."""

# beside those of every method
FILES = ("checkpoint_width_*.pth.tar", "subnetwork.*", "table.md", "demo.png")
