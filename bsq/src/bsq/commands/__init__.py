"""The commands of `bsq`: one file for each, and what they share."""
