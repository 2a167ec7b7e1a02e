"""`python -m ssql …` and `accelerate launch -m ssql …`."""

from ssql.cli import main

main()
