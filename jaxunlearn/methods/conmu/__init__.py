"""ConMU: controllable unlearning by data selection, noise on what is to be forgotten, and a proxy.

Breaking the Trilemma of Privacy, Utility, Efficiency via Controllable Machine Unlearning (2023).
The paper's idea: three modules, each with a knob, that trade two of privacy, utility and efficiency
against each other. What is true of it: the knobs trade utility for cost as stated; nearness to
retraining in accuracy is not forgetting, and the paper's code selects at random by mistake.
"""

from jaxunlearn.methods.conmu.config import OFFICIAL, PAPER, PAPER_CLASS, ConMUConfig
from jaxunlearn.methods.conmu.pipeline import Unlearned, conmu
from jaxunlearn.methods.conmu.sweep import sweep
from jaxunlearn.methods.conmu.unlearner import unlearner

__all__ = [
    "OFFICIAL",
    "PAPER",
    "PAPER_CLASS",
    "ConMUConfig",
    "Unlearned",
    "conmu",
    "sweep",
    "unlearner",
]
