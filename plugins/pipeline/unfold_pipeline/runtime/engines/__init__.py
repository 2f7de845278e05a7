"""Engines that run as processes of this machine: started, scaled, replaced and drained."""
