"""What a run writes while it trains: metrics, summaries, lines on the terminal, trackers."""
