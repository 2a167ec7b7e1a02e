"""`python -m s2bnn …` and `accelerate launch -m s2bnn …`."""

from s2bnn.cli import main

main()
