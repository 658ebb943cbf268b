"""Policies: whatever chooses actions from observations and instructions."""

from sfvgen_policies.policy import Policy
from sfvgen_policies.registry import POLICIES, make_policy

__all__ = ["POLICIES", "Policy", "make_policy"]
