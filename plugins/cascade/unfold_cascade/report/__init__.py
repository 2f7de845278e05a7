"""Reports, dashboard and figures of cascades."""
