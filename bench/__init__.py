"""Every figure that natskit claims, measured side by side in one run: ``make bench``, results in RESULTS.md."""
