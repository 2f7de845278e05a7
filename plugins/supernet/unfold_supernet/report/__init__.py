"""Reports: training, studies on the accelerator, and replays; all their sentences in one module."""
