"""One engine simulated iteration by iteration: requests, limits, scheduler, and the duration of a step."""
