"""What one trial is: function, checkpoint, worker process, ledger row."""
