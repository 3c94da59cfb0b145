"""The rule of every operation's result, by the operation's name."""

from . import arrange_rules, element_rules, index_rules, product_rules, window_rules
from .forms import Rule

RULES: dict[str, Rule] = (
    element_rules.RULES | arrange_rules.RULES | index_rules.RULES | window_rules.RULES | product_rules.RULES
)
