"""The commands of SSQL, one file each: what is special about it."""
