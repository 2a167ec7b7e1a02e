"""The distillation methods that SQAKD is compared with (the paper's Table 7, and three that are names there)."""
