"""The methods that are attacked; one joins with a file of its lines, and here."""

from tools.attacks.bsq_lines import BSQ
from tools.attacks.lowbit_lines import LOWBIT
from tools.attacks.s2bnn_lines import S2BNN
from tools.attacks.sqakd_lines import SQAKD
from tools.attacks.ssql_lines import SSQL
from tools.attacks.us3l_lines import US3L

METHODS = (BSQ, SSQL, US3L, S2BNN, SQAKD, LOWBIT)
