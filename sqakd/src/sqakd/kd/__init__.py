"""The distillation methods that SQAKD is compared with: Table 7 of the paper, three that its program only names."""
