"""Where work runs: in local processes or on Ray. Both answer to :class:`~unfoldkit.engines.base.Engine`."""
