"""Measuring: quality against the ground truth and the teacher, latency, cost, and the report that joins them."""

from __future__ import annotations
