"""Where work runs: in local processes or on Ray. Both implement :class:`~unfoldkit.engines.base.Engine`."""
