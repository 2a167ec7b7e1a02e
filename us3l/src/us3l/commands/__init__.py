"""The commands of US3L, one file each: what is special about it."""

FILES = ("checkpoint_width_*.pth.tar", "subnetwork.*")  # what they write beside the files of every run
