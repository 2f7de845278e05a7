"""Reports, figures, dashboard and hand-over file of cascades without time."""
