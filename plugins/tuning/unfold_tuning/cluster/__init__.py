"""Where nodes come from: local processes, Ray, EC2."""
