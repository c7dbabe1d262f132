"""What a run is before it runs: its config, its models, its phases."""
