"""The commands of US3L, one file each: what is special about it."""
