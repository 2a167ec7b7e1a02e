"""`python -m sqakd …` and `accelerate launch -m sqakd …`."""

from sqakd.cli import main

main()
