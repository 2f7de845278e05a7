"""From a log of calls to a certified plan: costs, calibrated scores, proposals, tests."""
