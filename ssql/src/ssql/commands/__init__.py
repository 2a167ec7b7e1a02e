"""The commands of SSQL, one file each: what is special about it.

Their arguments: `options` are shared, `config` is resolved, `name` is the config's for the record, `own` are options of
the command, `optim` is what replaces the optimizer and the schedule of the config.
"""

AUTHORS_FILE = "checkpoint_authors.pth.tar"
FILES = ("features.csv", "features.png", "table.md", "demo.png", AUTHORS_FILE)  # beside those of every method
