"""The commands of S2-BNN, one file each: what is special about it."""
