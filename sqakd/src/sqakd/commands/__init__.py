"""The commands of SQAKD, one file each: what is special about it."""
