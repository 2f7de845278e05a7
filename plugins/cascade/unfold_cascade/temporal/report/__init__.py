"""Reports of cascades over time: the plan's report, its tables, and all user-visible sentences."""
