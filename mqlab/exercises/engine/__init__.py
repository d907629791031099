"""What every check works with: the outcomes, a bounded call, the watched broker, the quiz."""
