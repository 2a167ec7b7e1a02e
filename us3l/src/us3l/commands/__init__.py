"""The commands of US3L, one file each: what is special about it.

Their arguments: `options` are shared, `config` is resolved, `name` is the config's for the record, `own` are options of
the command, `optim` is what replaces the optimizer and the schedule of the config. All return None after a dry run, and
raise InputError before anything is written, and Stopped where a stop signal came (a training is saved).
"""

# beside those of every method
FILES = ("checkpoint_width_*.pth.tar", "subnetwork.*", "table.md", "demo.png")
