"""What changed between the calibration data and new data (``plan --check``)."""
