"""Metrics, planning and policy evaluation, reports."""
